"""The outcome of one call of a handler, by its value or its exception.

A handler may raise Retry, Snooze or Discard inside of a task group. The task group wraps several of them, and other
errors, in one exception group. The first that is in the group decides: Discard; Retry (the longest delay); any other
error, and the attempt has failed; Snooze (the longest delay). A Snooze uses no retry, and never hides an error.
A RateLimited is a Snooze. If several decide, each closes its limits for its own time.
"""

import inspect
from collections.abc import Container, Iterable, Sequence
from typing import Any

from maas_backoff.common.shown import type_name
from maas_backoff.domain import jsontext, raised, tracebacks
from maas_backoff.domain.fault import WORST_FIRST, Fault, fault_of, may_come_back
from maas_backoff.domain.lane import ALL_LIMITS, checked_limit
from maas_backoff.domain.outcome import Failed, HandlerOutcome, Snoozed, Succeeded, unserializable
from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.shorten import cut, cut_end, text_of
from maas_backoff.domain.signals import Discard, HandlerSignal, Misfit, RateLimited, Retry, Snooze, seconds_of
from maas_backoff.domain.task import TaskError
from maas_backoff.domain.validation import checked_params
from maas_backoff.errors import PayloadError

LARGEST_PARAMS = 64 * 1_048_576
"""Bytes. `Failed.limited` applies the queue's own limit, before the outcome is settled."""

LONGEST_NAME = 200
"""Characters of an exception's class name that are kept."""


def outcome_of_value(value: object, limit: int) -> HandlerOutcome:
    """Return the outcome of a handler that returned `value`; a result may have `limit` bytes of JSON. Never raises."""
    try:
        return _outcome_of_value(value, limit)
    except BaseException as error:  # noqa: BLE001 - a dict whose `items` raises, a subclass of ResultEntity
        return outcome_of_error(error, limit)


def _outcome_of_value(value: object, limit: int) -> HandlerOutcome:
    if isinstance(value, ResultEntity):
        if not value.success:
            return Failed(TaskError("failed", cut(value.message), code_of(value.code)))
        value = value.result
    if inspect.iscoroutine(value):
        value.close()  # else Python would warn later that the coroutine was never awaited
    try:
        return Succeeded(jsontext.canonical(value, "result", limit))
    except PayloadError as error:
        # The same code would return the same value again.
        return unserializable(error)


def code_of(code: object) -> int | None:
    """Return the code of a failure if it is a 64-bit integer, else None: users may set any value."""
    return int(code) if isinstance(code, int) and -(2**63) <= code < 2**63 else None


def outcome_of_error(error: BaseException, limit: int = LARGEST_PARAMS) -> HandlerOutcome:
    """Return the outcome of a handler that raised `error`. Never raises, whatever the exception's class does.

    The params of a Retry may have `limit` bytes of JSON.
    """
    try:
        return _outcome_of_error(error, limit)
    except BaseException as wrong:  # noqa: BLE001 - attributes, texts and properties of an exception are a user's code
        kind = cut(type_name(error))[:LONGEST_NAME]
        message = f"the error cannot be read ({type_name(wrong)})"
        return Failed(TaskError(kind, message), raised=True, names=raised.class_names([error]))


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
    first = signals[0]
    kind = first.type if type(first) is Misfit else "discarded"
    code = code_of(_read(first, "code", None))
    reason = TaskError(kind, cut(_read(first, "reason", Discard.reason)), code)
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
        return unserializable(wrong)
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
        requested=True,
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
    delays: list[float] = []
    closes: list[tuple[str, float]] = []
    for one in signals:
        try:
            after = seconds_of(_read(one, "after", None))
            if issubclass(type(one), RateLimited):
                closes.append((_limit(one), after))
        except ValueError as wrong:  # a subclass that does not call super().__init__()
            return _misused(error, one, wrong)
        delays.append(after)
    return Snoozed(max(delays), tuple(closes))


def _limit(signal: BaseException) -> str:
    name = _read(signal, "limit", None)
    return ALL_LIMITS if name is None else checked_limit(name)


def _misused(error: BaseException, signal: BaseException, wrong: ValueError) -> Failed:
    misuse = TaskError(cut(type_name(signal))[:LONGEST_NAME], cut(wrong))
    names = raised.class_names([signal])
    return Failed(misuse, _traceback(error), raised=True, names=names, exception=_for_log(error))


def _failed(error: BaseException, members: _Members) -> Failed:
    shown = TaskError(cut(type_name(error))[:LONGEST_NAME], _message(error, members))
    # Most errors are no groups and have no cause: a third of the time.
    alone = len(members) == 1 and members[0] is error and raised.cause(error) is None
    text, fault = _traceback(error), fault_of(shown.type, shown.message) if alone else _fault([error])
    exception = None if may_come_back(fault) else _for_log(error)
    names = raised.class_names([error] if alone else [error, *members])
    return Failed(shown, text, raised=True, fault=fault, names=names, exception=exception)


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
        lines = [line for line in cut_end(text_of(error)).splitlines() if not line.startswith(" ")]
        return _worst({fault_of(line.partition(":")[0].rpartition(".")[2], line) for line in lines})
    return fault_of(kind, cut(error))


_REMOTE = {"_RemoteTraceback", "RemoteTraceback"}


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
