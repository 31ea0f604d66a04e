"""The loop that sends what handlers emit: for all attempts together, and soon."""

import time

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.emissions import Emissions, EmitCall
from maas_backoff.worker.loops.patience import Patience

log: Log = log_for("worker")

PAUSE, BURST = 0.02, 4
"""Seconds between two calls, in which parts gather; and calls that need not wait after a time with fewer calls.

The first part and the last one of an attempt never wait.
"""

EACH = 0.00004
"""More seconds for each attempt in a call: 1,000 attempts that emit all the time send every 60 ms.

That bounds the server's time, of which a part takes some 10 us.
"""

REFUSALS = 3
"""How often the server may refuse a call before its parts are dropped."""


class EmitLoop:
    """Sends parts and lines, one call after the other, so that the parts of an attempt stay in order."""

    def __init__(self, emissions: Emissions, store: QueueStore) -> None:
        self._emissions = emissions
        self._store = store
        self._patience = Patience("a worker's emit loop", store.connection.server.outage)
        self._due = 0.0
        """When the next call would be sent if all had waited, by time.monotonic()."""

    async def run(self) -> None:
        """Send what was emitted: at once, if fewer than 50 calls a second were sent lately."""
        emissions = self._emissions
        while True:
            await emissions.waiting.wait()
            call = emissions.take()
            if call is None:
                continue
            pause = EACH * len(call.emitted) + (PAUSE if call.is_last else 0)
            self._due = max(self._due, time.monotonic()) + pause
            await self._send(call)
            left = self._due - BURST * PAUSE - time.monotonic()
            if left > 0:
                with anyio.move_on_after(left):
                    await emissions.urgent.wait()

    async def _send(self, call: EmitCall) -> None:
        """Send a call until the server answers. Without an answer, no settlement could be sent either."""
        refusals = 0
        while True:
            try:
                lengths = await self._store.streams.emit(call.emitted)
            except StorageError as error:
                if not isinstance(error, StorageUnavailableError):
                    refusals += 1
                    if refusals == REFUSALS:
                        ids = ", ".join(repr(one.task_id) for one in call.emitted[:5])
                        log.error("the server refuses the streams of %d tasks (%s): %s", len(call.emitted), ids, error)  # noqa: TRY400 - the cause is the server's
                        self._emissions.refused(call, f"the server has refused parts: {error}")
                        return
                await self._patience.after(error)
                await self._store.connection.server.revive()
            else:
                self._patience.restored()
                self._emissions.answered(call, lengths)
                return
