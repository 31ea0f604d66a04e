"""A span that is the current span from its creation to its end, and its outcome."""

from collections.abc import Mapping
from contextvars import Token

from opentelemetry.context import Context, attach
from opentelemetry.trace import INVALID_SPAN, Span, SpanContext, format_span_id, format_trace_id, set_span_in_context

from maas_backoff.domain.outcome import Outcome
from maas_backoff.otel import child
from maas_backoff.otel.attributes import ended
from maas_backoff.otel.place import text_of
from maas_backoff.otel.suppressed import SuppressedErrors


class CurrentSpan:
    """The span around a call of the handler."""

    def __init__(self, suppressed: SuppressedErrors) -> None:
        self._suppressed = suppressed
        self._span: Span = INVALID_SPAN
        self._token: Token[Context] | None = None

    def begin(self, span: Span) -> None:
        """Make a span the current one of the caller."""
        self._span = span
        self._token = attach(set_span_in_context(span, Context()))

    @property
    def place(self) -> SpanContext:
        """The place of the span in its trace; `is_valid` is False without an SDK."""
        return self._span.get_span_context()

    def link(self, place: SpanContext) -> None:
        """Add a link to another span."""
        self._span.add_link(place)

    @property
    def in_child(self) -> Mapping[str, str] | None:
        """The place of the span in its trace, and the module that makes the span current in a child process."""
        with self._suppressed:
            if trace := text_of(self._span):
                return {"module": child.__name__, "trace": trace}
        return None

    @property
    def ids(self) -> Mapping[str, str]:
        """The place of the span for log records."""
        context = self.place
        if not context.is_valid:
            return {}
        return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}

    def end(self, outcome: Outcome | None) -> None:
        """End the span with the outcome of the call; None if it is unknown."""
        self._leave(outcome)

    def _leave(self, outcome: Outcome | None) -> str:
        """End the span; return the type of the error, or ""."""
        error = ""
        with self._suppressed:
            error = ended(self._span, outcome)
        self._suppressed.leave(self._span, self._token)
        return error
