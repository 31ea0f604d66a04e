"""One claimed task: admit → attempt → decide → settle. Read this first."""

import asyncio
import logging
import time
from typing import TypeGuard

import anyio
import attrs

from maas_backoff.attempt import outcome_of, run_attempt
from maas_backoff.domain.backoff import BackoffCallable
from maas_backoff.domain.context import current
from maas_backoff.domain.outcome import (
    Failed,
    FailedOnGpu,
    Outcome,
    Succeeded,
    Unstarted,
    code_of,
    cut,
    outcome_of_value,
)
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.settlement import Settlement, decide
from maas_backoff.domain.task import TaskError
from maas_backoff.domain.tracing import Tracing
from maas_backoff.executors.base import ExceptionHandler, Executor
from maas_backoff.executors.call import call_here
from maas_backoff.gate.gate import Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.leased import Attempt
from maas_backoff.running import Running

log = logging.getLogger("maas_backoff.worker")


@attrs.frozen
class Work:
    """What a slot does, over and over."""

    running: Running
    executor: Executor
    custom_backoff: BackoffCallable | None
    exception_handler: ExceptionHandler | None
    max_payload_bytes: int
    gate: Gate | None = None
    tracing: Tracing | None = None

    async def fill_slot(self) -> None:
        """Work on one task after the other."""
        while True:
            attempt = await self.running.inbox.take()
            # To enter a scope costs more than the rest of a short task: one serves until it has stopped an attempt.
            with self.running.new_scope() as scope:
                while await self._settles(attempt, scope):
                    attempt = await self.running.inbox.take()
            await self._conclude(attempt)

    async def _settles(self, attempt: Attempt, scope: anyio.CancelScope) -> bool:
        """Run an attempt in a slot's scope, and settle it unless it was stopped, or the exception handler has a say."""
        outcome = attempt.outcome = self._admit(attempt)
        if outcome is None:
            attempt.scope = scope
            current.set(attempt.task)
            outcome = attempt.outcome = await run_attempt(self.executor, attempt, self.tracing)
        if attempt.reason is not None or self._needs_exception_handler(outcome):
            return False
        self.running.settle(attempt, self._decide(attempt, outcome))
        return True

    async def _conclude(self, attempt: Attempt) -> None:
        """Settle an attempt that was stopped, or that the exception handler has a say in."""
        outcome = outcome_of(attempt)
        if self._needs_exception_handler(outcome):
            outcome = await self._handle_exception(attempt, outcome)
        self.running.settle(attempt, self._decide(attempt, outcome))
        await self._wait_for_thread(attempt)

    def _decide(self, attempt: Attempt, outcome: Outcome) -> Settlement | None:
        claimed = attempt.claimed
        if attempt.grant is not None and self.gate is not None:
            outcome = self._as_on_gpu(attempt, attempt.grant, outcome, self.gate)
        if isinstance(outcome, Failed) and len(outcome.params or "") > self.max_payload_bytes:
            outcome = Failed(TaskError("not_serializable", "params of a Retry: too large"), permanent=True)
        backoff = claimed.policy.backoff(self.custom_backoff)
        return decide(outcome, attempt.task.task_id, claimed.counts, claimed.policy, backoff)

    def _as_on_gpu(self, attempt: Attempt, grant: Grant, outcome: Outcome, gate: Gate) -> Outcome:
        """Tell what a failure has to do with the GPU it happened on, and the gate what is to be thought of that GPU."""
        if isinstance(attempt.outcome, Succeeded):
            gate.succeeded(grant)
        if not isinstance(outcome, Failed):
            return outcome
        trouble = gate.devices.trouble_of(grant.uuid)
        if not outcome.fault and outcome.raised and trouble:
            outcome = attrs.evolve(outcome, fault="gpu")
        if not outcome.fault:
            return outcome
        if outcome.fault == "gpu" and not trouble:
            gate.failed(grant, attempt.task.task_id, str(outcome.error))
        return FailedOnGpu(outcome, grant.uuid, grant.demand, grant.peak, gate.most)

    def _admit(self, attempt: Attempt) -> Outcome | None:
        """Return the outcome of a task that may not start; None: it may."""
        if attempt.claimed.defect is not None:
            return Failed(TaskError("corrupt", attempt.claimed.defect), permanent=True)
        late = time.monotonic() >= attempt.start_before
        if self.running.closing or late or attempt.reason is not None:
            return Unstarted()
        return None

    def _needs_exception_handler(self, outcome: Outcome) -> TypeGuard[Failed]:
        return self.exception_handler is not None and isinstance(outcome, Failed) and outcome.raised

    async def _handle_exception(self, attempt: Attempt, failed: Failed) -> Outcome:
        """Let the user's exception handler replace an exception, a timeout or a crash, or give it code and message."""
        assert self.exception_handler is not None
        attempt.extend()
        task = attrs.evolve(attempt.task, error=failed.error)
        value: object = None
        with anyio.move_on_after(attempt.timeout) as scope:
            try:
                value = await call_here(self.exception_handler, task)
            except asyncio.CancelledError:
                raise
            except BaseException:
                log.exception("the exception handler failed for task %r", task.task_id)
        if scope.cancelled_caught:
            log.error("the exception handler took longer than %g s for task %r", attempt.timeout, task.task_id)
        return self._replaced(failed, value)

    def _replaced(self, failed: Failed, value: object) -> Outcome:
        if not isinstance(value, ResultEntity):
            return failed
        if not value.success:
            return attrs.evolve(failed, error=TaskError(failed.error.type, cut(value.message), code_of(value)))
        fallback = outcome_of_value(value, self.max_payload_bytes)
        return fallback if isinstance(fallback, Succeeded) else failed

    async def _wait_for_thread(self, attempt: Attempt) -> None:
        """Keep the slot while a thread that could not be stopped goes on."""
        if attempt.lingering is not None and not attempt.lingering.is_set():
            log.warning(
                "the thread of task %r goes on after its attempt ended; its slot stays taken", attempt.task.task_id
            )
            self.running.linger(1)
            await attempt.lingering.wait()
            self.running.linger(-1)
            if attempt.grant is not None:
                self.running.give_back(attempt.grant)
