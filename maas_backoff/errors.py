"""What can go wrong, and what a handler may raise to say so.

MaasBackoffError
├── InvalidValueError (ValueError)         an argument
│   ├── ConfigError                        an option of the configuration
│   └── PayloadError                       params or a result that are not JSON
│       └── PayloadTooLargeError
├── HandlerError (TypeError)               a handler that cannot be used
├── WorkerEndedError (RuntimeError)        a worker that ended although nobody stopped it
├── TaskConflictError (ValueError)         an id that exists with other params
├── TaskNotFoundError (LookupError)
├── TaskTimeoutError (TimeoutError)        a wait that took too long
├── MissingExtraError (ImportError)        an optional part that is not installed
├── StorageError (ConnectionError)
│   ├── StorageUnavailableError            no answer in time; may be tried again
│   ├── StorageDeniedError                 wrong password, a missing right, a certificate nobody trusts
│   ├── StorageUnfitError                  what the check at start found
│   └── StorageFullError                   no room for new tasks
│       └── QueueFullError                 by max_queue_size
└── HandlerSignal                          raised *by* handlers
    ├── Retry
    ├── Snooze
    └── Discard
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta

__all__ = [
    "ConfigError",
    "Discard",
    "HandlerError",
    "HandlerSignal",
    "InvalidValueError",
    "MaasBackoffError",
    "MissingExtraError",
    "PayloadError",
    "PayloadTooLargeError",
    "QueueFullError",
    "Retry",
    "Snooze",
    "StorageDeniedError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "StorageUnfitError",
    "TaskConflictError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "WorkerEndedError",
]


class MaasBackoffError(Exception):
    """The root of everything this library raises."""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a hostile __repr__ must not hide the error that is being reported
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:77]}..."


class InvalidValueError(MaasBackoffError, ValueError):
    """Raised when an argument is not what it must be, before anything is sent to the server."""

    def __init__(self, option: str, expected: str, got: object) -> None:
        self.option = option
        self.expected = expected
        self.got = got
        super().__init__(f"{option}: expected {expected}, got {_shown(got)}")


class ConfigError(InvalidValueError):
    """Raised when an option of the configuration is not what it must be."""


class PayloadError(InvalidValueError):
    """Raised when task params or a result are not JSON; `option` is the path to the offending value."""


class PayloadTooLargeError(PayloadError):
    """Raised when the JSON text of params or of a result is longer than `max_payload_bytes`."""

    def __init__(self, option: str, limit: int, size: int) -> None:
        self.limit = limit
        self.size = size
        MaasBackoffError.__init__(self, f"{option}: expected at most {limit} bytes of JSON, got {size}")
        self.option = option
        self.expected = f"at most {limit} bytes of JSON"
        self.got: object = size


class HandlerError(MaasBackoffError, TypeError):
    """Raised when a handler cannot be used the way it was registered; says what to do instead."""


class WorkerEndedError(MaasBackoffError, RuntimeError):
    """Raised when a worker, or one of its loops, ended although nobody had stopped it; says how."""


class TaskConflictError(MaasBackoffError, ValueError):
    """Raised when a task id exists already with other params.

    `conflicts` are those ids. `created` are the ids of the same call that are in the queue now.
    """

    def __init__(self, conflicts: Sequence[str], created: Sequence[str] = ()) -> None:
        self.conflicts: list[str] = list(conflicts)
        self.created: list[str] = list(created)
        shown = ", ".join(map(_shown, self.conflicts[:5])) + (", …" if len(self.conflicts) > 5 else "")
        super().__init__(f"task_id: expected a new id or the params it was created with, got {shown} with other params")


class TaskNotFoundError(MaasBackoffError, LookupError):
    """Raised when a task that must exist does not: never created, deleted, or past its time to live."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(f"no task {_shown(task_id)}: never created, deleted, or past its time to live")


