"""Tracing of a task from its creation into its handler: `maas_backoff.otel`, or none."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from maas_backoff.domain.outcome import Outcome
from maas_backoff.domain.task import TaskEntity


class AttemptSpan(Protocol):
    """One attempt as it is traced. It is the current span of whoever started it, until its end."""

    @property
    def in_child(self) -> Mapping[str, str] | None:
        """The way to make it the current span of a child process: `module.follow(trace)` is called there."""
        ...

    def end(self, outcome: Outcome | None) -> None:
        """Note that the attempt has ended. None: nobody knows how; the task is left to its lease."""
        ...


@runtime_checkable
class Tracing(Protocol):
    """Makes spans of creates and attempts. Nothing here raises: no task is to fail because it cannot be followed."""

    def create(self, queue: str, task_ids: Sequence[str]) -> AbstractContextManager[str]:
        """Follow the creation of tasks; the text that is entered is stored with them, if it is not empty."""
        ...

    def attempt(self, task: TaskEntity, trace: str) -> AttemptSpan:
        """Begin to follow an attempt; `trace` is the text that was stored with its task."""
        ...
