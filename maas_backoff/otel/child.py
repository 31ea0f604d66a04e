"""In a child process: the span of the attempt, which lives in the parent, is the current one."""

from collections.abc import Generator
from contextlib import contextmanager

from opentelemetry.context import attach, detach

from maas_backoff.otel.place import context_of


@contextmanager
def follow(trace: str) -> Generator[None]:
    """Let spans that are made within be children of the one at that place."""
    token = attach(context_of(trace))
    try:
        yield
    finally:
        detach(token)
