"""The log of a command on stderr."""

import logging
import sys
from collections.abc import Callable
from typing import Protocol

from maas_backoff.logs import JsonFormatter, PlainFormatter, TaskLogFilter

LEVELS = ("debug", "info", "warning", "error")


class Stream(Protocol):
    """The part of a text stream that a log needs."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


def log_to_stderr(
    level: str,
    form: str = "plain",
    *,
    stream: Stream | None = None,
    keep: Callable[[logging.LogRecord], bool] | None = None,
) -> None:
    """Log to stderr, or to `stream`: lines of text for people, or of JSON if `form` is "json".

    `keep` returns whether a record is written. Has no effect if the module of the scheduler has configured logging.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    plain = PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    if keep is not None:
        handler.addFilter(keep)
    handler.addFilter(TaskLogFilter())  # adds `event` to all records
    logging.basicConfig(level=level.upper(), handlers=[handler])
