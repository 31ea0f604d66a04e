"""The states of a task under the names of the original library."""

from maas_backoff.domain.status import TaskStatus as Own


class TaskStatus:
    """The states: `task.status == TaskStatus.CANCELED`. The texts differ: "pending", and not "PENDING"."""

    PENDING: Own = Own.PENDING
    PROCESSING: Own = Own.PROCESSING
    COMPLETED: Own = Own.COMPLETED
    FAILED: Own = Own.FAILED
    CANCELED: Own = Own.CANCELLED
