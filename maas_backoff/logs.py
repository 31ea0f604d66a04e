"""For the logs of programs: records that carry the task they are about, and records as JSON.

The library's own loggers are `maas_backoff.worker`, `.gpu`, `.scheduler`, `.storage`, `.command`, `.embedded`,
`.dashboard`, `.prometheus`, `.otel` and `.output`. Each event of a task is one record, whose `event`, `task_id`,
`attempt` and `token` are attributes (0 where nobody knows), written by whoever brings it about. Params and results are
never logged. A task that failed for good is an ERROR. It has the exception (`exc_info`) if the handler ran in this
process, else the traceback is part of the message.

event             level    when
created           DEBUG    `create_task` or `create_tasks` made a new task
started           DEBUG    an attempt's handler begins
completed         DEBUG    an attempt ended well; INFO: by hand
retried           WARNING  an attempt failed, and another follows; INFO: by a handler's Retry, or by hand
failed            ERROR    the last attempt failed; INFO: by hand
released          DEBUG    an attempt gave its task back: snoozed, not begun in time, or the worker stops
cancelled         DEBUG    an attempt was stopped by request (WARNING: it failed meanwhile); INFO: by hand, at once
too_late          WARNING  an attempt had lost its lease: its outcome does not count
cut_off           WARNING  an attempt is stopped, as its lease could not be renewed in time
left              WARNING  an attempt goes on after the worker's end, until its lease runs out
lost              WARNING  a worker found a lease that ran out, and another attempt follows; ERROR: the task has failed
cancel_requested  INFO     by hand: `cancel_task(running=True)` of a task that runs
taken             INFO     by hand: `mark_task_processing`
requeued          INFO     by hand: `retry_task`; of `retry_tasks` DEBUG, and one INFO with `queue` and no task
moved             INFO     by hand: `update_task`
deleted           INFO     by hand: `delete_task`
purged            INFO     by hand: `purge_tasks`; likewise with `queue`, as the next two
paused, resumed   INFO     by hand
"""

import json
import logging
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from maas_backoff.domain.context import current_task


def about(event: str, task_id: str, attempt: int = 0, token: int = 0) -> dict[str, object]:
    """Return the `extra` of a task's event."""
    return {"event": event, "task_id": task_id, "attempt": attempt, "token": token}


OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes that every record has; what is beyond them was given as `extra`."""


_DEFAULTS: dict[str, object] = {"event": "-", "queue": "-", "token": 0, "child_pid": 0}


class TaskLogFilter(logging.Filter):
    """Gives every record the fields of this library, so that a format may have any of them.

    `task_id` and `attempt` are those of the task whose handler logs the record; "-" and 0 elsewhere. `event`, `queue`
    ("-"), `token` and `child_pid` (0) are those of the library's own records. What a record has already stays.

    To be added to a logging.Handler: `handler.addFilter(TaskLogFilter())`, with `%(task_id)s` in its format.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        fields = vars(record)
        if "task_id" not in fields or "attempt" not in fields:
            task = current_task()
            if task is not None:
                fields.setdefault("task_id", task.task_id)
                if fields["task_id"] == task.task_id:
                    fields.setdefault("attempt", task.attempt)
            fields.setdefault("task_id", "-")
            fields.setdefault("attempt", 0)
        for name, otherwise in _DEFAULTS.items():
            fields.setdefault(name, otherwise)
        return True


def printable(text: object) -> str:
    """Return text with all that a terminal would act on (escapes, line breaks, marks of direction) written out."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in str(text))


class PlainFormatter(logging.Formatter):
    """Writes a record for people: a line, more of its own set in below it; a task's text is shown, and not obeyed."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the lines."""
        record.message = "\n    ".join(map(printable, record.message.splitlines()))
        return super().formatMessage(record)

    def formatException(self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | Any) -> str:  # noqa: N802 - as above
        """Return the traceback."""
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time, level, logger, message, what `extra` gave, and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; what is no JSON value is written as text."""
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: value for name, value in vars(record).items() if name not in OWN_FIELDS}
        for name, filled in _DEFAULTS.items():
            # Filled in by TaskLogFilter, to keep other formats from failing. An event has a token, be it 0.
            if told.get(name) == filled and (name != "token" or "event" not in told):
                del told[name]
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:  # of a child process, which has formatted it
            told["traceback"] = record.exc_text
        return json.dumps(told, default=str)
