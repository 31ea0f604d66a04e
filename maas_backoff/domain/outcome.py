"""The outcomes of an attempt.

A handler may raise Retry, Snooze or Discard inside of a task group. The task group wraps several of them, and other
errors, in one exception group. The first that is in the group decides: Discard; Retry (the longest delay); any other
error, and the attempt has failed; Snooze (the longest delay). A Snooze uses no retry, and never hides an error.
"""

import inspect
from collections.abc import Container, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import attrs

from maas_backoff.domain import jsontext, raised, tracebacks
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.fault import WORST_FIRST, Fault, fault_of, may_come_back
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.task import TaskError
from maas_backoff.domain.validation import checked_params
from maas_backoff.errors import (
    Discard,
    HandlerSignal,
    PayloadError,
    PayloadTooLargeError,
    Retry,
    Snooze,
    seconds_of,
    type_name,
)

LARGEST_PARAMS = 64 * 1_048_576
"""Bytes. `Failed.limited` applies the queue's own limit, before the outcome is settled."""

TEXT_LIMIT = 8192
"""Bytes of an error's message and of its traceback that are kept."""

LONGEST_NAME = 200
"""Characters of an exception's class name that are kept."""


class CancelReason(StrEnum):
    """The reason for a stop of an attempt from outside, recorded before the stop."""

    USER = "user"
    TIMEOUT = "timeout"
    LEASE_LOST = "lease_lost"
    CUT_OFF = "cut_off"
    """The lease was not renewed in time: the server could not be reached, or this process stood still."""
    SHUTDOWN = "shutdown"


@attrs.define  # made for each task; a frozen one takes three times as long
class Succeeded:
    """The handler returned. `result` is JSON text."""

    result: str = attrs.field(repr=False)


@attrs.frozen
class Failed:
    """The attempt failed.

    `raised` is true for an exception, a timeout or a crash, and false for a returned ResultEntity.fail: the exception
    handler is called only if it is true. A `permanent` failure is not retried. `retry_after` replaces the backoff's
    delay, `params` (JSON text) the task's params. `fault` is the GPU fault that the error means.

    `exception` is for the log if the handler ran in this process. An exception keeps the handler's variables alive. It
    is left out for a GPU fault, because these variables may have the GPU's memory.
    """

    error: TaskError
    traceback: str = ""
    raised: bool = False
    permanent: bool = False
    retry_after: float | None = None
    params: str | None = attrs.field(default=None, repr=False)
    fault: Fault = ""
    exception: BaseException | None = attrs.field(default=None, eq=False, repr=False)

    def limited(self, limit: int) -> "Failed":
        """Return this failure, or a permanent one if the params of a Retry have more than `limit` bytes."""
        size = jsontext.size_of(self.params)
        return self if size <= limit else _unserializable(PayloadTooLargeError("params", limit, size))


@attrs.frozen
class FailedOnGpu:
    """The attempt ran out of GPU memory, or failed with a GPU fault.

    `demand` is the demand that its reservation met, `peak` the most MiB in use by its process. `most` is the largest
    possible reservation on any device of its worker. `crowded`: other processes used memory that was reserved for it.
    """

    failed: Failed
    uuid: str
    demand: Demand
    peak: int
    most: int
    crowded: bool = False


@attrs.frozen
class Snoozed:
    """The handler asked for the task to come back after this many seconds."""

    after: float


@attrs.frozen
class Cancelled:
    """The attempt was stopped by a user or by a shutdown, or its lease was lost."""

    reason: CancelReason


@attrs.frozen
class Unstarted:
    """The task was claimed, and its handler was not called."""


@attrs.frozen
class LeaseExpired:
    """The attempt's worker has not renewed its lease.

    `together` tasks may have ended the worker, this one included. The task comes back in the cohort named `cohort`,
    which has at most `size` tasks.
    """

    together: int = 1
    cohort: str = ""
    size: int = 1


HandlerOutcome = Succeeded | Failed | Snoozed | Unstarted
"""The outcomes of one call of the handler, which a child process sends to its worker."""

Outcome = HandlerOutcome | FailedOnGpu | Cancelled | LeaseExpired


def outcome_of_value(value: object, limit: int) -> HandlerOutcome:
    """Return the outcome of a handler that returned `value`; a result may have `limit` bytes of JSON. Never raises."""
    try:
        return _outcome_of_value(value, limit)
    except BaseException as error:  # noqa: BLE001 - a dict whose `items` raises, a subclass of ResultEntity
        return outcome_of_error(error, limit)


