"""The span of an attempt."""

from collections.abc import Mapping
from contextvars import Token

from opentelemetry.context import Context, attach
from opentelemetry.trace import INVALID_SPAN, Link, Span, SpanKind, Tracer, set_span_in_context

from maas_backoff.domain.outcome import Outcome
from maas_backoff.domain.task import TaskEntity
from maas_backoff.otel import child
from maas_backoff.otel.attributes import about, ended
from maas_backoff.otel.place import place_of, text_of
from maas_backoff.otel.suppressed import SuppressedErrors


class Attempt:
    """A span that is the current span from its creation to `end`, without a parent."""

    def __init__(self, tracer: Tracer, suppressed: SuppressedErrors, task: TaskEntity, trace: str) -> None:
        self._suppressed = suppressed
        self._span: Span = INVALID_SPAN
        self._token: Token[Context] | None = None
        with suppressed:
            created = place_of(trace)
            self._span = tracer.start_span(
                f"process {task.biz_prefix}",
                Context(),  # empty: the context in which the worker was started is not the task's
                SpanKind.CONSUMER,
                {
                    **about(task.biz_prefix, "process", "process"),
                    "messaging.message.id": task.task_id,
                    "maas_backoff.attempt": task.attempt,
                    "maas_backoff.retry_count": task.retry_count,
                    "maas_backoff.token": task.token,
                },
                [Link(created)] if created.is_valid else None,
            )
            self._token = attach(set_span_in_context(self._span, Context()))

    @property
    def in_child(self) -> Mapping[str, str] | None:
        """The place of the span in its trace, and the module that makes the span current in a child process."""
        with self._suppressed:
            if trace := text_of(self._span):
                return {"module": child.__name__, "trace": trace}
        return None

    def end(self, outcome: Outcome | None) -> None:
        """End the span with the outcome of the attempt; None if the attempt was abandoned."""
        with self._suppressed:
            ended(self._span, outcome)
        self._suppressed.leave(self._span, self._token)
