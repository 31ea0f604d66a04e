"""The spans of a worker: attempts, calls for a batch, and settles.

A settle of one task is a child of the attempt. A settle of several has a trace of its own, and links to the creates, as
the conventions say: a request settles attempts of many traces.
"""

import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, Link, NonRecordingSpan, Span, SpanKind, Tracer, set_span_in_context

from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.tracing import AttemptSpan, Peer
from maas_backoff.otel.attempt import Attempt
from maas_backoff.otel.attributes import about, failed
from maas_backoff.otel.current import CurrentSpan
from maas_backoff.otel.instruments import Instruments
from maas_backoff.otel.suppressed import SuppressedErrors


class WorkerTracing:
    """Traces what one worker does. An exception of an exporter or a span processor is logged once."""

    def __init__(
        self,
        tracer: Tracer,
        instruments: Instruments,
        suppressed: SuppressedErrors,
        queue: str,
        client: tuple[str, Peer | None],
        *,
        continues: bool,
    ) -> None:
        """`client`: the worker's name, and its server. `continues`: attempts are children of their creates."""
        self._tracer = tracer
        self._instruments = instruments
        self._suppressed = suppressed
        self._queue = queue
        self._continues = continues
        worker, peer = client
        self._process = {**about(queue, "process", "process", peer), "messaging.client.id": worker}
        self._settle = {**about(queue, "settle", "settle", peer), "messaging.client.id": worker}

    def attempt(self, task: TaskEntity, trace: str, waited: float) -> Attempt:
        """Start the span of an attempt, and make it the current span."""
        return Attempt(
            *(self._tracer, self._instruments, self._suppressed, task, trace, self._process),
            waited=waited,
            continues=self._continues,
        )

    def batch(self, spans: Sequence[AttemptSpan | None]) -> CurrentSpan:
        """Start the span of one call for several attempts, and make it the current span. The attempts link to it."""
        attempts = [span for span in spans if isinstance(span, Attempt)]
        current = CurrentSpan(self._suppressed)
        with self._suppressed:
            attributes = {**self._process, "messaging.batch.message_count": len(spans)}
            span = self._tracer.start_span(
                f"process {self._queue}", Context(), SpanKind.CONSUMER, attributes, _to_creates(attempts)
            )
            current.begin(span)
            for attempt in attempts:
                attempt.link(current.place)
        return current

    @contextmanager
    def settle(self, attempts: Mapping[str, AttemptSpan | None]) -> Generator[None]:
        """Make the span of a request that settles attempts, with all tries."""
        begun, kind = time.monotonic(), ""
        span: Span = INVALID_SPAN
        with self._suppressed:
            span = self._settle_span(attempts)
        try:
            yield
        except BaseException as error:
            kind = type(error).__name__
            with self._suppressed:
                failed(span, kind, str(error))
            raise
        finally:
            self._suppressed.leave(span, None)
            self._instruments.settled(self._settle, time.monotonic() - begun, kind)

    def _settle_span(self, attempts: Mapping[str, AttemptSpan | None]) -> Span:
        name, traced = f"settle {self._queue}", [one for one in attempts.values() if isinstance(one, Attempt)]
        if len(attempts) > 1:
            number = {"messaging.batch.message_count": len(attempts)}
            return self._tracer.start_span(
                name, Context(), SpanKind.CLIENT, {**self._settle, **number}, _to_creates(traced)
            )
        (task_id,) = attempts
        parent = set_span_in_context(NonRecordingSpan(traced[0].place), Context()) if traced else Context()
        return self._tracer.start_span(name, parent, SpanKind.CLIENT, {**self._settle, "messaging.message.id": task_id})


def _to_creates(attempts: Iterable[Attempt]) -> list[Link]:
    return [Link(one.created, {"messaging.message.id": one.task_id}) for one in attempts if one.created.is_valid]
