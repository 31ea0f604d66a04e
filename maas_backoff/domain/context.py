"""The task whose handler is being called, for code that is not handed it."""

from contextvars import ContextVar

from maas_backoff.domain.task import TaskEntity

current: ContextVar[TaskEntity | None] = ContextVar("maas_backoff.current", default=None)
"""Set around each call of a handler, in its coroutine, its thread or its child process."""


def current_task() -> TaskEntity | None:
    """Return the task whose handler this is called from, directly or not; None elsewhere."""
    return current.get()
