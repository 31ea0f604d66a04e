"""The task of one line: made of the line's text, created, awaited, and turned into a record."""

import json
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio

from maas_backoff.commands.mapping.records import INVALID, Record, of_error, of_task, task_id_of
from maas_backoff.commands.mapping.source import InputLine
from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import (
    InvalidValueError,
    QueueFullError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    TaskConflictError,
    TaskNotFoundError,
)
from maas_backoff.scheduler import TaskBackoffScheduler

if TYPE_CHECKING:
    from maas_backoff.kinds.kind import TaskKind

log: Log = log_for("command")

OUTAGE = 300.0
"""Seconds for which the server may be away, or out of memory, before a run ends."""

PAUSE = 1.0
"""Seconds before a call is repeated that the server did not answer or refused for want of room."""

SHOWN = 20
"""Lines without a task that the log names."""

MOST_CREATES = 3
"""Creations of the task of one line. A finished task may be deleted before it is read."""

_R = TypeVar("_R")


class _InvalidLineError(Exception):
    """Raised for a line of which no task can be made. The message does not show the line."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class LineTasks:
    """Runs the tasks of lines. `prefix` and the number of a line make the id of its task."""

    def __init__(
        self, scheduler: TaskBackoffScheduler, prefix: str, kind: "TaskKind[..., Any] | None", *, is_text: bool
    ) -> None:
        """`kind`: the lines have its arguments; None: the params. `is_text`: a line is the text of `{"text": …}`."""
        self._scheduler = scheduler
        self._prefix = prefix
        self._kind = kind
        self._is_text = is_text
        self._invalid_count = 0

    def _invalid(self, line: int, kind: str, message: str) -> Record:
        self._invalid_count += 1
        if self._invalid_count <= SHOWN:
            more = "; more such lines are not shown" if self._invalid_count == SHOWN else ""
            log.warning("line %d: %s%s", line, message, more)
        return of_error(line, task_id_of(self._prefix, line), INVALID, kind, message)

    async def record(self, line: InputLine) -> Record:
        """Create the task of a line if there is none yet, and return its record when it is finished.

        Raises StorageError if the server is away for long.
        """
        try:
            return await self._record(line.number, self._params(line.content))
        except _InvalidLineError as error:
            return self._invalid(line.number, error.kind, str(error))
        except TaskConflictError:
            other = "the queue has a task with this id and other params: choose another --id"
            return self._invalid(line.number, "conflict", other)
        except InvalidValueError as error:
            return self._invalid(line.number, "bad_arguments", str(error))

    async def _record(self, line: int, params: dict[str, object]) -> Record:
        task_id = task_id_of(self._prefix, line)
        for _ in range(MOST_CREATES):
            await _patiently(lambda: self._create(task_id, params))
            try:
                return of_task(line, await _patiently(lambda: self._scheduler.wait_task(task_id)))
            except TaskNotFoundError:
                continue
        gone = "the task was deleted, or its result_ttl was over, before its result was read"
        return of_error(line, task_id, TaskStatus.FAILED, "not_found", gone)

    async def _create(self, task_id: str, params: dict[str, object]) -> object:
        if self._kind is None:
            return await self._scheduler.create_task(params, task_id)
        signature = self._kind.declaration.signature
        signature.check_names(params)
        args, kwargs = signature.arguments_of(params)
        return await self._kind.options(task_id=task_id).create(*args, **kwargs)

    def _params(self, content: bytes | None) -> dict[str, object]:
        if content is None:
            raise _InvalidLineError("too_long", "the line is longer than max_payload_bytes allows")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise _InvalidLineError("not_utf8", f"the line is not UTF-8 text: byte {error.start}") from None
        if self._is_text:
            return {"text": text.removesuffix("\r")}
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise _InvalidLineError("not_json", f"the line is not JSON: {error.msg}: column {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number with thousands of digits, or deep nesting
            raise _InvalidLineError("not_json", f"the line is not JSON: {type(error).__name__}") from None
        if not isinstance(value, dict):
            raise _InvalidLineError("not_json", f"expected a JSON object, got {type(value).__name__}")
        return cast("dict[str, object]", value)

    async def task(self, line: int) -> TaskEntity | None:
        """Return the task of a line as it is now; None if there is none. Raises StorageError."""
        return await self._scheduler.get_task(task_id_of(self._prefix, line))

    async def ended(self, line: int, *, is_stopping: bool) -> Record | None:
        """Return the record of a line if its task is finished, else None.

        `is_stopping`: a worker of this process stops, so wait while the task runs.
        """
        try:
            async with aclosing(self._scheduler.watch(task_id_of(self._prefix, line))) as events:
                async for event in events:
                    if event.task.status.finished:
                        return of_task(line, event.task)
                    if not is_stopping or event.task.status is TaskStatus.PENDING:
                        return None
        except (StorageError, TaskNotFoundError):
            pass
        return None


async def _patiently(call: Callable[[], Awaitable[_R]]) -> _R:
    """Repeat a call until the server answers it and has room."""
    until = time.monotonic() + OUTAGE
    while True:
        try:
            return await call()
        except QueueFullError:  # it has room when tasks are finished
            until = time.monotonic() + OUTAGE
        except (StorageUnavailableError, StorageFullError):
            if time.monotonic() >= until:
                raise
        await anyio.sleep(PAUSE)
