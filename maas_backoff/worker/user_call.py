"""The call of users' code in an attempt, and the reason why the call is stopped."""

import asyncio

from maas_backoff.domain.outcome import CancelReason
from maas_backoff.worker.cancelling import cancel_call


class UserCall:
    """The call of the handler, and the call of the exception handler that may follow."""

    task: "asyncio.Task[None] | None" = None
    """The asyncio task that calls the handler, then the one that calls the exception handler."""
    began: bool = False
    """Whether `task` has begun. An asyncio task that is cancelled before it begins never runs, and settles nothing."""
    reason: CancelReason | None = None
    """Why the call is stopped, if it is."""
    lingering: asyncio.Event | None = None
    """Set when the thread of the call has ended. None: no thread outlives the call."""

    def cancel(self, reason: CancelReason) -> None:
        """Stop the call. The first reason is kept, except that a lost lease replaces it."""
        if self.reason is None or reason is CancelReason.LEASE_LOST:
            self.reason = reason
            if self.task is not None and self.began:
                cancel_call(self.task)
