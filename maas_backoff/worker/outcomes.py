"""The outcome of one attempt, and its tracing span."""

import asyncio

from maas_backoff.domain.handler_outcome import outcome_of_error
from maas_backoff.domain.outcome import (
    Cancelled,
    CancelReason,
    Failed,
    HandlerOutcome,
    Outcome,
    Unstarted,
    expired,
    timed_out,
)
from maas_backoff.domain.tracing import Peer, Tracing
from maas_backoff.store.codec import trace_of
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.executors.base import Executor


async def run_traced(executor: Executor, attempt: Attempt, tracing: Tracing, peer: Peer | None) -> HandlerOutcome:
    """Run an attempt inside a tracing span; the handler's spans become its children. Raises like `executor.run`."""
    trace, waited = trace_of(attempt.claimed.overrides), attempt.claimed.waited_ms / 1000
    span = attempt.span = tracing.attempt(attempt.task, trace, waited, peer)
    try:
        attempt.outcome = await executor.run(attempt)
    except asyncio.CancelledError as error:
        attempt.outcome = outcome_of_cancel(attempt, error)
        raise
    else:
        return attempt.outcome
    finally:
        # The outcome is unknown if the worker ends and leaves the attempt to its lease.
        known = not attempt.over and (attempt.outcome is not None or attempt.reason is not None)
        span.end(outcome_of(attempt) if known else None)


def outcome_of_cancel(attempt: Attempt, error: asyncio.CancelledError) -> HandlerOutcome | None:
    """Return the outcome of a cancel that did not come from the worker; None: the worker stops the attempt.

    In the first case, the handler cancelled its own asyncio task, or awaited a cancelled one.
    """
    return None if attempt.reason is not None else outcome_of_error(error)


def outcome_of(attempt: Attempt) -> Outcome:
    """Return the outcome of an attempt that has ended.

    A handler that returned in spite of its cancel has succeeded. A handler that turned its cancel into another error
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
        traceback = cause.traceback if isinstance(cause, Failed) else ""
        if attempt.started_at is not None and attempt.deadline == attempt.ends_by:
            return expired(attempt.ends_by - attempt.started_at, traceback)
        return timed_out(attempt.timeout, traceback)
    return Cancelled(reason)
