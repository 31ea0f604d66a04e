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
from maas_backoff.domain.tracing import Tracing
from maas_backoff.executors.base import Executor
from maas_backoff.leased import Attempt
from maas_backoff.store.codec import trace_of

log = logging.getLogger("maas_backoff.worker")


async def run_attempt(executor: Executor, attempt: Attempt, tracing: Tracing | None = None) -> HandlerOutcome:
    """Call the handler of a claimed task and return what came of it, whatever the handler does.

    Raises CancelledError when the attempt, or the whole worker, is being stopped; then the scope around it ends.
    """
    if tracing is not None:
        return await _run_traced(executor, attempt, tracing)
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


async def _run_traced(executor: Executor, attempt: Attempt, tracing: Tracing) -> HandlerOutcome:
    """Do so with a span around it, which the handler's own ones are children of."""
    span = attempt.span = tracing.attempt(attempt.task, trace_of(attempt.claimed.overrides))
    try:
        outcome = attempt.outcome = await run_attempt(executor, attempt)
        return outcome
    finally:
        # Neither, where the worker ends and leaves the attempt to its lease.
        known = attempt.outcome is not None or attempt.reason is not None
        span.end(outcome_of(attempt) if known else None)


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
