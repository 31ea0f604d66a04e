"""Events for whoever watches a task."""

import hashlib

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.task import TaskEntity


@attrs.frozen
class TaskEvent:
    """A task as it has become. `id` is another one whenever something has changed that is worth telling."""

    id: str
    task: TaskEntity

    @classmethod
    def of(cls, task: TaskEntity) -> "TaskEvent":
        """Return the event of a task as it is."""
        told = (task.status, task.attempt, task.progress, task.progress_message, task.next_execute_time, task.error)
        return cls(hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest(), task)

    def to_sse(self) -> dict[str, str]:
        """Return it as a server-sent event: the state is its name, the task without its params its data.

        What `sse_starlette.EventSourceResponse` takes. A client that comes back sends the id as `Last-Event-ID`.
        """
        about = {name: value for name, value in self.task.to_dict().items() if name != "task_params"}
        return {"id": self.id, "event": self.task.status.value, "data": jsontext.plain(about)}
