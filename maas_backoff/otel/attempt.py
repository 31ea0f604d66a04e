"""The span of an attempt."""

import time

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN_CONTEXT, Link, SpanContext, SpanKind, Tracer

from maas_backoff.domain.outcome import Outcome
from maas_backoff.domain.task import TaskEntity
from maas_backoff.otel.current import CurrentSpan
from maas_backoff.otel.instruments import Instruments
from maas_backoff.otel.place import context_of, place_of
from maas_backoff.otel.suppressed import SuppressedErrors


class Attempt(CurrentSpan):
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
        super().__init__(suppressed)
        self.task_id: str = task.task_id
        self.created: SpanContext = INVALID_SPAN_CONTEXT
        """The place of the task's create; `is_valid` is False if the create was not traced."""
        self._instruments = instruments
        self._attributes = {**attributes, "maas_backoff.kind": task.kind} if task.kind else attributes
        self._begun = time.monotonic()
        with suppressed:
            self.created = place_of(trace)
            span = tracer.start_span(
                f"process {task.biz_prefix}",
                # Without a parent, an empty one: the context in which the worker was started is not the task's.
                context_of(trace) if continues else Context(),
                SpanKind.CONSUMER,
                {
                    **self._attributes,
                    "messaging.message.id": task.task_id,
                    "maas_backoff.attempt": task.attempt,
                    "maas_backoff.retry_count": task.retry_count,
                    "maas_backoff.token": task.token,
                    "maas_backoff.wait_seconds": waited,
                    **_gpu(task),
                },
                [Link(self.created)] if self.created.is_valid and not continues else None,
            )
            self.begin(span)

    def end(self, outcome: Outcome | None) -> None:
        """End the span with the outcome of the attempt; None if the attempt was abandoned."""
        seconds = time.monotonic() - self._begun
        error = self._leave(outcome)
        self._instruments.attempted(self._attributes, seconds, error)


def _gpu(task: TaskEntity) -> dict[str, str | float]:
    if task.gpu is None:
        return {}
    return {"maas_backoff.gpu.uuid": task.gpu.uuid, "maas_backoff.gpu.memory_gb": task.gpu.memory_gb}
