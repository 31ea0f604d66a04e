"""The reads of single tasks: those that meet travel together."""

from collections.abc import Sequence
from functools import partial

from maas_backoff.client.gathering import Gathering, with_own_errors
from maas_backoff.domain.task import TaskEntity
from maas_backoff.store.reader import Look, Reader

MOST_READS = 100
"""Tasks in one call: below 1 ms of the server's time, and about 3 ms of the event loop's."""


class TaskReader:
    """Reads the tasks of one queue, one for each caller. Raises StorageError."""

    def __init__(self, reader: Reader, timeout: float, watch: float) -> None:
        """Take the seconds that a caller waits for its answer, and the seconds of a watch."""
        self._reader = reader
        self._reads: Gathering[str, Look] = Gathering(self._read, timeout, MOST_READS)
        # A watch writes. The server may refuse that when it answers reads: the two never travel together.
        self._watches: Gathering[str, Look] = Gathering(partial(self._read, watch=watch), timeout, MOST_READS)

    async def get(self, task_id: str) -> TaskEntity | None:
        return (await self._reads.ask(task_id)).task

    async def look(self, task_id: str) -> Look:
        """Return a task with its policy."""
        return await self._reads.ask(task_id)

    async def watch(self, task_id: str) -> Look:
        """Return a task, and when it expires. Its changes are published from now on, for the seconds of a watch."""
        return await self._watches.ask(task_id)

    async def aclose(self) -> None:
        """Wait for the calls on their way."""
        await self._reads.aclose()
        await self._watches.aclose()

    async def _read(self, task_ids: Sequence[str], deadline: float, *, watch: float = 0) -> Sequence[Look | Exception]:
        return await with_own_errors(lambda ids: self._reader.get_first(ids, deadline, watch=watch), task_ids)
