"""The slots of a worker: the attempts that have one, and how many tasks may be claimed.

There is no I/O here, and no `await` between a check of the state and its change.
"""

import asyncio
from collections.abc import Collection, Generator, Iterable, Sequence
from contextlib import contextmanager

from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.batch_slots import BatchSlots
from maas_backoff.worker.running import RunningAttempts
from maas_backoff.worker.setback import THREAD, Setback
from maas_backoff.worker.wake_ups import WakeUps


class Slots:
    """The places for attempts in this process.

    An attempt keeps its slot until its settlement is answered; the request that settles it may claim for it.
    """

    def __init__(self, concurrency: int, wake_ups: WakeUps, setback: Setback | None = None) -> None:
        """`setback` records failed starts of children or threads; None if handlers need neither."""
        self.concurrency = concurrency
        self.attempts: RunningAttempts = RunningAttempts()
        """The attempts that have a slot, by token."""
        self.given: int = 0
        """How many attempts were given a slot so far."""
        self.closing: bool = False
        self.quiet: bool = False
        """Whether a person has told this worker to claim nothing."""
        self.empty: asyncio.Event = asyncio.Event()
        """Set while there is no attempt, and no claim on its way."""
        self.empty.set()
        self.lingering: int = 0
        """Slots whose thread outlives its attempt."""
        self.spare: int = 0
        """Slots that are kept free for tasks that need a GPU."""
        self.spare_for_batches: int = 0
        """Slots that are kept free for batches."""
        self._rests = 0
        self._batches = BatchSlots()
        self._leaving = 0
        self._coming = 0
        self._wake_ups = wake_ups
        self._setback = setback
        if setback is not None:
            setback.changed = wake_ups.reconsider

    @property
    def free(self) -> int:
        """Slots that are free, or will be by the requests on their way."""
        return max(0, self.concurrency - self._taken)

    @property
    def _taken(self) -> int:
        taken = len(self.attempts) - self._leaving + self._coming + self.lingering
        return taken - self._batches.unneeded(self.concurrency) if self._batches else taken

    @property
    def claimable(self) -> int:
        """Free slots for tasks that need no GPU; while no child can be started, those that have a child."""
        if self._setback is None or not self._setback.held:
            return self.free
        in_thread = self._setback.kind == THREAD
        busy = sum((in_thread or one.grant is None) and not one.over for one in self.attempts.values() if not one.batch)
        busy += self._batches.busy
        return max(0, min(self.free, self._setback.children - busy - self._coming))

    @property
    def claimable_for_batches(self) -> int:
        """Slots for batches that need no GPU: those that are free, and those of batches that are about to end."""
        if self._setback is not None and self._setback.held:
            return max(0, self.claimable - self.spare)
        return max(0, self.concurrency - self._taken + self._batches.ending - self.spare)

    @property
    def wanted(self) -> int:
        """How many tasks could be claimed, where the queue may hold some."""
        if self.shut or not self._wake_ups.has_work:
            return 0
        return max(0, self.claimable - self.spare - self.spare_for_batches)

    @property
    def shut(self) -> bool:
        """Whether nothing may be claimed."""
        return self.closing or self.quiet or self._rests > 0

    @property
    def unsettled(self) -> bool:
        """Whether an attempt has ended whose settlement is not answered yet."""
        return any(attempt.over for attempt in self.attempts.values())

    def may_start_child(self) -> bool:
        """Whether a task that needs a new child may be claimed. While none can be started: one task, now and then."""
        if self._setback is not None and self._setback.kind == THREAD:
            return self.claimable > 0
        return self._setback is None or self._setback.take_try()

    def keep_for_gpu(self, slots: int) -> None:
        """Keep so many slots for tasks that need a GPU."""
        if slots < self.spare:
            self._wake_ups.to_send.set()
            self._wake_ups.batch.set()
        self.spare = slots

    def keep_for_batches(self, slots: int) -> None:
        """Keep so many slots for batches."""
        if slots < self.spare_for_batches:
            self._wake_ups.to_send.set()
        self.spare_for_batches = slots

    def settles_sent(self, attempts: Sequence[Attempt]) -> None:
        """Count the attempts that a request settles: their slots will be free. A batch has one slot."""
        self._leaving += len(attempts)
        if self._batches:
            self._batches.sent(attempts, 1)
            self._start_waiting()

    def batch_ends(self) -> None:
        """Note that the call of a batch has ended, or is about to end: another batch may start, or be claimed."""
        self._start_waiting()
        self._wake_ups.batch.set()

    def must_wait(self) -> bool:
        """Return whether a batch that was just claimed must wait: its slot is that of a batch that is about to end."""
        return self._taken - self._coming >= self.concurrency and self._batches.take_ending()

    def _start_waiting(self) -> None:
        """Start the batches that wait, as far as slots are free."""
        while self._batches and (waiting := self._batches.waiting):
            if self.closing:
                waiting[0].hand_back()
            elif self._taken - self._coming - len(waiting) < self.concurrency:
                waiting[0].start()
            else:
                return

    def claims_sent(self, number: int) -> None:
        """Count the tasks that a request claims: they will take slots."""
        self._coming += number
        self.empty.clear()

    def answered(self, settled: Sequence[Attempt], claims: int, kept: Collection[int] = ()) -> None:
        """Free the slots of the attempts that a request has settled. The tasks that it has claimed have theirs.

        `kept` has the tokens of attempts that must be settled again: they keep their slots.
        """
        self._leaving -= len(settled)
        self._coming -= claims
        if self._batches:
            self._batches.sent(settled, -1)
        self.release([attempt for attempt in settled if attempt.token not in kept] if kept else settled)

    def take(self, attempt: Attempt) -> None:
        """Give an attempt a slot, or the one of its batch."""
        self.attempts[attempt.token] = attempt
        self.given += 1
        if attempt.batch is not None:
            self._batches.take(attempt.batch)

    def release(self, attempts: Iterable[Attempt]) -> None:
        """Free the slots of attempts that have ended for good."""
        for attempt in attempts:
            found = self.attempts.pop(attempt.token, None)
            if found is not None and found.batch is not None:
                self._batches.release(found.batch)
            if attempt.claimed.counts.suspect:
                self._wake_ups.suspect_ended()
        self.batch_ends()
        if not self.attempts and not self._coming:
            self.empty.set()

    def linger(self, by: int) -> None:
        """Count slots whose thread outlives its attempt."""
        self.lingering += by
        self._wake_ups.to_send.set()
        self.batch_ends()

    def set_quiet(self, quiet: bool) -> None:
        """Claim nothing while `quiet`. Running attempts go on."""
        self.quiet = quiet
        self._wake_ups.reconsider()
        if not quiet:
            self._wake_ups.wake()

    @contextmanager
    def rest(self) -> Generator[None]:
        """Send no claim meanwhile. Claims that are on their way may still find tasks."""
        self._rests += 1
        try:
            yield
        finally:
            self._rests -= 1
            self._wake_ups.reconsider()
            self._wake_ups.wake()

    def close(self) -> None:
        """Claim nothing more."""
        self.closing = True
        self._start_waiting()
        self._wake_ups.to_send.set()
