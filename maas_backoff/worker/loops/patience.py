"""The pauses of a loop while the server does not answer: without end, with jittered backoff."""

import random

import anyio

from maas_backoff.store.outage import Outage

LONGEST_PAUSE = 5.0


class Patience:
    """Counts the failures of one loop in a row. An outage is logged once for all loops."""

    def __init__(self, who: str, outage: Outage) -> None:
        """`who` names the loop in the log."""
        self._who = who
        self._outage = outage
        self._failures = 0

    async def after(self, error: Exception) -> None:
        """Note a failure, and wait 0.1 to 5 seconds, at random, and longer after each failure."""
        self.failed(error)
        await anyio.sleep(random.uniform(0.5, 1) * min(0.1 * 2 ** min(self._failures, 10), LONGEST_PAUSE))  # noqa: S311 - spreads reconnects

    def failed(self, error: Exception) -> None:
        """Note a failure."""
        self._failures += 1
        self._outage.failed(self._who, error)

    def restored(self) -> None:
        """Note that the server answered."""
        if self._failures:
            self._failures = 0
            self._outage.restored(self._who)
