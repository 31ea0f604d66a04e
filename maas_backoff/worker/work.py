"""One claimed task: admit → attempt → decide → settle. Read this first."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any

import attrs

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.backoff import CustomBackoff
from maas_backoff.domain.context import current
from maas_backoff.domain.fault import may_come_back, other_processes
from maas_backoff.domain.handler_outcome import outcome_of_error
from maas_backoff.domain.outcome import CancelReason, Failed, FailedOnGpu, Outcome, Succeeded, Unstarted
from maas_backoff.domain.settlement import Settlement, decide
from maas_backoff.domain.task import TaskError
from maas_backoff.domain.tracing import WorkerTracing
from maas_backoff.gate.gate import Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.store.batch import Claimed
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.attempts import Attempts
from maas_backoff.worker.batch_call import BatchCall
from maas_backoff.worker.batch_learning import BatchLearning
from maas_backoff.worker.exception_handling import ExceptionHandling
from maas_backoff.worker.executors.base import Executor
from maas_backoff.worker.executors.call import own_task
from maas_backoff.worker.outcomes import outcome_alone, outcome_in_batch, outcome_of, outcome_of_cancel, run_traced
from maas_backoff.worker.slots import Slots

log: Log = log_for("worker")


@attrs.frozen
class Work:
    """Takes each claimed task from its claim to its settlement.

    Each call of users' code has its own asyncio task and context: one for the handler, one for the exception handler.
    A cancel, a context variable or a session that one call leaves behind has no effect on the next call.
    """

    attempts: Attempts
    slots: Slots
    executor: Executor
    custom_backoff: CustomBackoff | None
    exceptions: ExceptionHandling
    max_payload_bytes: int
    gate: Gate
    learning: BatchLearning
    tracing: WorkerTracing | None = None
    _following: set[asyncio.Task[None]] = attrs.field(factory=set[asyncio.Task[None]], init=False)
    """Asyncio tasks that run after an attempt: exception handlers, and waits for threads."""

    def begin(self, claimed: Iterable[Claimed], sent: float, grants: Sequence[Grant] = ()) -> None:
        """Begin an attempt of each claimed task. `sent` is when the claim was sent, by time.monotonic(). Never raises.

        `grants` are the reservations on GPUs for which the tasks were claimed.
        """
        lease = self.attempts.leased(sent)
        for one in claimed:
            self._begin(self.attempts.claimed(one, lease, grants[one.fit] if grants else None))

    def begin_batch(self, claimed: Sequence[Claimed], sent: float, grants: Sequence[Grant] = ()) -> None:
        """Begin an attempt of each task of a batch, with one call of the handler; else as `begin`."""
        lease, batch = self.attempts.leased(sent), BatchCall(self.executor, self.learning, self.slots, self.tracing)
        if not grants and self.slots.must_wait():
            batch.wait_for_slot()
        attempts = [
            self.attempts.claimed(one, lease, grants[one.fit] if grants else None, batch=batch) for one in claimed
        ]
        self.attempts.batch_claimed(claimed)
        batch.expect([attempt.token for attempt in attempts])
        for attempt in attempts:
            self._begin(attempt)

    def _begin(self, attempt: Attempt) -> None:
        """Begin an attempt, and return at its first wait, or before it begins."""
        call = own_task(self._attempt(attempt), "maas-backoff-attempt")
        # An eager asyncio task may have ended by now; then `attempt.call` is that of the exception handler.
        if attempt.call is None:
            attempt.call = call

    def sweep(self) -> None:
        """Settle the attempts whose asyncio task was cancelled by other code before it could begin."""
        for attempt in list(self.slots.attempts.values()):
            if not attempt.over and attempt.call is not None and attempt.call.done():
                attempt.outcome = attempt.outcome or Unstarted()
                if isinstance(attempt.batch, BatchCall):
                    attempt.batch.passed(attempt.token)
                self._settle(attempt, outcome_of(attempt))

    async def stop(self) -> None:
        """Cancel all running attempts, settle none of them, and wait up to 1 s for their end."""
        calls = [*self._following, *(attempt.abandon() for attempt in list(self.slots.attempts.values()))]
        left = [call for call in calls if call is not None and not call.done()]
        for call in left:
            call.cancel()
        if left:
            await asyncio.wait(left, timeout=1)

    async def _attempt(self, attempt: Attempt) -> None:
        attempt.began = True
        current.set(attempt.task)
        outcome = self._admit(attempt)
        if outcome is None:
            try:
                if attempt.claimed.has_stream:
                    is_read = await self.attempts.read_earlier(attempt)
                    outcome = self._admit(attempt) if is_read else Unstarted()
                if outcome is None:
                    batch = attempt.batch
                    caller = batch if isinstance(batch, BatchCall) else self.executor
                    if self.tracing is None:
                        outcome = await caller.run(attempt)
                    else:
                        outcome = await run_traced(caller, attempt, self.tracing)
            except asyncio.CancelledError as error:
                outcome = outcome_of_cancel(attempt, error)
            except Exception as error:  # noqa: BLE001 - an error of the executor must not end the worker
                outcome = outcome_of_error(error)
        if isinstance(attempt.batch, BatchCall):
            attempt.batch.passed(attempt.token)
        attempt.outcome = outcome
        self._conclude(attempt)

    def _admit(self, attempt: Attempt) -> Outcome | None:
        """Return the outcome of a task that may not start; None if it may."""
        if attempt.claimed.defect is not None:
            return Failed(TaskError("corrupt", attempt.claimed.defect), permanent=True)
        late = time.monotonic() >= attempt.start_before
        if self.slots.closing or late or attempt.reason is not None:
            return Unstarted()
        return None

    def _conclude(self, attempt: Attempt) -> None:
        """Settle an attempt that has ended, after a call of the exception handler if it needs one."""
        outcome = outcome_of(attempt)
        if isinstance(attempt.batch, BatchCall):
            outcome = outcome_in_batch(attempt, attempt.batch, outcome)
        if self.exceptions.concerns(outcome):
            attempt.call = self._follow(self._ask_exception_handler(attempt, outcome))
        else:
            self._settle(attempt, outcome)

    def _settle(self, attempt: Attempt, outcome: Outcome) -> None:
        try:
            settlement = self._decide(attempt, outcome)
        except Exception as error:  # noqa: BLE001 - one task must not end the worker of all others
            settlement = self._undecided(attempt, error)
        self.attempts.end(attempt, settlement)
        if attempt.lingering is not None and not attempt.lingering.is_set():
            self._follow(self._wait_for_thread(attempt, attempt.lingering))

    def _decide(self, attempt: Attempt, outcome: Outcome) -> Settlement | None:
        claimed = attempt.claimed
        if not isinstance(outcome, Succeeded) and attempt.reason is CancelReason.LEASE_LOST:
            return None  # the lease was lost while the exception handler ran
        if isinstance(outcome, Failed):
            outcome = outcome.limited(self.max_payload_bytes)
        if attempt.grant is not None:
            outcome = self._as_on_gpu(attempt, attempt.grant, outcome)
        if isinstance(attempt.batch, BatchCall):
            outcome = outcome_alone(attempt, attempt.batch, outcome)
        backoff = claimed.policy.backoff(self.custom_backoff)
        return decide(outcome, attempt.task.task_id, claimed.counts, claimed.policy, backoff)

    def _undecided(self, attempt: Attempt, error: BaseException) -> Settlement | None:
        """Return the settlement of an attempt whose settlement could not be computed because of `error`."""
        claimed = attempt.claimed
        log.error("the outcome of task %r cannot be settled", attempt.task.task_id, exc_info=error)
        failed = Failed(
            TaskError("unknown_outcome", f"the outcome cannot be settled: {type(error).__name__}"), raised=True
        )
        return decide(failed, attempt.task.task_id, claimed.counts, claimed.policy, claimed.policy.backoff())

    def _as_on_gpu(self, attempt: Attempt, grant: Grant, outcome: Outcome) -> Outcome:
        """Return the outcome with the GPU's part in a failure, and report the GPU's success or failure to the gate."""
        if isinstance(attempt.outcome, Succeeded):
            self.gate.faults.succeeded(grant.uuid)
        if not isinstance(outcome, Failed):
            return outcome
        trouble = self.gate.devices.trouble_of(grant.uuid)
        if not outcome.fault and outcome.raised and trouble:
            outcome = attrs.evolve(outcome, fault="gpu")
        if not may_come_back(outcome.fault):
            return outcome
        if outcome.fault == "gpu" and not trouble:
            self.gate.faults.failed(grant.uuid, attempt.task.task_id, str(outcome.error))
        crowded = self.gate.overview.is_crowded(grant, other_processes(outcome.error.message))
        return FailedOnGpu(outcome, grant.uuid, grant.demand, grant.child.peak, self.gate.overview.most, crowded)

    async def _ask_exception_handler(self, attempt: Attempt, failed: Failed) -> None:
        """Settle a failed attempt with the outcome that the exception handler leaves, in an asyncio task of its own."""
        self._settle(attempt, await self.exceptions.outcome(attempt, failed))

    # Threads that cannot be stopped

    async def _wait_for_thread(self, attempt: Attempt, ended: asyncio.Event) -> None:
        """Keep the slot until the thread, which could not be stopped, has ended."""
        log.warning("the thread of task %r goes on after its attempt ended; its slot stays taken", attempt.task.task_id)
        self.slots.linger(1)
        while not (ended.is_set() or self.slots.closing):
            with suppress(asyncio.CancelledError):  # other code may cancel this wait, but the thread still runs
                await ended.wait()
        self.slots.linger(-1)
        if attempt.grant is not None:
            self.attempts.give_back(attempt.grant)

    def _follow(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = own_task(coroutine, "maas-backoff-attempt-end")
        if not task.done():
            self._following.add(task)
            task.add_done_callback(self._following.discard)
        return task
