"""The interface of tracing from a task's creation into its handler: `maas_backoff.otel`, or none."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from maas_backoff.domain.outcome import Outcome
from maas_backoff.domain.task import TaskEntity


class AttemptSpan(Protocol):
    """The span of one attempt. It is the current span of the caller that started it, until its end."""

    @property
    def in_child(self) -> Mapping[str, str] | None:
        """The `module` and `trace` for a child process, which calls `module.follow(trace)` to make the span current."""
        ...

    def end(self, outcome: Outcome | None) -> None:
        """End the span. None: the outcome is unknown, and the task's lease runs out."""
        ...


@runtime_checkable
class Tracing(Protocol):
    """The maker of spans for creations and attempts. No method raises: a fault of tracing must not fail a task."""

    def create(self, queue: str, task_ids: Sequence[str]) -> AbstractContextManager[str]:
        """Trace the creation of tasks. The text of the context manager is stored with them if it is not empty."""
        ...

    def attempt(self, task: TaskEntity, trace: str) -> AttemptSpan:
        """Start the span of an attempt; `trace` is the text that was stored with its task."""
        ...
