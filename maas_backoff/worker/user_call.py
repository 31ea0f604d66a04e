"""The call of users' code in an attempt: its asyncio task, its time limit, and the reason why it is stopped."""

import asyncio
import math
import time
from collections.abc import Callable

from maas_backoff.domain.outcome import CancelReason
from maas_backoff.worker.cancelling import cancel_call


class UserCall:
    """The call of the handler, and the call of the exception handler that may follow.

    Attempt inherits from this class. It does not hold an object of it: one more object for each attempt made the
    garbage collector take 8 us more of each task.
    """

    call: "asyncio.Task[None] | None" = None
    """The asyncio task that calls the handler, then the one that calls the exception handler."""
    began: bool = False
    """Whether `call` has begun. An asyncio task that is cancelled before it begins never runs, and settles nothing."""
    reason: CancelReason | None = None
    """Why the call is stopped, if it is."""
    lingering: asyncio.Event | None = None
    """Set when the thread of the call has ended. None: no thread outlives the call."""
    started_at: float | None = None
    """When the handler began, by time.monotonic()."""
    ends_by: float = math.inf
    """The deadline of the task, by time.monotonic(): no call goes on then."""
    deadline: float = math.inf
    """The end of the allowed time, by time.monotonic(); infinite before the handler begins."""

    def __init__(self, timeout: float, watch: Callable[[float], None]) -> None:
        """Allow `timeout` seconds, and call `watch` with the deadline when the handler begins.

        `watch` must not reference the call: that would create a reference cycle.
        """
        self.timeout = timeout
        self._watch = watch

    def start_time(self) -> None:
        """Start the time: the handler begins now."""
        self.started_at = time.monotonic()
        self.deadline = self.started_at + self.timeout
        if self.ends_by < self.deadline:  # noqa: PLR1730 - min() would take 0.4 us of each attempt
            self.deadline = self.ends_by
        self._watch(self.deadline)

    def extend_time(self) -> None:
        """Give the exception handler as much time as the handler had; the lease is renewed as long."""
        self.deadline = min(time.monotonic() + self.timeout, self.ends_by)

    def lingers(self, ended: asyncio.Event) -> None:
        """Note that the thread cannot be stopped; the slot stays taken until `ended` is set."""
        self.lingering = ended

    def cancel(self, reason: CancelReason) -> None:
        """Stop the call. The first reason is kept, except that a lost lease replaces it."""
        if self.reason is None or reason is CancelReason.LEASE_LOST:
            self.reason = reason
            if self.call is not None and self.began:
                cancel_call(self.call)
