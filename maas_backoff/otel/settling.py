"""The spans of requests that settle tasks."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Token

from opentelemetry.context import Context, attach
from opentelemetry.trace import INVALID_SPAN, Span, set_span_in_context

from maas_backoff.otel.attributes import failed
from maas_backoff.otel.instruments import Attributes, Instruments
from maas_backoff.otel.place import place_of
from maas_backoff.otel.suppressed import SuppressedErrors


@contextmanager
def settling(
    start: Callable[[], Span],
    instruments: Instruments,
    suppressed: SuppressedErrors,
    attributes: Attributes,
    *,
    is_current: bool = False,
) -> Generator[Span]:
    """Start the span of a request, end it with an exception as its status, and measure it.

    `attributes` are those of the metrics. `is_current`: the span is the current one of the caller until its end.
    """
    begun, kind = time.monotonic(), ""
    span: Span = INVALID_SPAN
    token: Token[Context] | None = None
    with suppressed:
        span = start()
        if is_current:
            token = attach(set_span_in_context(span))
    try:
        yield span
    except BaseException as error:
        kind = type(error).__name__
        with suppressed:
            failed(span, kind, str(error))
        raise
    finally:
        suppressed.leave(span, token)
        instruments.settled(attributes, time.monotonic() - begun, kind)


class Settling:
    """The span of a request that settles tasks whose attempts this process has not run."""

    def __init__(self, span: Span, suppressed: SuppressedErrors, *, is_selection: bool = False) -> None:
        """`is_selection`: the number of tasks is known when the request has ended."""
        self._span = span
        self._suppressed = suppressed
        self._is_selection = is_selection
        self._linked: set[str] = set()

    def link(self, task_id: str, trace: str) -> None:
        """Add a link to the create of a task, if it was traced."""
        with self._suppressed:
            place = place_of(trace)
            if place.is_valid and task_id not in self._linked:  # an operation may look again
                self._linked.add(task_id)
                self._span.add_link(place, {"messaging.message.id": task_id})

    def changed(self, number: int) -> None:
        """Note how many tasks were changed."""
        with self._suppressed:
            self._span.set_attribute("maas_backoff.changed", number)
            if self._is_selection:
                self._span.set_attribute("messaging.batch.message_count", number)