def _outcome_of_value(value: object, limit: int) -> HandlerOutcome:
    if isinstance(value, ResultEntity):
        if not value.success:
            return Failed(TaskError("failed", cut(value.message), code_of(value)))
        value = value.result
    if inspect.iscoroutine(value):
        value.close()  # else Python would warn later that the coroutine was never awaited
    try:
        return Succeeded(jsontext.canonical(value, "result", limit))
    except PayloadError as error:
        # The same code would return the same value again.
        return _unserializable(error)


def _unserializable(error: PayloadError) -> Failed:
    return Failed(TaskError("not_serializable", cut(str(error))), permanent=True)


def code_of(failed: ResultEntity) -> int | None:
    """Return the code of a failure if it is a 64-bit integer, else None: users may set any value."""
    code = failed.code
    return int(code) if isinstance(code, int) and -(2**63) <= code < 2**63 else None


def outcome_of_error(error: BaseException, limit: int = LARGEST_PARAMS) -> HandlerOutcome:
    """Return the outcome of a handler that raised `error`. Never raises, whatever the exception's class does.

    The params of a Retry may have `limit` bytes of JSON.
    """
    try:
        return _outcome_of_error(error, limit)
    except BaseException as wrong:  # noqa: BLE001 - attributes, texts and properties of an exception are a user's code
        kind = cut(type_name(error))[:LONGEST_NAME]
        return Failed(TaskError(kind, f"the error cannot be read ({type_name(wrong)})"), raised=True)


def _outcome_of_error(error: BaseException, limit: int) -> HandlerOutcome:
    if not issubclass(type(error), _WITH_MEMBERS):
        return _failed(error, [error])
    members = raised.members(error)
    for kind, outcome in (Discard, _discarded), (Retry, _retried):
        if signals := [one for one in members if issubclass(type(one), kind)]:
            return outcome(error, signals, members, limit)
    if members and all(issubclass(type(one), Snooze) for one in members):
        return _snoozed(error, members)
    return _failed(error, members)


_WITH_MEMBERS = (HandlerSignal, BaseExceptionGroup)
_Members = Sequence[BaseException]


def _discarded(error: BaseException, signals: _Members, *_: object) -> HandlerOutcome:
    reason = TaskError("discarded", cut(_read(signals[0], "reason", Discard.reason)))
    return Failed(reason, permanent=True, exception=_for_log(error))


def _retried(error: BaseException, signals: _Members, members: _Members, limit: int) -> HandlerOutcome:
    try:
        delays = [_delay(one) for one in signals]
    except ValueError as wrong:  # a subclass has set `after` to another value
        return _misused(error, signals[0], wrong)
    ranks = [-1 if after is None else after for after in delays]
    longest = ranks.index(max(ranks))
    try:
        params = _params(signals[longest], limit)
    except PayloadError as wrong:
        return _unserializable(wrong)
    # A Retry raised because GPU memory ran out uses no retry, as the error itself would.
    because = [found for one in signals if (found := raised.cause(one, hidden=True)) is not None]
    others = [one for one in members if not issubclass(type(one), Retry | Snooze)]
    fault = _fault([*because, *others])
    return Failed(
        TaskError("Retry", cut(_read(signals[longest], "reason", Retry.reason))),
        _traceback(error) if others else "",  # a traceback shows the other errors
        retry_after=delays[longest],
        params=params,
        fault=fault,
        exception=None if may_come_back(fault) else _for_log(error),
    )


def _delay(signal: BaseException) -> float | None:
    after = _read(signal, "after", None)
    return None if after is None else seconds_of(after)


def _params(signal: BaseException, limit: int) -> str | None:
    params = _read(signal, "params", None)
    if params is None:
        return None
    return jsontext.canonical(checked_params(params, "params"), "params", limit)


def _snoozed(error: BaseException, signals: _Members) -> HandlerOutcome:
    try:
        return Snoozed(max(seconds_of(_read(one, "after", None)) for one in signals))
    except ValueError as wrong:  # a subclass that does not call super().__init__()
        return _misused(error, signals[0], wrong)


def _misused(error: BaseException, signal: BaseException, wrong: ValueError) -> Failed:
    misuse = TaskError(cut(type_name(signal))[:LONGEST_NAME], cut(wrong))
    return Failed(misuse, _traceback(error), raised=True, exception=_for_log(error))


