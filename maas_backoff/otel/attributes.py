"""The attributes of spans, by OpenTelemetry's conventions for messaging: never params or results."""

from opentelemetry.trace import Span, StatusCode

from maas_backoff.domain.outcome import Cancelled, CancelReason, Failed, Outcome


def about(queue: str, name: str, kind: str) -> dict[str, str | int]:
    """Return the attributes of every span: the queue, the name of the operation, and its type by the conventions."""
    return {
        "messaging.system": "maas_backoff",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": queue,
    }


def failed(span: Span, kind: str, message: str) -> None:
    """Mark the operation of a span as failed."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, message)


def ended(span: Span, outcome: Outcome | None) -> None:
    """Set the outcome of an attempt. A cancel is no error, but a lost lease is one."""
    match outcome:
        case None:
            word = "abandoned"
        case Failed(error):
            word = "failed"
            failed(span, error.type, str(error))
            if outcome.raised:
                _exception(span, outcome)
        case Cancelled(reason):
            word = "cancelled"
            span.set_attribute("maas_backoff.cancel_reason", reason)
            if reason is CancelReason.LEASE_LOST:
                failed(span, reason, "another worker has the lease of the task")
        case _:
            word = type(outcome).__name__.lower()  # succeeded, snoozed
    span.set_attribute("maas_backoff.outcome", word)


def _exception(span: Span, outcome: Failed) -> None:
    details = {"exception.type": outcome.error.type, "exception.message": outcome.error.message}
    if outcome.traceback:
        details["exception.stacktrace"] = outcome.traceback
    span.add_event("exception", details)
