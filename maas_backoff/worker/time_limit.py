"""The time that an attempt may take."""

import math
import time
from collections.abc import Callable


class TimeLimit:
    """The timeout of one attempt, and the deadline since the handler began."""

    started_at: float | None = None
    """When the handler began, by time.monotonic()."""
    deadline: float = math.inf
    """The end of the allowed time, by time.monotonic(); infinite before the handler begins."""

    def __init__(self, timeout: float, watch: Callable[[float], None]) -> None:
        """Allow `timeout` seconds, and call `watch` with the deadline when the handler begins.

        `watch` must not reference the attempt: that would create a reference cycle.
        """
        self.timeout = timeout
        self._watch = watch

    def start(self) -> None:
        """Start the time: the handler begins now."""
        self.started_at = time.monotonic()
        self.deadline = self.started_at + self.timeout
        self._watch(self.deadline)

    def extend(self) -> None:
        """Give the exception handler as much time as the handler had; the lease is renewed as long."""
        self.deadline = time.monotonic() + self.timeout
