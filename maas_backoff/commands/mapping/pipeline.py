"""The lines of one run, from the input to the output: at most so many of them are in flight."""

from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from itertools import takewhile
from typing import cast

import anyio
import attrs
from anyio import to_thread
from anyio.abc import TaskGroup

from maas_backoff.commands.mapping.output import Output
from maas_backoff.commands.mapping.records import Record
from maas_backoff.commands.mapping.source import InputLine, Source
from maas_backoff.commands.mapping.tasks import LineTasks


@attrs.define(eq=False)
class _Line:
    number: int
    record: Record | None = None


class Pipeline:
    """Reads lines, runs their tasks, and writes the results in the order of the lines.

    Each line has an asyncio task of its own. Lines in flight are those that are read and not written.
    """

    def __init__(self, source: Source, output: Output, tasks: LineTasks, in_flight: int) -> None:
        """`in_flight` is the most lines in flight."""
        self.is_done: bool = False
        """Whether all lines are written."""
        self._source = source
        self._output = output
        self._tasks = tasks
        self._room = anyio.Semaphore(in_flight)
        self._window = deque[_Line]()
        self._all_read = False
        self._changed = anyio.Event()
        self._one_write = anyio.CapacityLimiter(1)

    @property
    def head(self) -> int | None:
        """The number of the line whose result is written next; None if no line is in flight."""
        return self._window[0].number if self._window else None

    @property
    def in_flight(self) -> int:
        """The number of lines in flight."""
        return len(self._window)

    async def run(self, beside: Callable[[], Coroutine[object, object, object]], *, grace: float) -> None:
        """Run all lines, and `beside` as long. Raises UsageError for a changed input, OSError and StorageError.

        After a cancel, write the lines whose tasks end within `grace` seconds, as far as none before is missing. With
        0 seconds, tasks that run are not waited for.
        """
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(beside)
                group.start_soon(self._read, group)
                await self._write_all()
                group.cancel_scope.cancel()
            await to_thread.run_sync(self._output.finish, limiter=self._one_write)
            self.is_done = True
        except BaseExceptionGroup as errors:
            raise _first_of(errors) from None
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self._write_ended(grace)
            raise

    async def _read(self, group: TaskGroup) -> None:
        first = self._output.last + 1
        async with aclosing(self._source.lines()) as chunks:
            async for lines in chunks:
                for line in lines:
                    if line.number >= first and (line.content is None or line.content.strip()):
                        await self._room.acquire()
                        own = _Line(line.number)
                        self._window.append(own)
                        group.start_soon(self._run_line, own, line)
        self._all_read = True
        self._changed.set()

    async def _run_line(self, own: _Line, line: InputLine) -> None:
        own.record = await self._tasks.record(line)
        if self._window[0] is own:
            self._changed.set()

    async def _write_all(self) -> None:
        while self._window or not self._all_read:
            ended = list(takewhile(lambda line: line.record is not None, self._window))
            if ended:
                await self._write(ended)
            else:
                await self._changed.wait()
                self._changed = anyio.Event()

    async def _write(self, ended: list[_Line]) -> None:
        """Write the first lines of the window, and only then take them out of the window: a cancel may come between."""
        records = [line.record for line in ended if line.record is not None]
        await to_thread.run_sync(self._output.write, records, limiter=self._one_write)
        for _ in ended:
            self._window.popleft()
            self._room.release()

    async def _write_ended(self, grace: float) -> None:
        with anyio.move_on_after(grace or SHORT_GRACE):
            for line in self._window:
                if line.record is None:
                    line.record = await self._tasks.ended(line.number, is_stopping=grace > 0)
                if line.record is None:
                    break
        ended = list(takewhile(lambda line: line.record is not None, self._window))
        if ended:
            await self._write(ended)


SHORT_GRACE = 2.0
"""Seconds in which the tasks of the lines in flight are read after a cancel, without waiting for any."""


def _first_of(errors: BaseException) -> BaseException:
    """Return the first of the errors of many lines, which mostly have the same cause."""
    while isinstance(errors, BaseExceptionGroup):
        errors = cast("BaseExceptionGroup[BaseException]", errors).exceptions[0]
    return errors
