"""One attempt: the handler called, and what came of it."""

import asyncio
import logging
import math

import anyio

from maas_backoff.domain.outcome import (
    Cancelled,
    CancelReason,
    Failed,
    HandlerOutcome,
    Outcome,
    Unstarted,
    outcome_of_error,
    timed_out,
)
from maas_backoff.domain.task import TaskError
from maas_backoff.executors.base import Executor
from maas_backoff.leased import Attempt

log = logging.getLogger("maas_backoff.worker")


async def run_attempt(executor: Executor, attempt: Attempt) -> HandlerOutcome:
    """Call the handler of a claimed task and return what came of it, whatever the handler does.

    Raises CancelledError when the attempt, or the whole worker, is being stopped; then the scope around it ends.
    """
    try:
        return await executor.run(attempt)
    except asyncio.CancelledError as error:
        if attempt.reason is not None or anyio.current_effective_deadline() == -math.inf:
            raise
        # The handler cancelled its own task, or awaited a cancelled one. Let out, it would end the slot silently.
        _uncancel()
        return outcome_of_error(error)
    except Exception:
        # Nothing that one task brings about may end the worker of all others.
        log.exception("the outcome of task %r could not be told", attempt.task.task_id)
        return Failed(TaskError("unknown_outcome", "see the worker's log"), raised=True)


def outcome_of(attempt: Attempt) -> Outcome:
    """Return the outcome of an attempt that has ended.

    A handler that finished although it was being stopped has finished. One that turned its cancel into another error
    was stopped, with that error as the cause.
    """
    outcome = attempt.outcome
    if attempt.reason is None:
        assert outcome is not None
        return outcome
    if outcome is None or isinstance(outcome, Failed | Unstarted):
        return _stopped(attempt, attempt.reason, outcome)
    return outcome


def _stopped(attempt: Attempt, reason: CancelReason, cause: Failed | Unstarted | None) -> Outcome:
    if reason is CancelReason.TIMEOUT:
        return timed_out(attempt.timeout, cause.traceback if isinstance(cause, Failed) else "")
    return Cancelled(reason)


def _uncancel() -> None:
    task = asyncio.current_task()
    assert task is not None
    while task.cancelling():
        task.uncancel()
