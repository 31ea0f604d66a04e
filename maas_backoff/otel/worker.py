"""The spans of a worker: attempts, calls for a batch, settles, and requests of the reaper.

A settle of one task is a child of the attempt. A settle of several has a trace of its own, and links to the creates, as
the conventions say: a request settles attempts of many traces.
"""

from collections.abc import Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanKind, Tracer, set_span_in_context

from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.tracing import AttemptSpan, Peer
from maas_backoff.otel.attempt import Attempt
from maas_backoff.otel.attributes import about
from maas_backoff.otel.current import CurrentSpan
from maas_backoff.otel.instruments import Instruments
from maas_backoff.otel.place import place_of
from maas_backoff.otel.settling import Settling, settling
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
        self._client = client
        self._process = about(queue, "process", "process", client)
        self._settle = about(queue, "settle", "settle", client)

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
        with settling(lambda: self._settle_span(attempts), self._instruments, self._suppressed, self._settle):
            yield

    @contextmanager
    def reap(self, name: str, tasks: Mapping[str, str]) -> Generator[Settling]:
        """Make the span of a request of the reaper, in a trace of its own. It links to the creates of the tasks."""
        attributes = about(self._queue, name, "settle", self._client)

        def start() -> Span:
            links = [
                Link(place, {"messaging.message.id": task_id})
                for task_id, place in ((task_id, place_of(trace)) for task_id, trace in tasks.items() if trace)
                if place.is_valid
            ]
            about_tasks = {**attributes, **_number_of(tasks)}
            return self._tracer.start_span(f"{name} {self._queue}", Context(), SpanKind.CLIENT, about_tasks, links)

        with settling(start, self._instruments, self._suppressed, attributes) as span:
            yield Settling(span, self._suppressed)

    def _settle_span(self, attempts: Mapping[str, AttemptSpan | None]) -> Span:
        name, traced = f"settle {self._queue}", [one for one in attempts.values() if isinstance(one, Attempt)]
        attributes = {**self._settle, **_number_of(attempts)}
        if len(attempts) > 1:
            return self._tracer.start_span(name, Context(), SpanKind.CLIENT, attributes, _to_creates(traced))
        parent = set_span_in_context(NonRecordingSpan(traced[0].place), Context()) if traced else Context()
        return self._tracer.start_span(name, parent, SpanKind.CLIENT, attributes)


def _number_of(tasks: Collection[str]) -> dict[str, str | int]:
    """Return the id of one task, or the number of several."""
    if len(tasks) > 1:
        return {"messaging.batch.message_count": len(tasks)}
    (task_id,) = tasks
    return {"messaging.message.id": task_id}


def _to_creates(attempts: Iterable[Attempt]) -> list[Link]:
    return [Link(one.created, {"messaging.message.id": one.task_id}) for one in attempts if one.created.is_valid]
