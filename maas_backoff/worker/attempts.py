"""The beginning and the end of each attempt in this process."""

import random
import time
from collections.abc import Sequence

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.lane import Lane, closing
from maas_backoff.domain.outcome import Snoozed
from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.tally import Tally
from maas_backoff.errors import StorageError
from maas_backoff.gate.grant import Grant
from maas_backoff.store.batch import Claimed, Settle
from maas_backoff.worker.attempt import COST, Attempt
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.emissions import Emissions
from maas_backoff.worker.lease import Lease
from maas_backoff.worker.notes import Notes
from maas_backoff.worker.outbox import Outbox
from maas_backoff.worker.shared_slot import SharedSlot
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.wake_ups import WakeUps

log: Log = log_for("worker")

SPREAD = 1.1
"""The longest time for which a limit is closed, as a multiple of the time that the handler asked for."""


class Attempts:
    """Gives claimed tasks their slots, and puts the settlements of ended attempts into the outbox."""

    def __init__(
        self,
        context: WorkerContext,
        slots: Slots,
        outbox: Outbox,
        wake_ups: WakeUps,
        deadlines: Deadlines,
        tally: Tally,
    ) -> None:
        self.emissions: Emissions = Emissions(slots, context.max_stream_bytes, self._put)
        self.notes: Notes = Notes(slots, self.emissions)
        self._context = context
        self._exec_timeouts = context.kinds.exec_timeouts
        self._slots = slots
        self._outbox = outbox
        self._wake_ups = wake_ups
        self._deadlines = deadlines
        self._tally = tally
        # Made once: a bound method for each attempt would be one object more for the garbage collector.
        self._watch = deadlines.watch

    def leased(self, sent: float) -> Lease:
        """Return the lease of the tasks whose claim was sent at `sent`, by time.monotonic().

        If attempts are stopped with their lease, watch the lease.
        """
        lease = Lease.since(sent, self._context.lease)
        if self._deadlines.by_lease:
            self._deadlines.watch(lease.until)
        return lease

    def claimed(
        self, claimed: Claimed, lease: Lease, grant: Grant | None = None, batch: SharedSlot | None = None
    ) -> Attempt:
        """Give a claimed task a slot, and its grant on a GPU; return the attempt, which has not begun.

        The attempts of a `batch` share both.
        """
        timeout = claimed.exec_timeout or self._exec_timeouts.get(claimed.task.kind) or self._context.exec_timeout
        attempt = Attempt(claimed, lease, timeout, self._watch, self.notes, grant)
        if batch is not None:
            attempt.batch = batch
        self._slots.take(attempt)
        self._tally.count_wait(claimed.waited_ms)
        return attempt

    def batch_claimed(self, claimed: Sequence[Claimed]) -> None:
        """Count a claimed batch."""
        self._tally.count_batch(len(claimed), max(one.waited_ms for one in claimed))

    async def read_earlier(self, attempt: Attempt) -> bool:
        """Read the parts that earlier attempts have emitted. Return False if the handler may not begin any more."""
        try:
            attempt.earlier = await self._context.store.streams.all_parts(attempt.task.task_id)
        except StorageError as error:
            log.warning("task %r: its stream cannot be read; it goes back: %s", attempt.task.task_id, error)
            return False
        return not self._slots.closing and time.monotonic() < attempt.start_before

    def end(self, attempt: Attempt, settlement: Settlement | None) -> None:
        """Put the settlement of an attempt into the outbox, once. None: its lease is lost, nothing may be written."""
        if attempt.over:
            return
        attempt.over = True
        self.notes.drop(attempt)
        if attempt.batch is not None:
            attempt.batch.running -= 1
        is_last = attempt.batch is None or not attempt.batch.running
        if attempt.grant is not None and is_last and (attempt.lingering is None or attempt.lingering.is_set()):
            self.give_back(attempt.grant)
        if settlement is None:
            log.warning(
                "task %r: attempt %d was stopped: its lease is lost",
                *(attempt.task.task_id, attempt.task.attempt),
                extra=attempt.about("too_late"),
            )
            self.emissions.drop(attempt)
            self._slots.release([attempt])
            self._wake_ups.to_send.set()
            return
        self._count(attempt)
        settle = self._settle(attempt, settlement)
        # A reader that sees the end of a task must find all of its parts.
        if attempt.emission is None or not self.emissions.hold(attempt, settle):
            self._put(settle, attempt)

    def _put(self, settle: Settle, attempt: Attempt) -> None:
        if attempt.emission is not None:
            settle.parts = attempt.emission.stored
        self._outbox.put(settle, attempt)
        self._wake_ups.to_send.set()

    def _settle(self, attempt: Attempt, settlement: Settlement) -> Settle:
        claimed = attempt.claimed
        info = attempt.info(self._context.name) if settlement.error is not None else None
        task_id, progress, overrides = attempt.task.task_id, attempt.progress, claimed.overrides
        settle = Settle(task_id, "lease", attempt.token, settlement, claimed.counts, info, progress, overrides)
        if attempt.used is not None or type(attempt.outcome) is Snoozed:
            settle.used = _used(attempt)
        return settle

    def _count(self, attempt: Attempt) -> None:
        if attempt.started_at is not None:
            attempt.ran = time.monotonic() - attempt.started_at
            self._tally.count_run(attempt.ran)
        if attempt.grant is not None and attempt.grant.child.peak:
            self._tally.count_gpu_memory(attempt.grant.child.peak, attempt.grant.demand.memory)

    def give_back(self, grant: Grant) -> None:
        """Give back the grant of an attempt that has ended."""
        grant.attempt_ended()
        self._wake_ups.gpu.set()


def _used(attempt: Attempt) -> Sequence[str]:
    """Return the lines of a settle about limits: what the attempt has used, and the limits that it closes."""
    task, outcome, lines = attempt.task, attempt.outcome, list[str]()
    if attempt.used is not None:
        units = {**attempt.used}
        cost = units.pop(COST, None)
        lines.append(f"u {Lane(task.tenant, task.cost, task.limits).changed(cost, units)}")
    if isinstance(outcome, Snoozed) and outcome.closes:
        # Queues that share an upstream must not come back in one moment.
        spread = random.uniform(1, SPREAD)  # noqa: S311 - no secret
        ms = {name: seconds * 1000 * spread for name, seconds in closing(outcome.closes, task.limits).items()}
        lines += [f"c {name} {one:.0f}" for name, one in ms.items()]
    return lines
