"""The one call of a handler for the attempts of a batch. Each attempt still begins, ends and is cancelled by itself."""

import asyncio
import time
from collections.abc import Sequence

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.batch_outcome import names_no_task
from maas_backoff.domain.emission import Part
from maas_backoff.domain.handler_outcome import outcome_of_error
from maas_backoff.domain.outcome import (
    Cancelled,
    CancelReason,
    Failed,
    HandlerOutcome,
    Outcome,
    Succeeded,
    Unstarted,
    timed_out,
)
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.tracing import AttemptSpan, WorkerTracing
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.batch_learning import BatchLearning
from maas_backoff.worker.cancelling import cancel_call
from maas_backoff.worker.executors.base import Call, Executor, GpuGrant
from maas_backoff.worker.executors.call import own_task
from maas_backoff.worker.shared_slot import SharedSlot
from maas_backoff.worker.slots import Slots

log: Log = log_for("worker")

LONGEST_HOLD = 0.25
"""The longest time in seconds for which a batch that was claimed ahead waits for its slot. Then its tasks go back."""


class BatchCall(SharedSlot):
    """Calls the handler when all attempts of the batch have arrived, and gives each attempt its outcome.

    An attempt that is stopped leaves the batch, and the others go on. The last one to leave stops the call.
    For executors, this is a `Call` with members.
    """

    def __init__(
        self, executor: Executor, learning: BatchLearning, slots: Slots, tracing: WorkerTracing | None = None
    ) -> None:
        # With their types again: else other type checkers might infer others for this class.
        self.has_ended: bool = False
        self.is_ending: bool = False
        self.is_waiting: bool = False
        self.members: Sequence[Call] = ()
        """The attempts for which the handler is called."""
        self.place_of: dict[int, int] = {}
        """The places of the attempts by their tokens, once the handler is called."""
        self.failed: HandlerOutcome | None = None
        """The failure of the whole batch that names no task."""
        self.span: AttemptSpan | None = None
        """The span of the call, which links to the tasks of the attempts."""
        self._tracing = tracing
        self._executor = executor
        self._learning = learning
        self._slots = slots
        self._timer: asyncio.TimerHandle | None = None
        """The end of the wait for a slot; then the moment at which the next batch may be claimed."""
        self._expected: set[int] = set()
        self._waiting: dict[int, tuple[Attempt, asyncio.Future[HandlerOutcome]]] = {}
        self._call: asyncio.Task[None] | None = None
        self._is_logged = False
        self._began = time.monotonic()
        self._ran: float = 0
        """The seconds for which the handler has run, once it has ended."""
        self._last: Attempt | None = None
        """The attempt that stops the call."""

    # For the attempts

    def expect(self, tokens: Sequence[int]) -> None:
        """Wait for these attempts before the handler is called."""
        self._expected.update(tokens)

    async def run(self, attempt: Attempt) -> HandlerOutcome:
        """Wait for the outcome of an attempt. If it is cancelled, leave the others; the last one stops the call."""
        if self.has_ended:
            return Unstarted()
        outcome: asyncio.Future[HandlerOutcome] = asyncio.get_running_loop().create_future()
        self._waiting[attempt.token] = attempt, outcome
        self.passed(attempt.token)
        try:
            return await outcome
        except asyncio.CancelledError:
            was_waiting = self._waiting.pop(attempt.token, None) is not None
            if was_waiting and not self._waiting and self._call is not None:
                await self._stop(attempt)
            raise

    def passed(self, token: int) -> None:
        """Note that an attempt has arrived, or will not. Call the handler if it was the last one."""
        if token in self._expected:
            self._expected.discard(token)
            if not self.is_waiting:
                self._begin()

    def _begin(self) -> None:
        if self._expected or self.has_ended:  # a batch that was given back does not begin when its last attempt arrives
            return
        self._leave_out_late_ones()
        if self._waiting:
            self.members = [attempt for attempt, _ in self._waiting.values()]
            self.place_of = {token: place for place, token in enumerate(self._waiting)}
            call = own_task(self._run(), "maas-backoff-batch")
            self._call = None if call.done() else call
        else:
            self.has_ended = True

    def _leave_out_late_ones(self) -> None:
        """Give tasks back that have waited for the others, or for the slot, until they may no longer start."""
        now = time.monotonic()
        for token, (attempt, outcome) in list(self._waiting.items()):
            if now >= attempt.start_before:
                del self._waiting[token]
                if not outcome.done():
                    outcome.set_result(Unstarted())

    # A batch that was claimed ahead

    def wait_for_slot(self) -> None:
        """Wait for a slot that is nearly free, before the handler is called."""
        self.is_waiting = True
        self._timer = asyncio.get_running_loop().call_later(LONGEST_HOLD, self.hand_back)

    def start(self) -> None:
        """Call the handler: the slot is free."""
        self._stop_timer()
        self.is_waiting = False
        self._begin()

    def hand_back(self) -> None:
        """Give the tasks back: they have waited too long, or the worker drains."""
        self._stop_timer()
        self.is_waiting, self.has_ended = False, True
        for _, outcome in self._waiting.values():
            if not outcome.done():
                outcome.set_result(Unstarted())

    def _nearly_ended(self) -> None:
        self._timer, self.is_ending = None, True
        self._slots.batch_ends()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _run(self) -> None:
        if self._tracing is not None:
            self.span = self._tracing.batch([attempt.span for attempt, _ in self._waiting.values()])
        try:
            outcomes = await self._executor.run_batch(self)
        except asyncio.CancelledError as error:
            # The last attempt waits for the end of this call. If an attempt waits for its outcome, other code has
            # cancelled the call.
            outcomes = outcome_of_error(error)
        except Exception as error:  # noqa: BLE001 - as for an attempt
            outcomes = outcome_of_error(error)
        self._call = None
        self._stop_timer()
        self.ended()
        if self.span is not None:
            self.span.end(self._outcome_of_call(outcomes))
        if not isinstance(outcomes, list):
            self.failed = outcomes if names_no_task(outcomes) else None
            outcomes = [outcomes] * len(self.place_of)
        if self._waiting:
            device = "" if self.grant is None else self.grant.assignment.uuid
            self._learning.ended(self.task.kind, device, len(self.place_of), self._ran, self.failed)
        for token, (_, outcome) in self._waiting.items():
            if not outcome.done():
                outcome.set_result(outcomes[self.place_of[token]])

    def _outcome_of_call(self, outcomes: Sequence[HandlerOutcome] | HandlerOutcome) -> Outcome | None:
        """Return the outcome of the call for its span; None: the worker has left the attempts to their leases."""
        if self._last is not None:
            reason = self._last.reason
            if reason is CancelReason.TIMEOUT:
                return timed_out(self._last.timeout)
            return None if reason is None else Cancelled(reason)
        return Succeeded("null") if isinstance(outcomes, Sequence) else outcomes

    def blames(self, task: TaskEntity) -> bool:
        """Return whether a task that has failed alone is to blame, and not what all tasks of its kind call."""
        return self._learning.blames(task.kind, task.task_id)

    def log_failure(self, failed: Failed) -> None:
        """Log once that the call has failed."""
        if not self._is_logged:
            self._is_logged = True
            number, kind = len(self.place_of), self.members[0].task.kind
            log.warning(
                "a batch of %d tasks of kind %r failed: %s; they come back in halves", number, kind, failed.error
            )

    async def _stop(self, last: Attempt) -> None:
        call = self._call
        if call is not None:
            self._last = last
            cancel_call(call)
            with anyio.CancelScope(shield=True):
                await asyncio.wait([call])

    # For the executor

    @property
    def task(self) -> TaskEntity:
        """The first task."""
        return self.members[0].task

    @property
    def grant(self) -> GpuGrant | None:
        """The part of a GPU that the batch may use."""
        return self.members[0].grant

    @property
    def start_before(self) -> float:
        """The last moment for all of its tasks to begin. After it, all go back."""
        return min(one.start_before for one in self.members)

    @property
    def earlier(self) -> Sequence[Part]:
        """Nothing: each member has its own."""
        return ()

    def started(self) -> None:
        """Start the time of all attempts."""
        self._began = time.monotonic()
        for attempt, _ in self._waiting.values():
            attempt.started()
        seconds = self._learning.seconds_until_claim(self.task.kind, len(self.members))
        if seconds is not None and self.grant is None:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._nearly_ended)

    def ended(self) -> None:
        """Let the next batch begin: the handler has ended."""
        if self._waiting and not self.has_ended:
            self._stop_timer()
            self._ran = time.monotonic() - self._began
            self.has_ended = True
            self._slots.batch_ends()

    def lingers(self, ended: asyncio.Event) -> None:
        """Let the last attempt keep the slot until its thread has ended."""
        if self._last is not None:
            self._last.lingers(ended)
