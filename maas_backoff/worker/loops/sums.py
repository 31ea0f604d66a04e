"""The loop that sends what a worker has settled, by kind and by tenant, once a second."""

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.writer import new_call
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.sums import SettleSums

PAUSE = 1.0
"""Seconds between two calls. A worker that is killed takes the sums of this time with it."""


class SumsLoop:
    """Sends sums, one call after the other. A call whose answer is lost is repeated, and counts once."""

    def __init__(self, sums: SettleSums, store: QueueStore) -> None:
        self._sums = sums
        self._store = store
        self._patience = Patience("a worker's loop of sums", store.connection.server.outage)
        self._unanswered: tuple[str, str] | None = None

    async def run(self) -> None:
        """Send the sums whenever there are some."""
        while True:
            if self._unanswered is None:
                await self._sums.waiting.wait()
            try:
                await self.send()
                self._patience.restored()
            except StorageError as error:
                self._patience.failed(error)
            await anyio.sleep(PAUSE)

    async def send(self) -> None:
        """Send all sums. If StorageError is raised, or this is cancelled, the next call sends what is left."""
        while True:
            if self._unanswered is None:
                taken = self._sums.take()
                if not taken:
                    return
                self._unanswered = taken, new_call()
            await self._store.writer.count_settles(*self._unanswered)
            self._unanswered = None
