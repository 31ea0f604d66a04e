"""The task of the running handler, for code that does not get the task as an argument."""

from contextvars import ContextVar

from maas_backoff.domain.task import TaskEntity

current: ContextVar[TaskEntity | None] = ContextVar("maas_backoff.current", default=None)
"""Set during each call of a handler, in its coroutine, its thread or its child process."""


def current_task() -> TaskEntity | None:
    """Return the task of the handler that calls this, directly or not; None outside of a handler."""
    return current.get()
