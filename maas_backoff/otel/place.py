"""The place of a span in its trace as text: a W3C traceparent and, after a space, the tracestate if there is one.

Always the W3C's, whatever the process uses elsewhere: both ends are ours. Baggage stays behind: it may be large, or
secret, and would be stored with each task.
"""

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanContext, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_w3c = TraceContextTextMapPropagator()


def text_of(span: Span) -> str:
    """Return the place of a span; empty for one that is in no trace, as where no SDK is set up."""
    headers: dict[str, str] = {}
    _w3c.inject(headers, set_span_in_context(span, Context()))
    return " ".join(headers[name] for name in ("traceparent", "tracestate") if name in headers)


def context_of(text: str) -> Context:
    """Return a context whose current span is at that place; an empty one for a text that names none."""
    traceparent, _, tracestate = text.partition(" ")
    return _w3c.extract({"traceparent": traceparent, "tracestate": tracestate}, Context())


def place_of(text: str) -> SpanContext:
    """Return what a link to that place is made of; `is_valid` says whether the text names one."""
    return get_current_span(context_of(text)).get_span_context()
