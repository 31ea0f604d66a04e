"""Why an operation has changed nothing, in one sentence about the task."""

from maas_backoff.commands.text import moment
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.language import t
from maas_backoff.logs import printable


def unknown(task_id: str, queue: str) -> str:
    """Return in words that a queue has no such task."""
    return t("no task {task} in queue {queue}", task=printable(task_id), queue=printable(queue))


def refusal(verb: str, task: TaskEntity) -> str:
    """Return why `cancel`, `update`, `retry` or `delete` has not changed a task, and what to do."""
    name, state = printable(task.task_id), task.status
    if state is TaskStatus.PROCESSING:
        return t("{task} is running: {remedy}", task=name, remedy=_remedy(verb, name))
    if verb in {"retry", "update"}:
        return t("{fact}: {remedy}", fact=_since(task, name), remedy=_remedy(verb, name))
    return _since(task, name) if state.finished else t("{task} is pending now: try again", task=name)


def _remedy(verb: str, name: str) -> str:
    """Return what to do about a task that runs, or which tasks can be changed."""
    if verb == "cancel":
        return t("add --running")
    if verb == "update":
        return t("only pending tasks can be changed")
    if verb == "retry":
        return t("only failed and cancelled tasks can be retried")
    return t("cancel the task first: {command}", command=f"maas-backoff cancel {name} --running")


def _since(task: TaskEntity, name: str) -> str:
    """Return in words how a task is, or how and when it ended."""
    if task.status is TaskStatus.COMPLETED:
        return t("{task} completed at {moment}", task=name, moment=moment(task.finished_at))
    if task.status is TaskStatus.FAILED:
        return t("{task} failed at {moment}", task=name, moment=moment(task.finished_at))
    if task.status is TaskStatus.CANCELLED:
        return t("{task} was cancelled at {moment}", task=name, moment=moment(task.finished_at))
    return t("{task} is pending", task=name)
