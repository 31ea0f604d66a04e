"""The attributes of spans, by OpenTelemetry's conventions for messaging: never params or results."""

from opentelemetry.trace import Span, StatusCode

from maas_backoff.domain.outcome import Cancelled, CancelReason, Failed, Outcome
from maas_backoff.domain.tracing import Peer


def about(queue: str, name: str, kind: str, client: tuple[str, Peer | None]) -> dict[str, str | int]:
    """Return the attributes of every span: the queue, the name of the operation, and its type by the conventions.

    `client` is the name of the worker or of the process, and its server.
    """
    client_id, peer = client
    found: dict[str, str | int] = {} if peer is None else {"server.address": peer.address}
    if peer is not None and peer.port is not None:
        found["server.port"] = peer.port
    return {
        **found,
        "messaging.system": "maas_backoff",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": queue,
        "messaging.client.id": client_id,
    }


def failed(span: Span, kind: str, message: str) -> None:
    """Mark the operation of a span as failed."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR, message)


def ended(span: Span, outcome: Outcome | None) -> str:
    """Set the outcome of an attempt; return the type of its error, or "". A cancel is no error, a lost lease is one."""
    kind = ""
    match outcome:
        case None:
            word = "abandoned"
        case Failed(error):
            word = "failed"
            kind = error.type
            failed(span, kind, str(error))
            if outcome.raised:
                _exception(span, outcome)
        case Cancelled(reason):
            word = "cancelled"
            span.set_attribute("maas_backoff.cancel_reason", reason)
            if reason is CancelReason.LEASE_LOST:
                kind = str(reason)
                failed(span, kind, "another worker has the lease of the task")
        case _:
            word = type(outcome).__name__.lower()  # succeeded, snoozed
    span.set_attribute("maas_backoff.outcome", word)
    return kind


def _exception(span: Span, outcome: Failed) -> None:
    details = {"exception.type": outcome.error.type, "exception.message": outcome.error.message}
    if outcome.traceback:
        details["exception.stacktrace"] = outcome.traceback
    span.add_event("exception", details)
