"""A log of faults that last: one record when a fault begins, and one when it is over."""

import logging

from maas_backoff.common.guard import Log


class FaultLog:
    """The faults that were logged and are not over."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._said: dict[str, str] = {}

    def begins(self, what: str, text: str, level: int = logging.WARNING) -> None:
        """Log a fault of `what` when it comes, and not each time that it is met again."""
        if self._said.get(what) != text:
            self._said[what] = text
            self._log.log(level, "%s", text)

    def is_over(self, what: str) -> None:
        """Log that a fault of `what` is over, if it was logged."""
        if (text := self._said.pop(what, None)) is not None:
            self._log.info("over: %s", text)
