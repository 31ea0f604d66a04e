"""The settlements of a worker that wait to be sent."""

from collections import deque

from maas_backoff.domain.jsontext import size_of
from maas_backoff.store.batch import Settle
from maas_backoff.worker.attempt import Attempt

MOST_SETTLES = 100
"""The most settlements in one batch request: its script runs for 1 to 2 ms."""

MOST_BYTES = 4 * 1_048_576
"""The approximate size of results and new params in one batch request; a hundred large ones would delay the server."""


class Outbox:
    """Settlements in the order in which their attempts ended, each with its attempt."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Settle, Attempt]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, settle: Settle, attempt: Attempt) -> None:
        """Add a settlement for the next batch request."""
        self._waiting.append((settle, attempt))

    def take(self) -> tuple[list[Settle], list[Attempt]]:
        """Remove and return the settlements for one batch request, and their attempts: at least one if there is any."""
        settles: list[Settle] = []
        attempts: list[Attempt] = []
        size = 0
        while self._waiting and len(settles) < MOST_SETTLES and size < MOST_BYTES:
            settle, attempt = self._waiting.popleft()
            settles.append(settle)
            attempts.append(attempt)
            settlement = settle.settlement
            if settlement.result is not None:
                size += size_of(settlement.result)
            if settlement.params is not None:
                size += size_of(settlement.params)
        return settles, attempts
