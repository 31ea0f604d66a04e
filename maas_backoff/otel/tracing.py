"""Spans of creates and of attempts, as OpenTelemetry's conventions for messaging have them.

A create is a PRODUCER span (of the type "send": what it creates is on the server when it ends), one for a batch. An
attempt is a CONSUMER span that begins a trace of its own and links to the create, as the conventions do by default: a
task may have many attempts, days later, and a batch many tasks; as children they would make one endless trace.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import Token

from opentelemetry.context import Context, attach
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, TracerProvider, get_tracer, set_span_in_context

from maas_backoff.common.version import __version__
from maas_backoff.domain.task import TaskEntity
from maas_backoff.otel.attempt import Attempt
from maas_backoff.otel.place import text_of
from maas_backoff.otel.telling import about, failed
from maas_backoff.otel.unharmed import Unharmed

CONVENTIONS = "https://opentelemetry.io/schemas/1.44.0"


class OpenTelemetry:
    """Traces the tasks of one scheduler or more: `TaskBackoffScheduler(config, tracing=OpenTelemetry())`.

    Uses the tracer provider that the process has set up, before or later; or the one that is given. What an exporter or
    a span processor raises is logged once, and fails no create and no attempt.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        """`tracer_provider` takes the place of the global one."""
        self._tracer = get_tracer("maas_backoff", __version__, tracer_provider, CONVENTIONS)
        self._unharmed = Unharmed()

    @contextmanager
    def create(self, queue: str, task_ids: Sequence[str]) -> Generator[str]:
        """Make the span of a create, within the caller's. It tells what the create raises."""
        attributes = about(queue, "create", "send")
        if len(task_ids) == 1:
            attributes["messaging.message.id"] = task_ids[0]
        else:
            attributes["messaging.batch.message_count"] = len(task_ids)
        span: Span = INVALID_SPAN
        token: Token[Context] | None = None
        trace = ""
        with self._unharmed:
            span = self._tracer.start_span(f"create {queue}", kind=SpanKind.PRODUCER, attributes=attributes)
            trace = text_of(span)
            token = attach(set_span_in_context(span))
        try:
            yield trace
        except BaseException as error:
            with self._unharmed:
                failed(span, type(error).__name__, str(error))
            raise
        finally:
            self._unharmed.leave(span, token)

    def attempt(self, task: TaskEntity, trace: str) -> Attempt:
        """Start the span of an attempt, and make it the current one."""
        return Attempt(self._tracer, self._unharmed, task, trace)
