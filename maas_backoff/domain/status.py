"""The states of a task."""

from enum import StrEnum

from maas_backoff.errors import InvalidValueError


class TaskStatus(StrEnum):
    """The state of a task. `TaskEntity.waiting_for` says why a pending task waits."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def finished(self) -> bool:
        """Whether a task in this state changes only by operations."""
        return self in _FINISHED


_FINISHED = frozenset({TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED})


def checked_status(status: object, *allowed: TaskStatus) -> TaskStatus:
    """Return `status` if it is one of `allowed`, else raise InvalidValueError."""
    if not isinstance(status, str) or status not in allowed:
        raise InvalidValueError("status", "one of " + ", ".join(one for one in TaskStatus if one in allowed), status)
    return TaskStatus(status)
