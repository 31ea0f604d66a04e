"""Why an operation has changed nothing, in one sentence about the task."""

from maas_backoff.commands.text import moment
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.logs import printable


def unknown(task_id: str, queue: str) -> str:
    """Return in words that a queue has no such task."""
    return f"no task {printable(task_id)} in queue {printable(queue)}"


def refusal(verb: str, task: TaskEntity) -> str:
    """Return why `cancel`, `update`, `retry` or `delete` has not changed a task, and what to do."""
    name, state = printable(task.task_id), task.status
    if state is TaskStatus.PROCESSING:
        return f"{name} is running: {_WHILE_RUNNING[verb].format(name)}"
    if verb == "retry":
        return f"{name} {_since(task)}: only failed and cancelled tasks can be retried"
    if verb == "update":
        return f"{name} {_since(task)}: only pending tasks can be changed"
    return f"{name} {_since(task)}" if state.finished else f"{name} is pending now: try again"


_WHILE_RUNNING = {
    "cancel": "add --running",
    "update": "only pending tasks can be changed",
    "retry": "only failed and cancelled tasks can be retried",
    "delete": "cancel the task first: maas-backoff cancel {} --running",
}


def _since(task: TaskEntity) -> str:
    """Return in words how a task is, or how and when it ended."""
    verb = {"completed": "completed", "failed": "failed", "cancelled": "was cancelled"}.get(task.status, "is pending")
    return f"{verb} at {moment(task.finished_at)}" if task.finished_at is not None else verb
