"""The log records of programs: a filter that adds the task, and formatters for people and for JSON.

The library's own loggers are `maas_backoff.worker`, `.gpu`, `.scheduler`, `.storage`, `.command`, `.embedded`,
`.dashboard`, `.prometheus`, `.otel` and `.output`. Each event of a task is one record with the attributes `event`,
`task_id`, `attempt` and `token` (0 if unknown). The process that causes the event writes the record. Params and results
are never logged. A failed task is an ERROR. The record has the exception (`exc_info`) if the handler ran in this
process, else the message has the traceback.

A record about the end of an attempt also has `queue`, `worker`, `duration` (seconds of the handler, if it began) and
`error_type` (if it failed). With tracing, records have `trace_id` and `span_id`.

event             level    when
created           DEBUG    `create_task` or `create_tasks` made a new task
started           DEBUG    an attempt's handler begins
completed         DEBUG    an attempt succeeded; INFO: by an operation
retried           WARNING  an attempt failed, and another follows; INFO: by a handler's Retry, or by an operation
failed            ERROR    the last attempt failed; INFO: by an operation
released          DEBUG    an attempt gave its task back: snoozed, not started in time, or the worker stops
cancelled         DEBUG    an attempt was stopped by request (WARNING: it failed meanwhile); INFO: by an operation
too_late          WARNING  an attempt had lost its lease: its outcome does not count
cut_off           WARNING  an attempt is stopped, because its lease could not be renewed in time
ignores_cancel    WARNING  an attempt goes on 5 s after its timeout, or another cancel
hook_failed       ERROR    a hook of `around_attempt` failed after its handler; the outcome is kept
left              WARNING  an attempt goes on after the worker's end, until its lease runs out
lost              WARNING  a worker found a lease that ran out, and another attempt follows; ERROR: the task has failed
cancel_requested  INFO     `cancel_task(running=True)` of a running task
taken             INFO     `mark_task_processing`
requeued          INFO     `retry_task`
moved             INFO     `update_task`
deleted           INFO     `delete_task`
purged            INFO     `purge_tasks`, with `queue` and no task
paused, resumed   INFO     `pause` and `resume`, with `queue` and no task
quieted           INFO     `quiet_workers`; `unquieted` with `on=False`
gpu_quarantined   WARNING  `quarantine_gpu`; `gpu_released` by `release_gpu`

A call on a Selection writes DEBUG for each task, with its event, and one INFO with `queue` and no task.
"""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from maas_backoff.domain.context import current_task


def trace_ids() -> dict[str, str]:
    """Return `trace_id` and `span_id` of OpenTelemetry's current span as hexadecimal digits; nothing without a span.

    Imports nothing: a program without tracing has not loaded OpenTelemetry.
    """
    trace: Any = sys.modules.get("opentelemetry.trace")
    try:
        context = None if trace is None else trace.get_current_span().get_span_context()
    except Exception:  # noqa: BLE001 - a record is written without a trace, too
        context = None
    if context is None or not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}


def about(event: str, task_id: str, attempt: int = 0, token: int = 0) -> dict[str, object]:
    """Return the `extra` of a task's event."""
    return {"event": event, "task_id": task_id, "attempt": attempt, "token": token}


OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes of every record. Other attributes come from `extra`."""


_DEFAULTS: dict[str, object] = {
    **dict.fromkeys(("event", "queue", "worker", "trace_id", "span_id"), "-"),
    **dict.fromkeys(("token", "child_pid"), 0),
}

_UNPRINTABLE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal would act on, that end a line, or that UTF-8 has no bytes for."""


class TaskLogFilter(logging.Filter):
    """A filter that adds the fields of this library to every record, so that a format may use them.

    `task_id`, `attempt` and `queue` come from the task whose handler logs the record; "-" and 0 elsewhere. `event`,
    `worker` ("-"), `token` and `child_pid` (0) come from the library's own records. `trace_id` and `span_id` ("-") are
    those of OpenTelemetry's current span. Existing fields of a record stay.

    Add it to a logging.Handler: `handler.addFilter(TaskLogFilter())`, with `%(task_id)s` in its format.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; return True."""
        fields = vars(record)
        if "task_id" not in fields or "attempt" not in fields:
            task = current_task()
            if task is not None:
                fields.setdefault("task_id", task.task_id)
                if fields["task_id"] == task.task_id:
                    fields.setdefault("attempt", task.attempt)
                    fields.setdefault("queue", task.biz_prefix)
            fields.setdefault("task_id", "-")
            fields.setdefault("attempt", 0)
        if "trace_id" not in fields:
            fields.update(trace_ids())
        for name, otherwise in _DEFAULTS.items():
            fields.setdefault(name, otherwise)
        return True


def printable(text: object) -> str:
    """Return text with the control characters of a terminal (escapes, line breaks, marks of direction) escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(text))


class PlainFormatter(logging.Formatter):
    """A formatter for people: further lines of a message are indented, and control characters are escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the lines of a record."""
        record.message = "\n    ".join(map(printable, record.message.splitlines()))
        return super().formatMessage(record)

    def formatException(self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | Any) -> str:  # noqa: N802 - as above
        """Return the lines of a traceback."""
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


class JsonFormatter(logging.Formatter):
    """A formatter that writes a record as one line of JSON: time, level, logger, message, `extra`, traceback.

    Letters of all languages are written as they are, so that a search finds them. `ascii_only=True` escapes them, for a
    stream that is not UTF-8.
    """

    def __init__(self, *, ascii_only: bool = False) -> None:
        """Take whether only ASCII is written; the default is False."""
        super().__init__()
        self._ascii_only = ascii_only

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A value that is not JSON is written as text."""
        values: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        values |= {name: value for name, value in vars(record).items() if name not in OWN_FIELDS}
        for name, filled in _DEFAULTS.items():
            # TaskLogFilter sets these for other formats. An event has a token, even 0.
            if values.get(name) == filled and (name != "token" or "event" not in values):
                del values[name]
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:  # from a child process, which has formatted it
            values["traceback"] = record.exc_text
        line = json.dumps(values, default=str, ensure_ascii=self._ascii_only)
        return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)
