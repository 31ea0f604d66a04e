"""For the logs of programs: records that carry the task they are about, and records as JSON.

The library's own loggers are `maas_backoff.worker`, `.gpu`, `.scheduler`, `.command` and `.embedded`; each event of a
task is one record, whose `event`, `task_id`, `attempt` and `token` are attributes. Params and results are never logged.
"""

import json
import logging
from datetime import UTC, datetime

from maas_backoff.domain.context import current_task

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TaskLogFilter(logging.Filter):
    """Gives records `task_id` and `attempt` of the task whose handler logs them; "-" and 0 elsewhere.

    To be added to a logging.Handler: `handler.addFilter(TaskLogFilter())`, with `%(task_id)s` in its format.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if not hasattr(record, "task_id"):
            task = current_task()
            record.task_id = "-" if task is None else task.task_id
            record.attempt = 0 if task is None else task.attempt
        return True


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
        told |= {name: value for name, value in vars(record).items() if name not in _OWN}
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str)
