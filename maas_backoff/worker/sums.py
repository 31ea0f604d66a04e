"""The settles of a worker that the server has accepted, added up for the history by kind and by tenant."""

import asyncio
from collections.abc import Sequence

from maas_backoff.domain.breakdown import CANCELLED, column_of, sum_line
from maas_backoff.store.batch import ACCEPTED, Settle
from maas_backoff.worker.attempt import Attempt

MOST_LINES = 500
"""The most names in one call: 1 to 2 ms of the server's time."""


class SettleSums:
    """The sums of each kind and of each tenant since the last call that sent them.

    A line for each settle would cost the server some 3 us.
    """

    def __init__(self) -> None:
        self.waiting: asyncio.Event = asyncio.Event()
        """Set when there are sums to send."""
        self._sums: dict[tuple[str, str], list[float]] = {}

    def add(self, attempts: Sequence[Attempt], settles: Sequence[Settle], answers: Sequence[str]) -> None:
        """Add the settles of attempts that the server has accepted."""
        for attempt, settle, answer in zip(attempts, settles, answers, strict=True):
            task = attempt.task
            if (task.kind or task.tenant) and answer in ACCEPTED:
                column = column_of(settle.settlement, settle.counts, answer)
                if column is not None:
                    seconds = 0.0 if column == CANCELLED else attempt.ran or 0.0
                    self._count("k", task.kind, column, seconds)
                    self._count("t", task.tenant, column, seconds)

    def _count(self, of: str, name: str, column: int, seconds: float) -> None:
        if not name:
            return
        numbers = self._sums.get((of, name))
        if numbers is None:
            numbers = self._sums[of, name] = [0, 0, 0, 0, 0.0]
            self.waiting.set()
        numbers[column] += 1
        numbers[-1] += seconds

    def take(self) -> str:
        """Return the sums as lines for settle.lua, at most MOST_LINES, and forget them."""
        names = [*self._sums][:MOST_LINES]
        lines = [sum_line(*name, self._sums.pop(name)) for name in names]
        if not self._sums:
            self.waiting.clear()
        return "\n".join(lines)
