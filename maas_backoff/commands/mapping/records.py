"""The lines of the output: one JSON object for each line of the input."""

import json
import re
from typing import Final

import attrs

from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity

COMPLETED: Final = TaskStatus.COMPLETED.value
INVALID: Final = "invalid"
"""The status of a line of which no task could be made."""

_LINE = re.compile(rb'\{"line": (\d{1,18}), ')
_STATUS = re.compile(rb'[a-z]{1,20}(?=", ")')
_encode = json.JSONEncoder(ensure_ascii=False).encode
_SEPARATORS = str.maketrans({mark: f"\\u{ord(mark):04x}" for mark in "\x85\u2028\u2029"})
"""Some programs take these for ends of lines. They stand in texts of JSON only, where the escape means the same."""


@attrs.frozen
class Record:
    """One line of the output: the number of the input's line, from 1 on, its status, and the bytes with the newline."""

    line: int
    status: str
    text: bytes = attrs.field(repr=False)


def task_id_of(prefix: str, line: int) -> str:
    """Return the id of the task of a line."""
    return f"{prefix}-{line}"


def of_task(line: int, task: TaskEntity) -> Record:
    """Return the record of a finished task."""
    if task.status is TaskStatus.COMPLETED:
        return _record(line, task.task_id, COMPLETED, {"result": task.result})
    error = task.error
    why: tuple[str, str, int | None]
    if task.status is TaskStatus.CANCELLED:
        after = "" if error is None else f", after {error}"
        why = ("cancelled", f"{task.cancel_reason or 'requested'}{after}", None)
    else:
        why = ("failed", "", None) if error is None else (error.type, error.message, error.code)
    return _record(line, task.task_id, task.status.value, {"error": dict(zip(_ERROR, why, strict=True))})


def of_error(line: int, task_id: str, status: str, kind: str, message: str) -> Record:
    """Return the record of a line without a finished task. `kind` is the type of the error."""
    return _record(line, task_id, status, {"error": dict(zip(_ERROR, (kind, message, None), strict=True))})


_ERROR = ("type", "message", "code")


def read(text: bytes, prefix: str) -> Record | None:
    """Return the record, without its text, that a run with the same `prefix` has written; None for another text."""
    found = _LINE.match(text)
    if found is None or not text.endswith(b"}\n"):
        return None
    line = int(found[1])
    head = _head(line, task_id_of(prefix, line))
    status = _STATUS.match(text, len(head))
    return Record(line, status[0].decode(), b"") if status is not None and text.startswith(head) else None


def _record(line: int, task_id: str, status: str, outcome: dict[str, object]) -> Record:
    text = f'{status}", {_encode(outcome)[1:]}\n'
    if not text.isascii():
        text = text.translate(_SEPARATORS)
    return Record(line, status, _head(line, task_id) + text.encode())


def _head(line: int, task_id: str) -> bytes:
    return f'{{"line": {line}, "task_id": {json.dumps(task_id)}, "status": "'.encode()
