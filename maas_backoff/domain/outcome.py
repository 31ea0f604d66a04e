"""The outcomes of an attempt."""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.fault import Fault
from maas_backoff.domain.shorten import cut
from maas_backoff.domain.task import TaskError
from maas_backoff.errors import PayloadError, PayloadTooLargeError


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
    delay, `params` (JSON text) the task's params. `fault` is the GPU fault that the error means. `names` are those of
    the exception's classes, for `retry_on` and `give_up_on`. `requested`: the handler has raised Retry.

    `exception` is for the log if the handler ran in this process. An exception keeps the handler's variables alive. It
    is left out for a GPU fault, because these variables may have the GPU's memory.

    `expired`: the deadline of the task stopped the attempt. The task is cancelled.
    """

    error: TaskError
    traceback: str = ""
    raised: bool = False
    permanent: bool = False
    retry_after: float | None = None
    params: str | None = attrs.field(default=None, repr=False)
    fault: Fault = ""
    expired: bool = False
    names: tuple[str, ...] = ()
    requested: bool = False
    exception: BaseException | None = attrs.field(default=None, eq=False, repr=False)

    def limited(self, limit: int) -> "Failed":
        """Return this failure, or a permanent one if the params of a Retry have more than `limit` bytes."""
        size = jsontext.size_of(self.params)
        return self if size <= limit else unserializable(PayloadTooLargeError("params", limit, size))


class FailedOnGpu(NamedTuple):
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
    """The handler asked for the task to come back after this many seconds.

    `closes` has the limits that the task closes, by name or ALL_LIMITS, each with its seconds.
    """

    after: float
    closes: tuple[tuple[str, float], ...] = ()


class Cancelled(NamedTuple):
    """The attempt was stopped by a user or by a shutdown, or its lease was lost."""

    reason: CancelReason


@attrs.frozen
class Unstarted:
    """The task was claimed, and its handler was not called."""


class LeaseExpired(NamedTuple):
    """The attempt's worker has not renewed its lease.

    `together` tasks may have ended the worker, this one included. The task comes back in the cohort named `cohort`,
    which has at most `size` tasks.
    """

    together: int = 1
    cohort: str = ""
    size: int = 1


class FailedInBatch(NamedTuple):
    """The batch of the attempt failed, and nothing shows which of its tasks is to blame.

    The task comes back in the cohort named `cohort`, which has at most `size` tasks.
    """

    failed: Failed
    cohort: str
    size: int


class FailedAlone(NamedTuple):
    """The attempt failed as the only one of its batch, and the task is to blame. It stays alone, to fail no others."""

    failed: Failed


HandlerOutcome = Succeeded | Failed | Snoozed | Unstarted
"""The outcomes of one call of the handler, which a child process sends to its worker."""

Outcome = HandlerOutcome | FailedOnGpu | FailedInBatch | FailedAlone | Cancelled | LeaseExpired


def unserializable(error: PayloadError) -> Failed:
    """Return the outcome of an attempt whose result, or whose params of a Retry, are not JSON or too large."""
    return Failed(TaskError("not_serializable", cut(str(error))), permanent=True)


def timed_out(seconds: float, traceback: str = "") -> Failed:
    """Return the outcome of an attempt that its timeout stopped; `traceback` is that of the handler's error, if any."""
    return Failed(TaskError("timeout", f"stopped after {seconds:g} s"), traceback, raised=True)


def expired(seconds: float, traceback: str = "") -> Failed:
    """Return the outcome of an attempt that the deadline of its task stopped; `traceback` as for `timed_out`."""
    error = TaskError("timeout", f"stopped after {seconds:.3g} s, at the deadline of the task")
    return Failed(error, traceback, expired=True)


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
            return Snoozed(fields["after"], tuple((name, seconds) for name, seconds in fields["closes"]))
        case "Unstarted":
            return Unstarted()
        case _:
            error, names = TaskError(**fields.pop("error")), tuple(fields.pop("names"))
            return Failed(error, names=names, **fields)


def to_dicts(outcomes: Iterable[HandlerOutcome]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the outcomes of a batch as dicts of `to_dict` without results, and the results, which are JSON texts."""
    told, results = list[dict[str, Any]](), list[str]()
    for outcome in outcomes:
        if isinstance(outcome, Succeeded):
            told.append({"kind": Succeeded.__name__})
            results.append(outcome.result)
        else:
            told.append(to_dict(outcome))
    return told, results


def from_dicts(told: Iterable[Mapping[str, Any]], results: Iterable[str]) -> list[HandlerOutcome]:
    """Return the outcomes of a batch that `to_dicts` has returned. Raises ValueError if a result is missing."""
    left = iter(results)
    outcomes = [_with_result(left) if one["kind"] == Succeeded.__name__ else from_dict(one) for one in told]
    if next(left, None) is not None:
        raise ValueError("more results than outcomes")
    return outcomes


def _with_result(left: Iterator[str]) -> Succeeded:
    result = next(left, None)
    if result is None:
        raise ValueError("fewer results than outcomes")
    return Succeeded(result)
