"""The interface of tracing from a task's creation into its handler: `maas_backoff.otel`, or none."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

from maas_backoff.domain.outcome import Outcome
from maas_backoff.domain.task import TaskEntity


class Peer(NamedTuple):
    """The address of the server: a host and a port, or the path of a socket."""

    address: str
    port: int | None = None


class AttemptSpan(Protocol):
    """The span of one attempt. It is the current span of the caller that started it, until its end."""

    @property
    def in_child(self) -> Mapping[str, str] | None:
        """The `module` and `trace` for a child process, which calls `module.follow(trace)` to make the span current."""
        ...

    @property
    def ids(self) -> Mapping[str, str]:
        """The `trace_id` and `span_id` for log records, as hexadecimal digits; nothing if the span is in no trace."""
        ...

    def end(self, outcome: Outcome | None) -> None:
        """End the span. None: the outcome is unknown, and the task's lease runs out."""
        ...


class SettleSpan(Protocol):
    """The span of a request that settles tasks whose attempts this process has not run. No method raises."""

    def link(self, task_id: str, trace: str) -> None:
        """Link to the create of a task; `trace` is the text that was stored with the task."""
        ...

    def changed(self, number: int) -> None:
        """Note how many tasks were changed."""
        ...


class WorkerTracing(Protocol):
    """The maker of spans for one worker. No method raises: a fault of tracing must not fail a task."""

    def attempt(self, task: TaskEntity, trace: str, waited: float) -> AttemptSpan:
        """Start the span of an attempt; `trace` is the text that was stored with its task.

        `waited` is the seconds from due to claimed.
        """
        ...

    def batch(self, spans: Sequence[AttemptSpan | None]) -> AttemptSpan:
        """Start the span of the one call of the handler for several attempts, which have these spans."""
        ...

    def settle(self, attempts: Mapping[str, AttemptSpan | None]) -> AbstractContextManager[None]:
        """Trace the request that settles these attempts: the spans by the ids of the tasks. None: it never began."""
        ...

    def reap(self, name: str, tasks: Mapping[str, str]) -> AbstractContextManager[SettleSpan]:
        """Trace a request of the reaper: its name, and for each id the text that was stored with the task, or ""."""
        ...


@runtime_checkable
class Tracing(Protocol):
    """The maker of spans for creations and workers. No method raises: a fault of tracing must not fail a task."""

    def create(self, queue: str, task_ids: Sequence[str], peer: Peer | None) -> AbstractContextManager[str]:
        """Trace the creation of tasks. The text of the context manager is stored with them if it is not empty."""
        ...

    def operation(self, queue: str, name: str, task_id: str, peer: Peer | None) -> AbstractContextManager[SettleSpan]:
        """Trace an operation that ends tasks. An empty id stands for the tasks of a selection."""
        ...

    def of_worker(self, queue: str, worker: str, peer: Peer | None) -> WorkerTracing:
        """Return the maker of spans for a worker of this name."""
        ...
