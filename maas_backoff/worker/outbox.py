"""The settlements of a worker that were not sent yet."""

from collections import deque

from maas_backoff.domain.jsontext import size_of
from maas_backoff.store.batch import Settle
from maas_backoff.worker.attempt import Attempt

MOST_SETTLES = 100
"""Settlements in one request: a script call of 1 to 2 ms."""

MOST_BYTES = 4 * 1_048_576
"""Results and new params in one request, about; a hundred large ones would hold up the server."""


class Outbox:
    """Settlements in the order of their attempts' ends, each with its attempt."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Settle, Attempt]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, settle: Settle, attempt: Attempt) -> None:
        """Have a settlement sent with the next request."""
        self._waiting.append((settle, attempt))

    def take(self) -> tuple[list[Settle], list[Attempt]]:
        """Take the settlements, and their attempts, that one request may carry: one at least, if there is any."""
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
