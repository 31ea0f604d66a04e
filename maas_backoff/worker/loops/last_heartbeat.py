"""The last heartbeat that the server answered, and the failures since."""

import time

from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.worker.loops.patience import Patience

_NO_ANSWER = "no answer in time"


class LastHeartbeat:
    """Notes how each heartbeat ends. Other threads may ask for `silence` and `error`."""

    def __init__(self, patience: Patience, of_ledgers: Patience) -> None:
        """Report outages to `patience`, and those of the ledgers of GPUs to `of_ledgers`."""
        self.missed: int = 0
        """The failures since the last answer."""
        self.error: str = ""
        """The newest failure, or "" before the first one."""
        self._patience = patience
        self._of_ledgers = of_ledgers
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
        self.error = str(error) or _NO_ANSWER
        self._patience.failed(_as_storage_error(error))

    def reserved(self, failure: StorageError | TimeoutError | None) -> None:
        """Note that the reservations on GPUs were renewed, or why a ledger could not be reached."""
        if failure is None:
            self._of_ledgers.restored()
        else:
            self._of_ledgers.failed(_as_storage_error(failure))

    def failed(self, error: Exception) -> None:
        """Note any other failure."""
        self.missed += 1
        self.error = f"{type(error).__name__}: {error}"


def _as_storage_error(error: StorageError | TimeoutError) -> StorageError:
    return error if isinstance(error, StorageError) else StorageUnavailableError(_NO_ANSWER)
