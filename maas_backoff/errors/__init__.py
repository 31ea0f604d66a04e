"""The errors of this library.

MaasBackoffError
├── InvalidValueError (ValueError)         an argument
│   ├── ConfigError                        an option of the configuration
│   └── PayloadError                       params or a result that are not JSON
│       └── PayloadTooLargeError
├── HandlerError (TypeError)               a handler that cannot be used
├── WorkerEndedError (RuntimeError)        a worker that ended without a stop
├── EventLoopError (RuntimeError)           a call in an event loop where it cannot work
├── StreamError (RuntimeError)             a part that a handler cannot emit
│   └── StreamFullError                    by max_stream_bytes
├── TaskConflictError (ValueError)         an id that exists with other params or kind
├── TaskNotFoundError (LookupError)
├── TaskTimeoutError (TimeoutError)        a wait that took too long
├── TaskFailedError (RuntimeError)         a task without a result: it is failed or cancelled
├── CallerGoneError                        the caller of `call(disconnected=…)` has hung up
├── MissingExtraError (ImportError)        an optional part that is not installed
├── StorageError (ConnectionError)
│   ├── StorageUnavailableError            no answer in time; may be tried again
│   ├── StorageDeniedError                 wrong password, missing right, certificate that is not trusted
│   ├── StorageUnfitError                  fatal findings of the preflight
│   └── StorageFullError                   no room for new tasks
│       └── QueueFullError                 by max_queue_size
│           └── TenantFullError            by max_tenant_queue_size
└── HandlerSignal                          raised *by* handlers: domain/signals.py
    ├── Retry
    ├── Snooze
    │   └── RateLimited
    └── Discard
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from maas_backoff.common.shown import shown, type_name
from maas_backoff.errors.base import MaasBackoffError
from maas_backoff.errors.storage import (
    QueueFullError,
    StorageDeniedError,
    StorageError,
    StorageFullError,
    StorageUnavailableError,
    StorageUnfitError,
    TenantFullError,
)

__all__ = [
    "CallerGoneError",
    "ConfigError",
    "EventLoopError",
    "HandlerError",
    "InvalidValueError",
    "MaasBackoffError",
    "MissingExtraError",
    "PayloadError",
    "PayloadTooLargeError",
    "QueueFullError",
    "StorageDeniedError",
    "StorageError",
    "StorageFullError",
    "StorageUnavailableError",
    "StorageUnfitError",
    "StreamError",
    "StreamFullError",
    "TaskConflictError",
    "TaskFailedError",
    "TaskNotFoundError",
    "TaskTimeoutError",
    "TenantFullError",
    "WorkerEndedError",
]


_PLAIN = (str, int, float, bytes, timedelta, datetime, type(None))


class InvalidValueError(MaasBackoffError, ValueError):
    """Raised when an argument is wrong, before anything is sent to the server.

    `got` is the value. A pickled error has the value's text instead, unless the value is a plain one.
    """

    http_status = 422

    def __init__(self, option: str, expected: str, got: object) -> None:
        self.option = option
        self.expected = expected
        self.got = got
        super().__init__(f"{option}: expected {expected}, got {shown(got)}")

    def _state(self) -> dict[str, Any]:
        state = super()._state()
        if "got" in state and not isinstance(self.got, _PLAIN):
            state["got"] = shown(self.got)  # a lock, a lambda or an open file cannot be pickled
        return state


class ConfigError(InvalidValueError):
    """Raised when an option of the configuration is wrong."""

    http_status = 500


class PayloadError(InvalidValueError):
    """Raised when task params or a result are not JSON.

    `option` is the path to the offending value, and `got` the name of its type: the value itself is never shown.
    """

    def __init__(self, option: str, expected: str, got: object) -> None:
        self.option = option
        self.expected = expected
        self.got: object = type_name(got)
        MaasBackoffError.__init__(self, f"{option}: expected {expected}, got {self.got}")


class PayloadTooLargeError(PayloadError):
    """Raised when the JSON text of params or of a result is longer than `max_payload_bytes`."""

    http_status = 413

    def __init__(self, option: str, limit: int, size: int) -> None:
        self.limit = limit
        self.size = size
        MaasBackoffError.__init__(self, f"{option}: expected at most {limit} bytes of JSON, got {size}")
        self.option = option
        self.expected: str = f"at most {limit} bytes of JSON"
        self.got: object = size


class HandlerError(MaasBackoffError, TypeError):
    """Raised when a handler cannot be used as it was registered. The message says what to do instead."""


class WorkerEndedError(MaasBackoffError, RuntimeError):
    """Raised when a worker, or one of its loops, ended without a stop; by `until_idle`, also after a stop.

    The message has the reason.
    """


class EventLoopError(MaasBackoffError, RuntimeError):
    """Raised when a call cannot work in its event loop or process. The message says where it can."""


class StreamError(MaasBackoffError, RuntimeError):
    """Raised in a handler when it cannot emit a part. The message says why; the parts before are not lost by it."""


class StreamFullError(StreamError):
    """Raised in a handler when the stream of its task would have more than `max_stream_bytes`.

    The part is not emitted. Earlier parts stay, and the handler may go on without the stream.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the stream of the task is full: it may have {limit} bytes (option max_stream_bytes)")


