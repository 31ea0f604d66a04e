"""Spans of creates, attempts, settles and operations, by OpenTelemetry's conventions for messaging.

A create is a PRODUCER span, one for many tasks, of the type "send": the tasks are on the server when it ends. An
attempt is a CONSUMER span that begins its own trace and links to the create, the default of the conventions. As
children of the create, many attempts of many tasks, days later, would make one endless trace.
"""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import Token

from opentelemetry.context import Context, attach
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, TracerProvider, get_tracer, set_span_in_context

from maas_backoff.common.process_name import process_name
from maas_backoff.common.version import __version__
from maas_backoff.domain.tracing import Peer
from maas_backoff.errors import InvalidValueError
from maas_backoff.otel.attributes import about, failed
from maas_backoff.otel.instruments import CONVENTIONS, Instruments
from maas_backoff.otel.place import text_of
from maas_backoff.otel.settling import Settling, settling
from maas_backoff.otel.suppressed import SuppressedErrors
from maas_backoff.otel.worker import WorkerTracing


class OpenTelemetry:
    """Traces the tasks of one scheduler or more: `TaskBackoffScheduler(config, tracing=OpenTelemetry())`.

    Uses the tracer provider that the process sets up, before or later, unless another one is given. An exception of an
    exporter or a span processor is logged once, and fails no create and no attempt.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        continue_trace: bool = False,
    ) -> None:
        """`tracer_provider` and `meter_provider` replace the global ones.

        `continue_trace`: each attempt is a child of the create, in the caller's trace. By default it begins its own
        trace, and links to the create.
        """
        if not isinstance(continue_trace, bool):
            raise InvalidValueError("continue_trace", "True or False", continue_trace)
        self._tracer = get_tracer("maas_backoff", __version__, tracer_provider, CONVENTIONS)
        self._suppressed = SuppressedErrors()
        self._instruments = Instruments(meter_provider, self._suppressed)
        self._continues = continue_trace

    @contextmanager
    def create(self, queue: str, task_ids: Sequence[str], peer: Peer | None) -> Generator[str]:
        """Make the span of a create inside the caller's span. Its status shows an exception of the create."""
        attributes = about(queue, "create", "send", (process_name(), peer))
        begun, kind = time.monotonic(), ""
        if len(task_ids) == 1:
            attributes["messaging.message.id"] = task_ids[0]
        else:
            attributes["messaging.batch.message_count"] = len(task_ids)
        span: Span = INVALID_SPAN
        token: Token[Context] | None = None
        trace = ""
        with self._suppressed:
            span = self._tracer.start_span(f"create {queue}", kind=SpanKind.PRODUCER, attributes=attributes)
            trace = text_of(span)
            token = attach(set_span_in_context(span))
        try:
            yield trace
        except BaseException as error:
            kind = type(error).__name__
            with self._suppressed:
                failed(span, kind, str(error))
            raise
        finally:
            self._suppressed.leave(span, token)
            self._instruments.created(attributes, len(task_ids), time.monotonic() - begun, kind)

    @contextmanager
    def operation(self, queue: str, name: str, task_id: str, peer: Peer | None) -> Generator[Settling]:
        """Make the span of an operation that ends tasks, inside the caller's span. It links to the creates it finds."""
        attributes = about(queue, name, "settle", (process_name(), peer))
        if task_id:
            attributes["messaging.message.id"] = task_id

        def start() -> Span:
            return self._tracer.start_span(f"{name} {queue}", kind=SpanKind.CLIENT, attributes=attributes)

        with settling(start, self._instruments, self._suppressed, attributes, is_current=True) as span:
            yield Settling(span, self._suppressed, is_selection=not task_id)

    def of_worker(self, queue: str, worker: str, peer: Peer | None) -> WorkerTracing:
        """Return the maker of spans for a worker of this name."""
        return WorkerTracing(
            *(self._tracer, self._instruments, self._suppressed, queue, (worker, peer)), continues=self._continues
        )
