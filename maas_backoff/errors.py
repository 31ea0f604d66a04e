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
├── TaskConflictError (ValueError)         an id that exists with other params
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

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

from maas_backoff.common.shown import shown, type_name

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


class MaasBackoffError(Exception):
    """The root of all errors of this library.

    A web service can answer with `http_status`, `http_headers` and `http_detail`. Errors can be pickled and copied.
    """

    http_status: int = 500
    """The HTTP status for a web client: 4xx if the request is wrong, 503 if the client may try again."""

    @property
    def http_headers(self) -> dict[str, str]:
        """The headers of the HTTP answer: `Retry-After` if the error has a time for it, else none."""
        return {}

    @property
    def http_detail(self) -> str:
        """The text of the HTTP answer: the message for 4xx, else a sentence without addresses and options."""
        return str(self) if self.http_status < 500 else _DETAILS.get(self.http_status, "internal error")

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with the message alone, which most of these classes do not accept.
        return _rebuilt, (type(self), self.args), self._state()

    def __copy__(self) -> Self:
        copied = _rebuilt(type(self), self.args)
        copied.__setstate__({**self._state(), **vars(self)})
        return copied

    def _state(self) -> dict[str, Any]:
        """Return the attributes of a pickled error."""
        return dict(vars(self))


_DETAILS = {503: "the task queue cannot be reached now; try again later", 504: "the task has not finished yet"}

_E = TypeVar("_E", bound=MaasBackoffError)


def _rebuilt(kind: type[_E], args: tuple[Any, ...]) -> _E:
    """Return an error without calling its `__init__`; its attributes are set afterwards."""
    error = kind.__new__(kind, *args)
    error.args = args  # OSError.__new__ leaves this to an `__init__`
    return error


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
    """Raised when a worker, or one of its loops, ended without a stop. The message has the reason."""


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
    """Raised when a task id exists already with other params.

    `conflicts` are the ids with other params. `created` are the ids of the same call that are in the queue now.
    """

    http_status = 409

    def __init__(self, conflicts: Sequence[str], created: Sequence[str] = ()) -> None:
        self.conflicts: list[str] = list(conflicts)
        self.created: list[str] = list(created)
        ids = ", ".join(map(shown, self.conflicts[:5])) + (", …" if len(self.conflicts) > 5 else "")
        super().__init__(f"task_id: expected a new id or the params it was created with, got {ids} with other params")


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
    """

    def __init__(self, task_id: str, status: str, error: str = "", code: int | None = None) -> None:
        self.task_id = task_id
        self.status = status
        self.error = error
        self.code = code
        super().__init__(f"task {shown(task_id)} is {status}" + (f": {error}" if error else ""))


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


class StorageError(MaasBackoffError, ConnectionError):
    """Raised when the server refuses a command, or cannot be reached.

    `created` are the ids of the same `create_tasks` that are certainly in the queue. It sends 1,000 tasks at a time.
    """

    http_status = 503

    def __init__(self, *args: object) -> None:
        self.created: list[str] = []
        super().__init__(*args)


class StorageUnavailableError(StorageError):
    """Raised when the server gave no answer in time. The call may be repeated."""


class StorageDeniedError(StorageError):
    """Raised when the server refuses the credentials or a command, or its certificate is not trusted."""


class StorageUnfitError(StorageError):
    """Raised at start when tasks would not be safe on this server. `findings` name each fault and its remedy."""

    def __init__(self, findings: Sequence[str]) -> None:
        self.findings: list[str] = list(findings)
        super().__init__("; ".join(self.findings))


class StorageFullError(StorageError):
    """Raised when the server's memory is full, and has no room for new tasks. Running tasks go on."""


class QueueFullError(StorageFullError):
    """Raised when a queue would have more than `max_queue_size` unfinished tasks.

    `create_task` has created nothing. `create_tasks` sends 1,000 tasks at a time, each time all of them or none:
    `created` are the ids of the same call that are in the queue now, and `asked` is the number of tasks of the call.

    `retry_after` is an estimate of the seconds until there is room, from 1 to 300: the excess tasks, divided by the
    tasks finished per second lately; 10 if none was finished.
    """

    def __init__(
        self, limit: int, size: int, retry_after: float, *, created: Sequence[str] = (), asked: int | None = None
    ) -> None:
        self.asked = asked
        self.limit = limit
        self.size = size
        self.retry_after = retry_after
        text = f"the queue is full: {size} of at most {limit} unfinished tasks; try again in {retry_after:g} s"
        super().__init__(text if asked is None else f"{text}; {len(created)} of {asked} tasks are in the queue")
        self.created: list[str] = list(created)

    @property
    def http_headers(self) -> dict[str, str]:
        """`Retry-After`, in whole seconds."""
        return {"Retry-After": str(math.ceil(self.retry_after))}

    @property
    def http_detail(self) -> str:
        """The message, which has only numbers."""
        return str(self)


class TenantFullError(QueueFullError):
    """Raised when a tenant would have more than `max_tenant_queue_size` waiting tasks. Other tenants are not refused.

    `tenant` is its name. Whether tasks of the same call are created is as for QueueFullError.
    """

    http_status = 429

    def __init__(self, tenant: str, limit: int, *, created: Sequence[str] = (), asked: int | None = None) -> None:
        super().__init__(limit, limit, 10, created=created, asked=asked)
        self.tenant = tenant
        text = f"tenant {shown(tenant)} has {limit} waiting tasks, the most that max_tenant_queue_size allows"
        self.args: tuple[Any, ...] = (
            text if asked is None else f"{text}; {len(self.created)} of {asked} tasks are in the queue",
        )
