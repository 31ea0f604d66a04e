"""The outcome of one attempt, and its tracing span."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from maas_backoff.domain.batching import half_of
from maas_backoff.domain.handler_outcome import outcome_of_error
from maas_backoff.domain.outcome import (
    Cancelled,
    CancelReason,
    Failed,
    FailedAlone,
    FailedInBatch,
    HandlerOutcome,
    Outcome,
    Unstarted,
    expired,
    timed_out,
)
from maas_backoff.domain.tracing import WorkerTracing
from maas_backoff.store.codec import trace_of
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.batch_call import BatchCall


class Caller(Protocol):
    """An executor, or the call of a batch."""

    def run(self, call: Attempt, /) -> Coroutine[Any, Any, HandlerOutcome]:
        """Call the handler, and return the outcome of the attempt."""
        ...


async def run_traced(caller: Caller, attempt: Attempt, tracing: WorkerTracing) -> HandlerOutcome:
    """Run an attempt inside a tracing span; the handler's spans become its children. Raises like `caller.run`."""
    trace, waited = trace_of(attempt.claimed.overrides), attempt.claimed.waited_ms / 1000
    span = attempt.span = tracing.attempt(attempt.task, trace, waited)
    try:
        attempt.outcome = await caller.run(attempt)
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


def outcome_in_batch(attempt: Attempt, batch: BatchCall, outcome: Outcome) -> Outcome:
    """Return the outcome of an attempt of a batch. A failure of the whole batch is that of none of its tasks."""
    number = len(batch.place_of)
    # A broken GPU is to blame itself, for all tasks.
    if number < 2 or not isinstance(outcome, Failed) or outcome.fault == "gpu" or not _failed_with_all(attempt, batch):
        return outcome
    batch.log_failure(outcome)
    return FailedInBatch(outcome, *half_of(f"{min(batch.place_of)}", batch.place_of[attempt.token], number))


def outcome_alone(attempt: Attempt, batch: BatchCall, outcome: Outcome) -> Outcome:
    """Return the outcome of an attempt of a batch. A task that has failed a batch of one is to blame, as a rule."""
    if len(batch.place_of) == 1 and isinstance(outcome, Failed) and _failed_with_all(attempt, batch):
        return FailedAlone(outcome) if batch.blames(attempt.task) else outcome
    return outcome


def _failed_with_all(attempt: Attempt, batch: BatchCall) -> bool:
    """Return whether the call of the batch failed, and not this attempt alone."""
    if attempt.reason is CancelReason.TIMEOUT:
        return attempt.token in batch.place_of and attempt.deadline != attempt.ends_by
    return attempt.outcome is batch.failed


def _stopped(attempt: Attempt, reason: CancelReason, cause: Failed | Unstarted | None) -> Outcome:
    if reason is CancelReason.TIMEOUT:
        traceback = cause.traceback if isinstance(cause, Failed) else ""
        if attempt.started_at is not None and attempt.deadline == attempt.ends_by:
            return expired(attempt.ends_by - attempt.started_at, traceback)
        return timed_out(attempt.timeout, traceback)
    return Cancelled(reason)
