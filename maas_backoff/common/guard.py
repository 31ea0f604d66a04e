"""The guard around code that is not ours: it may end its own call, and nothing else.

Such code is backoff callables, log handlers and filters, and whatever the exceptions and values of users do when they
are looked at. executors/call.py does the same for handlers.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger whose handlers and filters may raise: the record is lost, and whoever logs goes on.

    Users' code is called for the text of an exception, too: if that raises, the record is logged without its exception.
    """

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})
        self.isEnabledFor: Callable[[int], bool] = logger.isEnabledFor  # type: ignore[assignment] # asked for each task: one call less

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a record, as `logging.Logger.log` does."""
        if not self.isEnabledFor(level):
            return
        # One frame more than logging's own lies between: the record names the line that logs.
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            self.logger.log(level, msg, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - a log server that is away must not end a loop
            if kwargs.pop("exc_info", None):
                self.log(level, msg, *args, **kwargs)
            else:
                _complain(f"a log handler or filter raised {type(error).__name__}; the record is lost: {msg}")


def log_for(part: str) -> Log:
    """Return the logger `maas_backoff.<part>`."""
    return Log(logging.getLogger(f"maas_backoff.{part}"))


def _complain(text: str) -> None:
    # As logging does with what a handler's emit reports. stderr may be closed, or None.
    if logging.raiseExceptions:
        with suppress(Exception):
            print(text, file=sys.stderr)  # noqa: T201 - logging itself is what has failed


def contained(call: Callable[[], T], otherwise: Callable[[BaseException], T]) -> T:
    """Return what `call` returns, or what `otherwise` makes of the exception that it raised, whatever that is."""
    try:
        return call()
    except BaseException as error:  # noqa: BLE001 - SystemExit of users' code ends its call, not the worker
        return otherwise(error)
