"""The exception handler of the user, which may replace a failure."""

import asyncio
import time
from typing import TypeGuard

import anyio
import attrs

from maas_backoff.common.guard import Log, contained, log_for
from maas_backoff.domain.context import current
from maas_backoff.domain.handler_outcome import code_of, outcome_of_value
from maas_backoff.domain.outcome import CancelReason, Failed, Outcome, Succeeded
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.shorten import cut
from maas_backoff.domain.task import TaskError
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.executors.base import ExceptionHandler
from maas_backoff.worker.executors.call import call_here

log: Log = log_for("worker")


@attrs.frozen
class ExceptionHandling:
    """Lets the exception handler replace an exception, a timeout or a crash, or give it a code and a message."""

    handler: ExceptionHandler | None
    max_payload_bytes: int

    def concerns(self, outcome: Outcome) -> TypeGuard[Failed]:
        """Return whether there is an exception handler, and whether it is to be called for this outcome."""
        return self.handler is not None and isinstance(outcome, Failed) and outcome.raised

    async def outcome(self, attempt: Attempt, failed: Failed) -> Outcome:
        """Call the exception handler, and return the outcome of the attempt. Never raises, also if cancelled."""
        assert self.handler is not None
        attempt.extend_time()
        timeout = min(attempt.timeout, attempt.ends_by - time.monotonic())
        task = attrs.evolve(attempt.task, error=failed.error)
        current.set(task)
        value: object = None
        scope = anyio.CancelScope(deadline=anyio.current_time() + timeout)
        late = False
        try:
            with scope:
                value = await call_here(self.handler, task)
        except BaseException as error:
            # The loop of timeouts cancels the call at the same moment; the scope does not catch a cancel by both.
            is_cancel = isinstance(error, asyncio.CancelledError)
            late = is_cancel and (scope.cancel_called or attempt.reason is CancelReason.TIMEOUT)
            if not late:
                log.exception("the exception handler failed for task %r", task.task_id)
        if late or scope.cancelled_caught:
            log.error("the exception handler took longer than %g s for task %r", timeout, task.task_id)
        return contained(lambda: self._replaced(failed, value), lambda _: failed)

    def _replaced(self, failed: Failed, value: object) -> Outcome:
        if not isinstance(value, ResultEntity):
            return failed
        if not value.success:
            return attrs.evolve(failed, error=TaskError(failed.error.type, cut(value.message), code_of(value.code)))
        fallback = outcome_of_value(value, self.max_payload_bytes)
        return fallback if isinstance(fallback, Succeeded) else failed
