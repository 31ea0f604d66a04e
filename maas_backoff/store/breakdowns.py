"""The history of one queue by kind and by tenant."""

from datetime import timedelta

from maas_backoff.domain.breakdown import LETTERS, Breakdown, By, broken_down
from maas_backoff.domain.waiting import at
from maas_backoff.store import scripts
from maas_backoff.store.codec import now_and_ahead
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.replies import mapping


class Breakdowns:
    """Reads the history by kind and by tenant."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def read(self, by: By, steps: int, minutes: int = 1, name: str = "") -> Breakdown:
        """Return the last steps of 1 or 10 minutes, the present one included. A `name` reads this one only."""
        args = [self._queue.clock, self._queue.keys.prefix, LETTERS[by], minutes, steps, name]
        reply = await self._queue.run(scripts.BREAKDOWN, args)
        now_ms, ahead_ms = now_and_ahead(reply.now)
        step_ms = minutes * 60_000
        begin = now_ms // step_ms
        rows = [
            (
                at((begin - back) * step_ms - ahead_ms),
                {found.decode(): numbers.decode() for found, numbers in mapping(row).items()},
            )
            for back, row in enumerate(reply.steps)
        ]
        return broken_down(by, timedelta(minutes=minutes), rows[::-1], name)
