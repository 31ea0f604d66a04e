"""The handle of a created task."""

from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from typing import Generic, TypeVar

from maas_backoff.client.client import QueueClient
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.stream import StreamPart
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import PayloadError, TaskFailedError, TaskNotFoundError
from maas_backoff.kinds.conversion import Conversion

R_co = TypeVar("R_co", covariant=True)


class TaskHandle(Generic[R_co]):
    """A task of a kind: its id, its state, and its result in the type that the function returns."""

    def __init__(self, task_id: str, client: Callable[[], QueueClient], result: Callable[[], Conversion]) -> None:
        self.task_id: str = task_id
        self._client = client
        self._conversion = result

    def __repr__(self) -> str:
        return f"<TaskHandle of {self.task_id!r}>"

    async def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait until the task is finished, and return what the function returned.

        `timeout` is in seconds, or a timedelta; None waits for ever, 0 looks once. Raises TaskTimeoutError after it,
        and TaskNotFoundError. Raises TaskFailedError if the task is failed or cancelled. Raises PayloadError if the
        result does not fit the type, as after a change of the function.
        """
        task = await self._client().wait(self.task_id, timeout)
        if task.status is not TaskStatus.COMPLETED:
            error, code = ("", None) if task.error is None else (str(task.error), task.error.code)
            raise TaskFailedError(self.task_id, task.status.value, error, code, task.cancel_reason)
        try:
            value: R_co = self._conversion().load(task.result, "result")
        except PayloadError as error:
            error.http_status = 500  # the service has changed; the request was right
            raise
        return value

    def stream(self, *, after: str | None = None) -> AsyncGenerator[StreamPart, None]:
        """Yield the parts that the function emits with `task.emit`, as `scheduler.stream` does."""
        return self._client().follower.stream(self.task_id, after)

    async def cancel(self, *, running: bool = False) -> bool:
        """Cancel the task while it is pending, and with `running` also while it runs, as `cancel_task` does."""
        return await self._client().operations.cancel(self.task_id, running=running)

    async def status(self) -> TaskStatus:
        """Return the state of the task. Raises TaskNotFoundError."""
        return (await self.task()).status

    async def task(self) -> TaskEntity:
        """Return the task as it is now, with its params and result as JSON. Raises TaskNotFoundError."""
        task = await self._client().get(self.task_id)
        if task is None:
            raise TaskNotFoundError(self.task_id)
        return task
