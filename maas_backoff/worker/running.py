"""What runs in this process: its slots, the attempts that hold leases, and what is to be sent for them.

No I/O, and no `await` between looking at the state and changing it.
"""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Sequence

from maas_backoff.common.guard import log_for
from maas_backoff.domain.history import Tally
from maas_backoff.domain.jsontext import size_of
from maas_backoff.domain.outcome import CancelReason
from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.task import TaskError, TaskStatus
from maas_backoff.gate.grant import Grant
from maas_backoff.store.frame import ACCEPTED, Answer, Claimed, Frame, Settle, settle_args
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.setback import THREAD, Setback
from maas_backoff.worker.suspects import Suspects

FRAME_LIMIT = 100
"""Claims, and settles, per frame: a script call of 1 to 2 ms."""

SLEEPING_CLAIMS = 2
"""One would always look like the first of many."""

FRAME_BYTES = 4 * 1_048_576
"""Results and new params per frame, about; a frame of a hundred large ones would hold up the server."""

log = log_for("worker")


class Running:
    """The slots of this process, and the frames that fill and empty them.

    An attempt keeps its slot until its settlement is answered; a frame may claim for the slots it frees itself.
    """

    def __init__(
        self,
        worker: str,
        concurrency: int,
        batch_size: int,
        setback: Setback | None = None,
        *,
        in_children: bool = False,
    ) -> None:
        """`setback` tells whether children can be started, where handlers run in children: `in_children`."""
        self.worker = worker
        self.concurrency = concurrency
        self.attempts: dict[int, Attempt] = {}
        self.closing = False
        self.hungry = False
        """Whether the queue may hold a task for a free slot."""
        self.wake_at = 0.0
        """When to look again, on the loop's clock, if nothing wakes this worker before."""
        self.pulse = asyncio.Event()
        self.sated = asyncio.Event()
        self.replanned = asyncio.Event()
        self.empty = asyncio.Event()
        self.empty.set()
        self.earlier = asyncio.Event()
        self.next_deadline = math.inf
        self.tally = Tally()
        self.noted: dict[int, Attempt] = {}
        self.noting = asyncio.Event()
        # Half of the slots: the server works on one frame while the handlers of the other run.
        self._batch = min(batch_size, FRAME_LIMIT, -(-concurrency // 2))
        self._outbox: deque[Settle] = deque()
        self._ended: deque[Attempt] = deque()  # whose they are
        self._in_flight: dict[str, tuple[list[Attempt], int]] = {}
        self._requests = itertools.count()
        # Made once: a bound method for each attempt would be one object more for the garbage collector.
        self._watch, self._report = self.watch, self.note_progress
        self._wakes = 0
        self._sending = 0
        self._claiming = 0
        self._busy = 0
        self._plenty = False
        self._asleep: Frame | None = None
        self.spare_slots = 0
        """Slots that are not for the ready tasks: one that needs a GPU comes first."""
        self.gpu_marked = False
        """Whether this worker was woken because a task waits for a GPU."""
        self.listens_for_gpu = False
        """Whether it is to be woken then: not while it looks by itself, as something waits that does not fit."""
        self.hears_gpu = False
        """Whether it sleeps so that it would be."""
        self.gpu_pulse = asyncio.Event()
        """Set when something may have changed for tasks that need a GPU."""
        self.stops_with_lease = False
        """Whether attempts are stopped when their lease is over. Threads cannot be: their outcome may still count."""
        self.lingering = 0
        """Slots whose thread outlives its attempt."""
        self.suspects = Suspects(in_children=in_children)
        self._setback = setback
        if setback is not None:
            setback.changed = self._replan
        self._loop = asyncio.get_running_loop()

    @property
    def free(self) -> int:
        """Slots that are free, or will be by the frames on their way."""
        taken = len(self.attempts) - self._sending + self._claiming + self.lingering
        return max(0, self.concurrency - taken)

    @property
    def claimable(self) -> int:
        """Free slots for tasks that need no GPU; while no child can be started, those that have a child."""
        if self._setback is None or not self._setback.held:
            return self.free
        in_thread = self._setback.kind == THREAD
        busy = sum((in_thread or attempt.grant is None) and not attempt.over for attempt in self.attempts.values())
        return max(0, min(self.free, self._setback.children - busy - self._claiming))

    def may_start_child(self) -> bool:
        """Whether a task that needs a new child may be claimed. While none can be started: one task, now and then."""
        if self._setback is not None and self._setback.kind == THREAD:
            return self.claimable > 0
        return self._setback is None or self._setback.take_try()

    def _replan(self) -> None:
        self.pulse.set()
        self.gpu_pulse.set()

    # Frames

    def next_frame(self, lane: int) -> Frame | None:
        """Return what is to be sent now, or None.

        While the other lane's frame is on its way, only what fills one is sent: the rest would cost the server ten
        times as much for each task, and goes with that lane's next frame. Settles fill a frame; so do claims, if the
        last claim has found as many tasks as it asked for.
        """
        if self._busy and len(self._outbox) < self._batch and not (self._plenty and self._wanted() >= self._batch):
            return None
        settles: list[Settle] = []
        size = 0
        while self._outbox and len(settles) < FRAME_LIMIT and size < FRAME_BYTES:
            settles.append(self._outbox.popleft())
            settlement = settles[-1].settlement
            if settlement.result is not None:
                size += size_of(settlement.result)
            if settlement.params is not None:
                size += size_of(settlement.params)
        self._sending += len(settles)
        claims = min(self._wanted(), self._batch)
        if not settles and not claims:
            return None
        self._busy += 1
        return self._frame(settles, claims, lane)

    def _wanted(self) -> int:
        """Return how many tasks could be claimed, where the queue may hold some."""
        return max(0, self.claimable - self.spare_slots) if self.hungry and not self.closing else 0

    def sleeping_frame(self, lane: int) -> Frame | None:
        """Return a claim that the server runs when a task becomes ready, or None where too few slots are free for one.

        It is a small one: a worker that stands still, or is cut off, would keep so many from all others for a lease.
        Of a larger number the next frames take the rest. One slot at least is left for what comes to be due meanwhile.
        """
        claims = min(self.claimable - 1 - self.spare_slots, SLEEPING_CLAIMS)
        if self.closing or claims < 1:
            return None
        self._asleep = self._frame([], claims, lane, asleep=True)
        return self._asleep

    @property
    def sleeps_on_slots(self) -> bool:
        """Whether a claim that sleeps on the server keeps slots from others."""
        return self._asleep is not None

    def spare(self, slots: int) -> None:
        """Keep so many slots for tasks that need a GPU."""
        if slots < self.spare_slots:
            self.pulse.set()
        self.spare_slots = slots

    def gpu_frame(self, fits: Sequence[str], lane: int) -> Frame | None:
        """Return a claim of tasks that need a GPU, one for each of `fits`, or None where too few slots are free."""
        if self.closing or not fits or self.free < len(fits):
            return None
        return self._frame([], len(fits), lane, tuple(fits))

    def _frame(
        self, settles: list[Settle], claims: int, lane: int, fits: tuple[str, ...] = (), *, asleep: bool = False
    ) -> Frame:
        self._claiming += claims
        if claims:
            self.empty.clear()
        may_claim_suspect, cohort = False, ""
        if claims:
            may_claim_suspect, cohort = self.suspects.ask(self.attempts.values(), gpu=bool(fits), asleep=asleep)
        request_id = f"{next(self._requests)}"
        self._in_flight[request_id] = [self._ended.popleft() for _ in settles], self._wakes
        tally = self.tally.take() if settles else ""
        claim = claims, may_claim_suspect, request_id, lane, tally, fits, cohort, self.suspects.in_children
        try:
            return Frame(tuple(settles), *claim)
        except Exception as error:  # noqa: BLE001 - nothing that one task gives may keep the others from being settled
            log.error("an outcome cannot be sent: %s", type(error).__name__)  # noqa: TRY400 - the traceback may show the outcome
            return Frame(tuple(map(_sendable, settles)), *claim)

    def answered(self, frame: Frame, answer: Answer) -> list[Attempt]:
        """Free the slots of what is settled, and return it, in the order of the frame."""
        settled, wakes = self._in_flight.pop(frame.request_id)
        if frame.tally and not ACCEPTED.intersection(answer.answers):
            self.tally.put_back(frame.tally)  # the server counts it with the first settle that it accepts
        freed = bool(settled)
        if frame is self._asleep:
            self._asleep, freed = None, True
        elif not frame.fits:
            self._busy -= 1
        self._sending -= len(settled)
        self._claiming -= frame.claims
        self.suspects.answered(frame)
        if frame.claims and not frame.fits:
            # What woke this worker while the frame was on its way may have come after the claim.
            self._plenty = answer.hit
            self._feed(hungry=answer.hit or wakes != self._wakes)
        self._forget(settled)
        if freed and self.spare_slots:
            self.gpu_pulse.set()
        self._rest()
        return settled

    def claimed(
        self, claimed: Claimed, *, timeout: float, lease_until: float, margin: float, grant: Grant | None = None
    ) -> Attempt:
        """Give a claimed task a slot, with what it was granted of a GPU; returns the attempt, which has not begun."""
        attempt = Attempt(
            claimed,
            timeout=timeout,
            lease_until=lease_until,
            margin=margin,
            watch=self._watch,
            report=self._report,
            grant=grant,
        )
        self.attempts[attempt.token] = attempt
        self.tally.waits[int(claimed.waited_ms).bit_length()] += 1
        return attempt

    @property
    def unsettled(self) -> bool:
        """Whether an attempt has ended whose settlement is not answered yet."""
        return any(attempt.over for attempt in self.attempts.values())

    # The ends of attempts

    def settle(self, attempt: Attempt, settlement: Settlement | None) -> None:
        """Send what came of an attempt, once; None: nothing may be written, its task is somebody else's."""
        if attempt.over:
            return
        attempt.over = True
        self.noted.pop(attempt.token, None)
        if attempt.grant is not None and (attempt.lingering is None or attempt.lingering.is_set()):
            self.give_back(attempt.grant)
        if settlement is None:
            log.warning(
                "task %r: attempt %d was stopped: its lease is lost",
                attempt.task.task_id,
                attempt.task.attempt,
                extra=attempt.about("too_late"),
            )
            self._forget([attempt])
            self._rest()
            self.pulse.set()
            return
        task_id, counts = attempt.task.task_id, attempt.claimed.counts
        if attempt.started_at is not None:
            self.tally.runs[int((time.monotonic() - attempt.started_at) * 1000).bit_length()] += 1
        if attempt.grant is not None and attempt.grant.peak:
            self.tally.count_gpu_memory(attempt.grant.peak, attempt.grant.demand.memory)
        info = attempt.info(self.worker) if settlement.error is not None else None
        settle = Settle(
            task_id, "lease", attempt.token, settlement, counts, info, attempt.progress, attempt.claimed.overrides
        )
        self._outbox.append(settle)
        self._ended.append(attempt)
        self.pulse.set()

    def give_back(self, grant: Grant) -> None:
        """An attempt has no more use for what it was granted."""
        grant.attempt_ended()
        self.gpu_pulse.set()

    def _forget(self, attempts: Iterable[Attempt]) -> None:
        for attempt in attempts:
            self.attempts.pop(attempt.token, None)
            if attempt.claimed.counts.suspect:
                self.wake()  # the next cohort may come
                if self.listens_for_gpu:  # it was told of no suspect that it could not have claimed
                    self.gpu_marked = True
                    self.gpu_pulse.set()

    def _rest(self) -> None:
        """Say that nothing is left to do, if so: no attempt, and no claim on its way."""
        if not self.attempts and not self._claiming:
            self.empty.set()

    def linger(self, by: int) -> None:
        """Count slots whose thread outlives its attempt."""
        self.lingering += by
        self.pulse.set()

    # Appetite

    def wake(self) -> None:
        """Look for tasks now."""
        self._wakes += 1
        self._feed(hungry=True)

    def plan(self, wake_at: float) -> None:
        """Look for tasks at `wake_at`, on the loop's clock."""
        self.wake_at = wake_at
        self.replanned.set()

    def close(self) -> None:
        """Claim nothing more."""
        self.closing = True
        self.pulse.set()

    def _feed(self, *, hungry: bool) -> None:
        self.hungry = hungry
        if hungry:
            self.sated.clear()
            self.pulse.set()
        else:
            self.sated.set()

    # Timeouts and cancels

    def watch(self, deadline: float) -> None:
        """See to it that the timeout loop wakes by `deadline`."""
        if deadline < self.next_deadline:
            self.next_deadline = deadline
            self.earlier.set()

    def stop_overdue(self, now: float) -> None:
        """Cancel the attempts whose timeout, or whose lease, is over, and find the next such moment."""
        self.next_deadline = math.inf
        for attempt in self.attempts.values():
            if attempt.over or attempt.reason is not None:
                continue
            lease_until = attempt.lease_until if self.stops_with_lease else math.inf
            if attempt.deadline <= now:
                attempt.cancel(CancelReason.TIMEOUT)
            elif lease_until <= now:
                log.warning(
                    "task %r: attempt %d is stopped: its lease could not be renewed",
                    *(attempt.task.task_id, attempt.task.attempt),
                    extra=attempt.about("cut_off"),
                )
                attempt.cancel(CancelReason.CUT_OFF)
            else:
                self.next_deadline = min(self.next_deadline, attempt.deadline, lease_until)

    def cancel(self, tokens: list[int], reason: CancelReason) -> None:
        """Cancel attempts by their tokens; those that ended meanwhile are left alone."""
        for token in tokens:
            attempt = self.attempts.get(token)
            if attempt is not None:
                attempt.cancel(reason)

    def cancel_task(self, task_id: str) -> None:
        """Cancel a task's attempt because a user asked for it."""
        for attempt in list(self.attempts.values()):
            if attempt.task.task_id == task_id:
                attempt.cancel(CancelReason.USER)

    def stuck(self, now: float, grace: float) -> list[Attempt]:
        """Return the attempts that are past their timeout plus `grace` and have not ended."""
        return [a for a in list(self.attempts.values()) if not a.over and a.deadline + grace < now]

    # Progress

    def note_progress(self, token: int, progress: float, message: str | None) -> None:
        """Have an attempt's progress sent soon. May be called from any thread."""
        attempt = self.attempts.get(token)
        if attempt is None or attempt.over:
            return
        last = attempt.progress
        attempt.progress = (progress, message if message is not None or last is None else last[1])
        if token not in self.noted:
            self.noted[token] = attempt
            self._loop.call_soon_threadsafe(self.noting.set)


def _sendable(settle: Settle) -> Settle:
    """Return the settle, or a failure in its place if it cannot be written down."""
    try:
        settle_args([settle])
    except Exception as error:  # noqa: BLE001 - whatever it is
        failed = TaskError("unknown_outcome", f"the outcome cannot be sent: {type(error).__name__}")
        settlement = Settlement(TaskStatus.FAILED, settle.settlement.ttl, error=failed)
        return Settle(settle.task_id, settle.precondition, settle.token, settlement, settle.counts, settle.info)
    return settle