def _failed(error: BaseException, members: _Members) -> Failed:
    shown = TaskError(cut(type_name(error))[:LONGEST_NAME], _message(error, members))
    # Most errors are no groups and have no cause: a third of the time.
    alone = len(members) == 1 and members[0] is error and raised.cause(error) is None
    text, fault = _traceback(error), fault_of(shown.type, shown.message) if alone else _fault([error])
    exception = None if may_come_back(fault) else _for_log(error)
    return Failed(shown, text, raised=True, fault=fault, exception=exception)


def _message(error: BaseException, members: _Members) -> str:
    """Return an exception's text, followed by the texts of a group's members."""
    if not raised.is_group(error):
        return cut(error)
    texts = [f"{type_name(one)}: {cut(one)[:_OF_A_MEMBER]}" for one in members[:_MEMBERS]]
    more = [f"{len(members) - _MEMBERS} more"] if len(members) > _MEMBERS else []
    return cut(f"{cut(error)}: {'; '.join(texts + more)}")


_MEMBERS, _OF_A_MEMBER = 5, 500


def _read(signal: BaseException, name: str, otherwise: object) -> Any:
    """Return an attribute of a signal, or `otherwise`: a subclass may lack it, or make it a property that raises."""
    try:
        return getattr(signal, name, otherwise)
    except BaseException:  # noqa: BLE001 - see outcome_of_error
        return otherwise


def _fault(errors: Iterable[BaseException]) -> Fault:
    """Return the worst GPU fault of errors, their members and their causes."""
    return _worst({_fault_of_one(one) for error in errors for one in raised.related(error)})


def _worst(faults: Container[Fault]) -> Fault:
    for fault in WORST_FIRST:
        if fault in faults:
            return fault
    return ""


def _fault_of_one(error: BaseException) -> Fault:
    kind = type_name(error)
    if kind in _REMOTE:  # the cause of an error from a process pool: the text of a traceback, whose code is skipped
        lines = [line for line in cut_end(_text(error)).splitlines() if not line.startswith(" ")]
        return _worst({fault_of(line.partition(":")[0].rpartition(".")[2], line) for line in lines})
    return fault_of(kind, cut(error))


_REMOTE = {"_RemoteTraceback", "RemoteTraceback"}


def timed_out(seconds: float, traceback: str = "") -> Failed:
    """Return the outcome of an attempt that its timeout stopped; `traceback` is that of the handler's error, if any."""
    return Failed(TaskError("timeout", f"stopped after {seconds:g} s"), traceback, raised=True)


def crashed(message: str) -> Failed:
    """Return the outcome of an attempt whose child process died."""
    return Failed(TaskError("crashed", cut(message)), raised=True)


def to_dict(outcome: HandlerOutcome) -> dict[str, Any]:
    """Return an outcome as a dict for JSON, to be sent by a child process; without the exception."""
    fields = attrs.asdict(outcome, filter=lambda field, _: field.name != "exception")
    return {"kind": type(outcome).__name__, **fields}


def from_dict(data: Mapping[str, Any]) -> HandlerOutcome:
    """Return the outcome in a dict of `to_dict`."""
    fields: dict[str, Any] = {name: value for name, value in data.items() if name != "kind"}
    match data["kind"]:
        case "Succeeded":
            return Succeeded(**fields)
        case "Snoozed":
            return Snoozed(**fields)
        case "Unstarted":
            return Unstarted()
        case _:
            error = TaskError(**fields.pop("error"))
            return Failed(error, **fields)


def cut(value: object) -> str:
    """Return the text of any value, cut to TEXT_LIMIT bytes; characters without UTF-8 are escaped."""
    text = "" if value is None else _text(value)
    data = text[:TEXT_LIMIT].encode(errors="backslashreplace")
    return data[:TEXT_LIMIT].decode(errors="ignore")


def cut_end(text: str) -> str:
    """Return the last TEXT_LIMIT bytes of a text: the end of a traceback says most."""
    return text[-TEXT_LIMIT:].encode(errors="backslashreplace")[-TEXT_LIMIT:].decode(errors="ignore")


def _text(value: object) -> str:
    try:
        return str.__str__(str(value))  # a plain str, also for a subclass of str
    except BaseException:  # noqa: BLE001 - a hostile __str__ must not end the worker
        return f"<unprintable {type_name(value)}>"


def _traceback(error: BaseException) -> str:
    try:
        text = tracebacks.text_of(error)
    except BaseException:  # noqa: BLE001 - text_of calls __str__, too
        text = tracebacks.frames_of(error)
    return cut_end(text)


def _for_log(error: BaseException) -> BaseException:
    # The frames of the executors refer to the attempt, which refers to its outcome: a reference cycle that only the
    # garbage collector would free.
    return raised.from_outside(error, "maas_backoff.worker.executors.")
