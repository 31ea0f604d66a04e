"""The handlers of several kinds, called as one handler. Child processes import this module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maas_backoff.domain.task import TaskEntity


class HandlersByKind:
    """Calls the handler of the task's kind."""

    def __init__(self, handlers: Mapping[str, Callable[..., Any]]) -> None:
        self.handlers: Mapping[str, Callable[..., Any]] = handlers

    def __call__(self, task: TaskEntity | Sequence[TaskEntity], *values: object) -> object:
        """Call the handler with the task, or the tasks of a batch, and the value of the lifespan if there is one."""
        first = task if isinstance(task, TaskEntity) else task[0]
        return self.handlers[first.kind](task, *values)


def joined(handlers: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """Return the only handler, or one that calls the handler of the task's kind."""
    return next(iter(handlers.values())) if len(handlers) == 1 else HandlersByKind(handlers)