class TaskTimeoutError(MaasBackoffError, TimeoutError):
    """Raised when a task did not finish within the time a caller wanted to wait; the task goes on."""

    def __init__(self, task_id: str, timeout: float) -> None:
        self.task_id = task_id
        self.timeout = timeout
        super().__init__(f"task {_shown(task_id)} did not finish within {timeout:g} s")


class MissingExtraError(MaasBackoffError, ImportError):
    """Raised when an optional part is used and its extra is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f'{what} needs an extra: pip install "maas_backoff[{extra}]"')

    @classmethod
    def instead_of(cls, error: ImportError, what: str, extra: str) -> ImportError:
        """Return what to raise for an import that failed: this, if a package of others is not there."""
        is_there = not isinstance(error, ModuleNotFoundError) or (error.name or "").startswith("maas_backoff")
        return error if is_there else cls(what, extra)


class StorageError(MaasBackoffError, ConnectionError):
    """Raised when the server refuses a command, or cannot be reached."""


class StorageUnavailableError(StorageError):
    """Raised when the server gave no answer in time. The call may be repeated."""


class StorageDeniedError(StorageError):
    """Raised when the server refuses the credentials or a command, or its certificate is not trusted."""


class StorageUnfitError(StorageError):
    """Raised at start when tasks would not be safe on this server; `findings` say what is wrong, and what to do."""

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings: list[str] = list(findings)
        super().__init__("; ".join(self.findings))


class StorageFullError(StorageError):
    """Raised when there is no room for new tasks, as the server's memory is full. Running tasks go on."""


class QueueFullError(StorageFullError):
    """Raised when a queue would have more than `max_queue_size` tasks that are not finished; nothing was created.

    `retry_after` is a guess of when there will be room, in seconds from 1 to 300: the tasks too many, over the number
    that was finished per second lately; 10 where nothing was. `created` are ids of the same call that are in the queue
    now: more than 1,000 tasks are sent in parts.
    """

    def __init__(self, limit: int, size: int, retry_after: float) -> None:
        self.created: list[str] = []
        self.limit = limit
        self.size = size
        self.retry_after = retry_after
        super().__init__(
            f"the queue is full: {size} of at most {limit} unfinished tasks; try again in {retry_after:g} s"
        )


class HandlerSignal(MaasBackoffError):  # noqa: N818 - what handlers raise is no error
    """The root of what a handler raises to choose what happens to its task."""


def _seconds(after: float | timedelta) -> float:
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 315_360_000:
        raise InvalidValueError("after", "seconds from 0 to ten years, or a timedelta", after)
    return float(seconds)


class Retry(HandlerSignal):
    """Raise to be retried after `after` seconds (or a timedelta) instead of after the backoff's delay.

    `params`, a dict of JSON values, take the place of the task's own from then on. Uses one of the task's retries;
    without one left the task fails. Raised because of an error that tells of a GPU's memory (`from error`, or in its
    `except`), it uses none, as that error would.
    """

    def __init__(
        self,
        after: float | timedelta | None = None,
        reason: str = "retry requested",
        *,
        params: Mapping[str, object] | None = None,
    ) -> None:
        self.after: float | None = None if after is None else _seconds(after)
        self.reason = reason
        if params is not None and not isinstance(params, dict):
            raise InvalidValueError("params", "a dict, or None", params)
        self.params: Mapping[str, object] | None = params
        super().__init__(reason)


class Snooze(HandlerSignal):
    """Raise to come back after `after` seconds (or a timedelta) without using a retry.

    Counted in `snooze_count`; a task that snoozes more than `max_snoozes` times fails.
    """

    def __init__(self, after: float | timedelta) -> None:
        self.after: float = _seconds(after)
        super().__init__(f"snoozed for {self.after:g} s")


class Discard(HandlerSignal):
    """Raise to fail the task at once, whatever retries it has left."""

    def __init__(self, reason: str = "discarded by its handler") -> None:
        self.reason = reason
        super().__init__(reason)
