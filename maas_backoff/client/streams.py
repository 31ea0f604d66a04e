"""The calls on what tasks emit: their streams and their logs."""

from collections.abc import AsyncGenerator

from maas_backoff.client.part import CallsPart
from maas_backoff.domain.stream import LogLine, StreamPart


class StreamCalls(CallsPart):
    """The part of TaskBackoffScheduler that reads what handlers emit."""

    def stream(self, task_id: str, *, after: str | None = None) -> AsyncGenerator[StreamPart, None]:
        """Yield the parts that the task's handler emits with `task.emit`, in order, until the task is finished.

        `async for part in scheduler.stream(task_id):` reads in any process, any number of times, from the first part
        on. `after` is the id of the last part that was received, for example before a lost connection: the next part
        comes after it. Parts can be read as long as the task is kept. If a later attempt begins the stream anew, a part
        with `restarted` comes first: whatever was received before is void.

        Raises InvalidValueError at once for an `after` that is no id of a part, and TaskNotFoundError with the first
        part, also if the task is deleted meanwhile.
        """
        return self._client.follower.stream(task_id, after)

    def logs(
        self, task_id: str, *, after: str | None = None, last: int | None = None, follow: bool = False
    ) -> AsyncGenerator[LogLine, None]:
        """Yield the lines that the task's handler has logged with `task.log`, in order, of all attempts.

        About the last 1,000 lines of a task are kept, as long as the task. `after` is the id of the last line that was
        received, and `last` (1 to 1,000) leaves out all lines before the last ones. With `follow`, lines are yielded as
        they come, until the task is finished. Errors as for `stream`.
        """
        return self._client.follower.logs(task_id, after, last, follow=follow)
