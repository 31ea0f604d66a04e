"""What happened in an attempt."""

import inspect
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import attrs

from maas_backoff.domain import jsontext, trace
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.fault import Fault, fault_of
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.task import TaskError
from maas_backoff.errors import Discard, PayloadError, Retry, Snooze

LARGEST_PARAMS = 64 * 1_048_576
"""Bytes; the queue's own limit is met where the outcome is settled."""

TEXT_LIMIT = 8192
"""Bytes of an error's message and of its traceback that are kept."""

LONGEST_NAME = 200
"""Characters of an exception's class name that are kept."""


class CancelReason(StrEnum):
    """Why an attempt was stopped from outside, recorded before it is stopped."""

    USER = "user"
    TIMEOUT = "timeout"
    LEASE_LOST = "lease_lost"
    CUT_OFF = "cut_off"
    """Its lease was not renewed in time: the server could not be reached, or this process stood still."""
    SHUTDOWN = "shutdown"


@attrs.frozen
class Succeeded:
    """The handler returned. `result` is JSON text."""

    result: str


@attrs.frozen
class Failed:
    """The attempt failed.

    `raised` tells an exception, a timeout or a crash from a returned ResultEntity.fail: the exception handler is
    called for those only. A `permanent` failure is not retried. `retry_after` replaces the backoff's delay, `params`
    (JSON text) the task's params. `fault` is what the error tells of the GPU.
    """

    error: TaskError
    traceback: str = ""
    raised: bool = False
    permanent: bool = False
    retry_after: float | None = None
    params: str | None = None
    fault: Fault = ""


@attrs.frozen
class FailedOnGpu:
    """The attempt ran out of a GPU's memory, or failed in a way that makes one doubt the GPU.

    `demand` is what it was given room for, `peak` the most MiB it was seen to use, and `most` what a task could be
    given at best on any device of its worker.
    """

    failed: Failed
    uuid: str
    demand: Demand
    peak: int
    most: int


@attrs.frozen
class Snoozed:
    """The handler wants the task to come back after this many seconds."""

    after: float


@attrs.frozen
class Cancelled:
    """The attempt was stopped, by a user or by a shutdown, or its lease was lost."""

    reason: CancelReason


@attrs.frozen
class Unstarted:
    """The task was claimed and its handler not called."""


@attrs.frozen
class LeaseExpired:
    """The attempt's worker has not renewed its lease."""


HandlerOutcome = Succeeded | Failed | Snoozed
"""What a handler alone can bring about; the outcomes that cross the border of a child process."""

Outcome = HandlerOutcome | FailedOnGpu | Cancelled | Unstarted | LeaseExpired


def outcome_of_value(value: object, limit: int) -> HandlerOutcome:
    """Return the outcome of a handler that returned `value`; a result may have `limit` bytes of JSON."""
    if isinstance(value, ResultEntity):
        if not value.success:
            return Failed(TaskError("failed", cut(value.message), code_of(value)))
        value = value.result
    if inspect.iscoroutine(value):
        value.close()  # or Python would warn, out of place, that it was never awaited
    try:
        return Succeeded(jsontext.canonical(value, "result", limit))
    except PayloadError as error:
        # The same code would return the same value again.
        return Failed(TaskError("not_serializable", cut(str(error))), permanent=True)


def code_of(failed: ResultEntity) -> int | None:
    """Return the code of a failure, which users may have filled with anything: None for all but 64-bit integers."""
    code = failed.code
    return int(code) if isinstance(code, int) and -(2**63) <= code < 2**63 else None


def outcome_of_error(error: BaseException) -> HandlerOutcome:
    """Return the outcome of a handler that raised `error`."""
    match error:
        case Snooze():
            return Snoozed(error.after)
        case Retry():
            # One that is raised because memory ran out comes back as such a failure would.
            cause = error.__cause__ or error.__context__
            fault = _fault(cause) if cause is not None else ""
            return _retry(error, fault)
        case Discard():
            return Failed(TaskError("discarded", cut(error.reason)), permanent=True)
        case _:
            told = TaskError(cut(type(error).__name__)[:LONGEST_NAME], cut(error))
            return Failed(told, _traceback(error), raised=True, fault=fault_of(told.type, told.message))


def _retry(error: Retry, fault: Fault) -> Failed:
    try:
        params = None if error.params is None else jsontext.canonical(error.params, "params", LARGEST_PARAMS)
    except PayloadError as wrong:
        return Failed(TaskError("not_serializable", cut(str(wrong))), permanent=True)
    return Failed(TaskError("Retry", cut(error.reason)), retry_after=error.after, params=params, fault=fault)


def _fault(error: BaseException) -> Fault:
    return fault_of(type(error).__name__, cut(error))


def timed_out(seconds: float, traceback: str = "") -> Failed:
    """Return the outcome of an attempt that its timeout stopped; `traceback` is of what the handler made of that."""
    return Failed(TaskError("timeout", f"stopped after {seconds:g} s"), traceback, raised=True)


def crashed(message: str) -> Failed:
    """Return the outcome of an attempt whose child process died."""
    return Failed(TaskError("crashed", cut(message)), raised=True)


def to_dict(outcome: HandlerOutcome) -> dict[str, Any]:
    """Return what crosses the border of a child process as JSON."""
    return {"kind": type(outcome).__name__, **attrs.asdict(outcome)}


def from_dict(data: Mapping[str, Any]) -> HandlerOutcome:
    """Return the outcome that `to_dict` described."""
    fields: dict[str, Any] = {name: value for name, value in data.items() if name != "kind"}
    match data["kind"]:
        case "Succeeded":
            return Succeeded(**fields)
        case "Snoozed":
            return Snoozed(**fields)
        case _:
            error = TaskError(**fields.pop("error"))
            return Failed(error, **fields)


def cut(value: object) -> str:
    """Return a value's text as UTF-8 can hold it, at most TEXT_LIMIT bytes of it. Users give more than text."""
    text = value if isinstance(value, str) else "" if value is None else _text(value)
    data = text[:TEXT_LIMIT].encode(errors="backslashreplace")
    return data[:TEXT_LIMIT].decode(errors="ignore")


def _text(value: object) -> str:
    try:
        return str(value)
    except BaseException:  # noqa: BLE001 - a hostile __str__ must not end the worker
        return f"<unprintable {type(value).__name__}>"


def _traceback(error: BaseException) -> str:
    """The last TEXT_LIMIT bytes: the end of a traceback says most."""
    try:
        text = trace.text_of(error)
    except BaseException:  # noqa: BLE001 - it calls __str__ too
        text = trace.frames_of(error)
    return text.encode(errors="backslashreplace")[-TEXT_LIMIT:].decode(errors="ignore")
