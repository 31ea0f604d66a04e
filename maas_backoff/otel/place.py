"""The place of a span in its trace as text: a W3C traceparent and, after a space, the tracestate if there is one.

The format does not depend on the propagator of the process, because this library writes and reads it. Baggage is left
out: it may be large or secret, and would be stored with each task.
"""

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_w3c = TraceContextTextMapPropagator()


def text_of(span: Span) -> str:
    """Return the place of a span; empty if the span is in no trace, for example without an SDK."""
    headers: dict[str, str] = {}
    _w3c.inject(headers, set_span_in_context(span, Context()))
    return " ".join(headers[name] for name in ("traceparent", "tracestate") if name in headers)


def context_of(text: str) -> Context:
    """Return a context whose current span is at this place; an empty context if the text is no place."""
    traceparent, _, tracestate = text.partition(" ")
    return _w3c.extract({"traceparent": traceparent, "tracestate": tracestate}, Context())


def place_of(text: str) -> SpanContext:
    """Return the SpanContext for a link to this place; `is_valid` is False if the text is no place."""
    return get_current_span(context_of(text)).get_span_context()
