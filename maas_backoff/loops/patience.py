"""How a loop waits for a server that does not answer: for ever, with jittered backoff."""

import random

import anyio

from maas_backoff.guard import log_for

log = log_for("storage")

LONGEST_PAUSE = 5.0


class Patience:
    """Counts failures in a row, and says so once."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0

    async def after(self, error: Exception) -> None:
        """Wait 0.1 to 5 seconds, longer with each failure, at random."""
        self._failures += 1
        if self._failures == 1:
            log.warning("%s: %s; trying again until it works", self._what, error)
        await anyio.sleep(random.uniform(0.5, 1) * min(0.1 * 2 ** min(self._failures, 10), LONGEST_PAUSE))  # noqa: S311 - spreads reconnects

    def restored(self) -> None:
        """Note that it works."""
        if self._failures:
            log.warning("%s: works again after %d failures", self._what, self._failures)
            self._failures = 0
