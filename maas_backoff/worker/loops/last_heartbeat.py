"""The last heartbeat that the server answered, and the failures since."""

import time

from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.worker.loops.patience import Patience


class LastHeartbeat:
    """Notes how each heartbeat ends. Other threads may ask for `silence` and `error`."""

    def __init__(self, patience: Patience) -> None:
        """Report outages to `patience`."""
        self.missed: int = 0
        """The failures since the last answer."""
        self.error: str = ""
        """The newest failure, or "" before the first one."""
        self._patience = patience
        self._answered_at = time.monotonic()

    @property
    def silence(self) -> float:
        """Seconds since the last answer, or since the start."""
        return time.monotonic() - self._answered_at

    def answered(self) -> None:
        """Note that the leases were renewed."""
        self._answered_at = time.monotonic()
        self.missed = 0
        self._patience.restored()

    def unanswered(self, error: StorageError | TimeoutError) -> None:
        """Note that the server did not answer in time, or could not be reached."""
        self.missed += 1
        self.error = str(error) or "no answer in time"
        self._patience.failed(error if isinstance(error, StorageError) else StorageUnavailableError(self.error))

    def failed(self, error: Exception) -> None:
        """Note any other failure."""
        self.missed += 1
        self.error = f"{type(error).__name__}: {error}"
