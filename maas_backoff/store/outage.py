"""Outages of the server: one log line at the start and one at the end, however many loops try meanwhile."""

import threading
import time

from maas_backoff.common.guard import Log, log_for
from maas_backoff.errors import StorageError

log: Log = log_for("storage")


class Outage:
    """The outage that the loops of one process, in several threads, have found together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failing: set[str] = set()
        self._late: set[str] = set()
        self._kinds: set[type[Exception]] = set()
        self._since = 0.0
        self._failures = 0

    def failed(self, who: str, error: Exception) -> None:
        """Note a failed call. Warn if it is the first of this outage, or the first with this class of error."""
        with self._lock:
            if who in self._late and not self._failing:
                return  # a late failure of the last outage, which was logged
            if not self._failing:
                self._since, self._failures = time.monotonic(), 0
                self._kinds.clear()
            self._failing.add(who)
            self._failures += 1
            logged = type(error) in self._kinds
            self._kinds.add(type(error))
        if not logged:
            shown = None if isinstance(error, StorageError) else error
            log.warning("%s cannot reach the server: %s; trying again until it works", who, error, exc_info=shown)

    def restored(self, who: str) -> None:
        """Note a call that worked. The outage is over when the first failed loop works again."""
        with self._lock:
            self._late.discard(who)
            if who not in self._failing:
                return
            self._late = self._failing - {who}
            self._failing.clear()
            failures, seconds = self._failures, time.monotonic() - self._since
        log.warning("reconnected to the server after %d failed attempts (%.0f s)", failures, seconds)
