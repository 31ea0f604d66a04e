"""The span of an attempt."""

import time
from collections.abc import Mapping
from contextvars import Token

from opentelemetry.context import Context, attach
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    Span,
    SpanKind,
    Tracer,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

from maas_backoff.domain.outcome import Outcome
from maas_backoff.domain.task import TaskEntity
from maas_backoff.otel import child
from maas_backoff.otel.attributes import ended
from maas_backoff.otel.instruments import Instruments
from maas_backoff.otel.place import context_of, place_of, text_of
from maas_backoff.otel.suppressed import SuppressedErrors


class Attempt:
    """A span that is the current span from its creation to `end`; `continues`: a child of the create, else a link."""

    def __init__(
        self,
        tracer: Tracer,
        instruments: Instruments,
        suppressed: SuppressedErrors,
        task: TaskEntity,
        trace: str,
        attributes: dict[str, str | int],
        *,
        waited: float,
        continues: bool,
    ) -> None:
        self._instruments = instruments
        self._suppressed = suppressed
        self._attributes = attributes
        self._begun = time.monotonic()
        self._span: Span = INVALID_SPAN
        self._token: Token[Context] | None = None
        with suppressed:
            created = place_of(trace)
            self._span = tracer.start_span(
                f"process {task.biz_prefix}",
                # Without a parent, an empty one: the context in which the worker was started is not the task's.
                context_of(trace) if continues else Context(),
                SpanKind.CONSUMER,
                {
                    **attributes,
                    "messaging.message.id": task.task_id,
                    "maas_backoff.attempt": task.attempt,
                    "maas_backoff.retry_count": task.retry_count,
                    "maas_backoff.token": task.token,
                    "maas_backoff.wait_seconds": waited,
                    **_gpu(task),
                },
                [Link(created)] if created.is_valid and not continues else None,
            )
            self._token = attach(set_span_in_context(self._span, Context()))

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
        context = self._span.get_span_context()
        if not context.is_valid:
            return {}
        return {"trace_id": format_trace_id(context.trace_id), "span_id": format_span_id(context.span_id)}

    def end(self, outcome: Outcome | None) -> None:
        """End the span with the outcome of the attempt; None if the attempt was abandoned."""
        error = ""
        with self._suppressed:
            error = ended(self._span, outcome)
        self._instruments.attempted(self._attributes, time.monotonic() - self._begun, error)
        self._suppressed.leave(self._span, self._token)


def _gpu(task: TaskEntity) -> dict[str, str | float]:
    if task.gpu is None:
        return {}
    return {"maas_backoff.gpu.uuid": task.gpu.uuid, "maas_backoff.gpu.memory_gb": task.gpu.memory_gb}
