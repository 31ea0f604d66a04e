"""The guard around users' code: an exception there ends the code's own call, and nothing else.

Users' code is backoff callables, log handlers and filters, and the methods of users' exceptions and values.
executors/call.py does the same for handlers.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose handlers and filters may raise: the record is lost, and the caller goes on.

    The text of an exception calls users' code, too. If that raises, the record is logged without its exception.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})
        self.isEnabledFor: Callable[[int], bool] = logger.isEnabledFor  # type: ignore[assignment] # asked for each task: one call less

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a record, as `logging.Logger.log` does."""
        if not self.isEnabledFor(level):
            return
        # One frame more: the record then names the line of the caller.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            self.logger.log(level, msg, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - an unreachable log server must not end a loop
            if kwargs.pop("exc_info", None):
                self.log(level, msg, *args, **kwargs)
            else:
                _complain(f"a log handler or filter raised {type(error).__name__}; the record is lost: {msg}")


def log_for(part: str) -> Log:
    """Return the logger `maas_backoff.<part>`."""
    return Log(logging.getLogger(f"maas_backoff.{part}"))


def _complain(text: str) -> None:
    # Like logging.Handler.handleError. stderr may be closed, or None.
    if logging.raiseExceptions:
        with suppress(Exception):
            print(text, file=sys.stderr)  # noqa: T201 - logging itself has failed


def contained(call: Callable[[], T], otherwise: Callable[[BaseException], T]) -> T:
    """Return the result of `call`, or of `otherwise(error)` if it raised any exception."""
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 - SystemExit of users' code ends its call, not the worker
        return otherwise(error)
