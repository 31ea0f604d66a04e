"""The context in a child process: the current span is that of the attempt, which is in the parent process."""

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry.context import attach, detach

from maas_backoff.otel.place import context_of


@contextmanager
def follow(trace: str) -> Generator[None]:
    """Make new spans in this context children of the span at this place in a trace."""
    token = attach(context_of(trace))
    try:
        yield
    finally:
        detach(token)
