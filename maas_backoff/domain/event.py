"""The events of `watch`."""

import hashlib

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.task import TaskEntity


@attrs.frozen
class TaskEvent:
    """A task after a change. `id` changes with status, attempt, progress, due time and error."""

    id: str
    task: TaskEntity

    @classmethod
    def of(cls, task: TaskEntity) -> "TaskEvent":
        """Return the event of a task in its present state."""
        state = (task.status, task.attempt, task.progress, task.progress_message, task.next_execute_time, task.error)
        return cls(hashlib.blake2b(repr(state).encode(), digest_size=8).hexdigest(), task)

    def to_sse(self) -> dict[str, str]:
        """Return the event for `sse_starlette.EventSourceResponse`: the state is its name, the task its data.

        The task comes without its params. A client that reconnects sends the id as `Last-Event-ID`.
        """
        about = {name: value for name, value in self.task.to_dict().items() if name != "task_params"}
        return {"id": self.id, "event": self.task.status.value, "data": jsontext.plain(about)}
