"""The moment at which the next attempt of a worker must be stopped: its timeout or its lease is over."""

import asyncio
import math
from collections.abc import Callable, Iterable

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.outcome import CancelReason
from maas_backoff.worker.attempt import Attempt

log: Log = log_for("worker")


class Deadlines:
    """The earliest moment, by time.monotonic(), at which an attempt must be stopped: one timer for all attempts."""

    def __init__(self, *, by_lease: bool, stops: Callable[[str], bool] | None = None) -> None:
        """`by_lease`: attempts are stopped with their lease. Threads cannot be stopped, and their outcome may count.

        `stops` returns whether attempts of a kind can be stopped; None: all or none can.
        """
        self.by_lease = by_lease
        self._stops = stops
        self.next: float = math.inf
        self.earlier: asyncio.Event = asyncio.Event()
        """Set when `next` has become earlier."""

    def watch(self, moment: float) -> None:
        """Have the attempts checked at `moment`, by time.monotonic(), at the latest."""
        if moment < self.next:
            self.next = moment
            self.earlier.set()

    def stop_overdue(self, attempts: Iterable[Attempt], now: float) -> None:
        """Cancel the attempts whose timeout or lease is over, and find the next such moment."""
        self.next = math.inf
        for attempt in attempts:
            if attempt.over or attempt.reason is not None:
                continue
            by_lease = self.by_lease and (self._stops is None or self._stops(attempt.task.kind))
            lease_until = attempt.lease.until if by_lease else math.inf
            if attempt.deadline <= now:
                attempt.cancel(CancelReason.TIMEOUT)
            elif lease_until <= now:
                log.warning(
                    "task %r: attempt %d is stopped: its lease could not be renewed",
                    *(attempt.task.task_id, attempt.task.attempt),
                    extra=attempt.about("cut_off"),
                )
                attempt.cancel(CancelReason.CUT_OFF)
            else:
                self.next = min(self.next, attempt.deadline, lease_until)
