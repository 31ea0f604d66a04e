"""The log of a command on stderr."""

import codecs
import logging
import sys
from collections.abc import Callable
from typing import Protocol

from maas_backoff.common.guard import Log, log_for
from maas_backoff.logs import JsonFormatter, PlainFormatter, TaskLogFilter

log: Log = log_for("command")

LEVELS = ("debug", "info", "warning", "error")


class Stream(Protocol):
    """The part of a text stream that a log needs."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...


def log_to_stderr(
    level: str | None,
    form: str | None = None,
    *,
    stream: Stream | None = None,
    keep: Callable[[logging.LogRecord], bool] | None = None,
) -> None:
    """Log to stderr, or to `stream`: lines of text for people, or of JSON if `form` is "json".

    `keep` returns whether a record is written. None stands for "info" and for "plain". If the module of the scheduler
    has configured logging, a level that was given is set, and a form is given to the handlers of stderr and stdout.
    """
    if logging.root.handlers:
        _reconfigure(level, form)
        return
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(_formatter(form, handler))
    if keep is not None:
        handler.addFilter(keep)
    handler.addFilter(TaskLogFilter())  # adds `event` to all records
    logging.basicConfig(level=(level or "info").upper(), handlers=[handler])


def _reconfigure(level: str | None, form: str | None) -> None:
    if level is not None:
        logging.root.setLevel(level.upper())
    if form is None:
        return
    ours = [one for one in logging.root.handlers if getattr(one, "stream", None) in {sys.stderr, sys.stdout}]
    for handler in ours:
        handler.setFormatter(_formatter(form, handler))
        handler.addFilter(TaskLogFilter())
    if not ours:
        why = "the module of the scheduler has set up logging, and has no handler for stderr or stdout"
        log.warning("--log-format %s has no effect: %s", form, why)


def _formatter(form: str | None, handler: logging.Handler) -> logging.Formatter:
    if form != "json":
        return PlainFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    encoding = getattr(getattr(handler, "stream", None), "encoding", None) or "utf-8"
    return JsonFormatter(ascii_only=codecs.lookup(encoding).name != "utf-8")
