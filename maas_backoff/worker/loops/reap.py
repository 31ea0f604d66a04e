"""The reaper: settles attempts whose worker no longer renews their lease."""

import logging
import random
import time

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.settlement import decide
from maas_backoff.domain.tracing import WorkerTracing
from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.logs import about
from maas_backoff.store.batch import Settle
from maas_backoff.store.connect import Client
from maas_backoff.store.found import Found
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.loops.patience import Patience

log: Log = log_for("worker")

LIMIT = 100


class Reaper:
    """Looks for lost attempts when the next lease ends, and every quarter of a lease.

    The heartbeat calls it, in its thread and on its connection. So lost tasks come back also while a handler blocks the
    event loop. If no worker has looked for half a lease, the server or all workers stood still. Then live workers get
    the time of one heartbeat and 2 seconds to renew their leases, before any attempt of theirs is reaped.
    """

    def __init__(self, store: QueueStore, worker: str, lease: float, tracing: WorkerTracing | None = None) -> None:
        self.due: float = 0.0
        """The time of the next look, by time.monotonic()."""
        self._store = store
        self._worker = worker
        self._lease = lease
        self._tracing = tracing
        self._period = lease / 4
        self._patience = Patience("a worker's reaper", store.connection.server.outage)

    async def look(self, client: Client, within: float) -> None:
        """Look for lost attempts, if `due`, for `within` seconds at most. After an error, look again later."""
        if time.monotonic() < self.due:
            return
        store, spread = self._store.over(client), random.uniform(0.9, 1.1)  # noqa: S311 - spreads the looks of several workers
        self.due = time.monotonic() + self._period * spread
        try:
            with anyio.fail_after(within):
                gap, grace = 2 * self._period, self._lease / 3 + 2
                lost, next_end = await store.lost.look(gap, grace, LIMIT, self._tracing)
                await self._settle(store, lost)
        except (StorageError, TimeoutError) as error:
            self._patience.failed(error if isinstance(error, StorageError) else StorageUnavailableError("no answer"))
            return
        self._patience.restored()
        if len(lost) >= LIMIT:
            self.due = time.monotonic()
        elif next_end is not None:
            self.due = min(self.due, time.monotonic() + next_end + 0.02 * self._period * spread)

    async def _settle(self, store: QueueStore, lost: list[Found]) -> None:
        if self._tracing is None or not lost:
            await settle_lost(store, self._worker, lost)
            return
        with self._tracing.reap("reap", {one.task_id: one.trace for one in lost}) as span:
            span.changed(await settle_lost(store, self._worker, lost))


async def settle_lost(store: QueueStore, worker: str, lost: list[Found]) -> int:
    """Settle lost attempts, and return how many. Two reapers at once do no harm: the second one's answer is "lost"."""
    settles = [settle for settle in map(_settle, lost) if settle is not None]
    if not settles:
        return 0
    answers, number = await store.lost.settle(settles, worker), 0
    for settle, answer in zip(settles, answers, strict=True):
        if answer in {"ok", "cancelled"}:
            number += 1
            then = "cancelled" if answer == "cancelled" else settle.settlement.status
            attempt = 0 if settle.info is None else settle.info.number
            extra = about("lost", settle.task_id, attempt, settle.token or 0)
            level = logging.ERROR if then == "failed" else logging.WARNING
            log.log(level, "task %r lost its worker; now %s", settle.task_id, then, extra=extra)
    return number


def _settle(lost: Found) -> Settle | None:
    settlement = decide(lost.loss, lost.task_id, lost.counts, lost.policy, lost.policy.backoff())
    return None if settlement is None else lost.settle(settlement)
