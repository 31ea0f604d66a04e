"""One attempt: the handler called inside its scope, and what came of it."""

import asyncio
import logging
import math

import anyio

from maas_backoff.domain.outcome import Cancelled, CancelReason, Failed, Outcome, outcome_of_error, timed_out
from maas_backoff.domain.task import TaskError
from maas_backoff.executors.base import Executor
from maas_backoff.running import Attempt

log = logging.getLogger("maas_backoff.worker")


async def run_attempt(executor: Executor, attempt: Attempt) -> Outcome:
    """Call the handler of a claimed task and return the outcome, whatever the handler does.

    A handler that finished although it was being stopped has finished. One that turned its cancel into another error
    was stopped, with that error as the cause.
    """
    outcome: Outcome | None = None
    with attempt.scope as scope:
        try:
            outcome = await executor.run(attempt)
        except asyncio.CancelledError as error:
            if scope.cancel_called or anyio.current_effective_deadline() == -math.inf:
                raise
            # The handler cancelled its own task, or awaited a cancelled one. Let out, it would end all slots silently.
            _uncancel()
            outcome = outcome_of_error(error)
        except Exception:
            # Nothing that one task brings about may end the worker of all others.
            log.exception("the outcome of task %r could not be told", attempt.task.task_id)
            outcome = Failed(TaskError("unknown_outcome", "see the worker's log"), raised=True)
    if attempt.reason is None:
        assert outcome is not None
        return outcome
    if outcome is None or isinstance(outcome, Failed):
        return _stopped(attempt, attempt.reason, outcome)
    return outcome


def _stopped(attempt: Attempt, reason: CancelReason, cause: Failed | None) -> Outcome:
    if reason is CancelReason.TIMEOUT:
        return timed_out(attempt.timeout, "" if cause is None else cause.traceback)
    return Cancelled(reason)


def _uncancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    while task.cancelling():
        task.uncancel()