class TaskConflictError(MaasBackoffError, ValueError):
    """Raised when a task id exists already with other params, or for another kind of tasks.

    `conflicts` are these ids. `created` are the ids of the same call that are in the queue now.
    """

    http_status = 409

    def __init__(self, conflicts: Sequence[str], created: Sequence[str] = ()) -> None:
        self.conflicts: list[str] = list(conflicts)
        self.created: list[str] = list(created)
        ids = ", ".join(map(shown, self.conflicts[:5])) + (", …" if len(self.conflicts) > 5 else "")
        told = f"task_id: expected a new id, or the kind and the params it was created with, got {ids} with others"
        super().__init__(told)


class TaskNotFoundError(MaasBackoffError, LookupError):
    """Raised when a task does not exist: never created, deleted, or past its time to live."""

    http_status = 404

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(f"no task {shown(task_id)}: never created, deleted, or past its time to live")


class TaskTimeoutError(MaasBackoffError, TimeoutError):
    """Raised when a task did not finish within the timeout of a wait. The task goes on."""

    http_status = 504

    def __init__(self, task_id: str, timeout: float) -> None:
        self.task_id = task_id
        self.timeout = timeout
        super().__init__(f"task {shown(task_id)} did not finish within {timeout:g} s")


class TaskFailedError(MaasBackoffError, RuntimeError):
    """Raised by `TaskHandle.result` for a task that is failed or cancelled.

    `status` is "failed" or "cancelled". `error` is the text of the task's error, "type: message", and `code` its code.
    `cancel_reason` is that of the task. `http_status` is 500 whatever the code: a service maps its own codes.
    """

    def __init__(
        self, task_id: str, status: str, error: str = "", code: int | None = None, cancel_reason: str | None = None
    ) -> None:
        self.task_id = task_id
        self.status = status
        self.error = error
        self.code = code
        self.cancel_reason = cancel_reason
        why = f" ({cancel_reason})" if cancel_reason else ""
        super().__init__(f"task {shown(task_id)} is {status}{why}" + (f": {error}" if error else ""))


class CallerGoneError(MaasBackoffError):
    """Raised inside of `call(disconnected=…)` when the caller has hung up. The task is cancelled.

    The caller does not read the answer. 499 is its status in access logs ("client closed request").
    """

    http_status = 499

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        super().__init__(f"the caller of task {shown(task_id)} has hung up: the task is cancelled")


class MissingExtraError(MaasBackoffError, ImportError):
    """Raised when an optional part is used and its extra is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f'{what} needs an extra: pip install "maas_backoff[{extra}]"')

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "msg": self.msg}  # no part of an ImportError's `__dict__`

    @classmethod
    def instead_of(cls, error: ImportError, what: str, extra: str) -> ImportError:
        """Return the error for a failed import: MissingExtraError if another package is missing, else `error`."""
        is_there = not isinstance(error, ModuleNotFoundError) or (error.name or "").startswith("maas_backoff")
        return error if is_there else cls(what, extra)
