"""The backoff: the delay before a retry."""

import hashlib
import inspect
import math
from collections.abc import Callable
from datetime import timedelta
from enum import StrEnum
from typing import Literal, cast

import attrs

from maas_backoff.common.guard import Log, contained, log_for
from maas_backoff.domain.seconds import in_seconds
from maas_backoff.domain.task import TaskError

log: Log = log_for("worker")

BackoffCallable = Callable[[int], float | timedelta] | Callable[[int, TaskError | None], float | timedelta]
"""A user's backoff: takes the retry's number, from 1, and returns seconds or a timedelta.

With a second parameter without a default, or one that is named `error`, the callable takes the error of the attempt.
`preview` has no error and passes None.
"""


@attrs.frozen
class CustomBackoff:
    """A user's backoff, and how the error is passed to it. Its signature is read once."""

    function: BackoffCallable
    passes: Literal["nothing", "second", "by_name"] = attrs.field(
        init=False, default=attrs.Factory(lambda self: _passes(self.function), takes_self=True)
    )

    def __call__(self, retry: int, error: TaskError | None) -> float | timedelta:
        function = cast("Callable[..., float | timedelta]", self.function)
        match self.passes:
            case "nothing":
                return function(retry)
            case "second":
                return function(retry, error)
            case "by_name":
                return function(retry, error=error)


def as_custom(function: BackoffCallable | CustomBackoff | None) -> CustomBackoff | None:
    """Return a callable with its way to take the error; None for None."""
    return function if function is None or isinstance(function, CustomBackoff) else CustomBackoff(function)


def _passes(function: BackoffCallable) -> Literal["nothing", "second", "by_name"]:
    """Return how a callable takes the error. A second parameter with a default is no place for the error."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # of some functions in C, nobody can tell
        return "nothing"
    by_name = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    if any(one.name == "error" and one.kind in by_name for one in parameters[1:]):
        return "by_name"
    by_place = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY}
    second = parameters[1:2]
    takes_second = second and second[0].kind in by_place and second[0].default is inspect.Parameter.empty
    return "second" if takes_second else "nothing"


class BackoffStrategy(StrEnum):
    """The growth of the delay with the number of the retry."""

    FIXED = "fixed"
    LINEAR = "linear"
    EXPONENTIAL = "exponential"


@attrs.frozen
class Backoff:
    """Delays in seconds before the retries n = 1, 2, 3.

    fixed: `interval`; linear: `interval * n`; exponential: `interval * multiplier ** (n - 1)`.
    `custom`, a callable as of `TaskConfig.backoff_strategy`, replaces the formula. `max_interval` caps the delay.
    `jitter`, a share of the delay, then makes the delay longer or shorter, but never longer than the cap. Both
    intervals are seconds, or a timedelta.
    """

    strategy: str = BackoffStrategy.EXPONENTIAL
    interval: float = attrs.field(default=30, converter=in_seconds)
    multiplier: float = 2.0
    max_interval: float = attrs.field(default=3600, converter=in_seconds)
    jitter: float = 0.0
    custom: CustomBackoff | None = attrs.field(default=None, converter=as_custom)

    def delay(self, retry: int, task_id: str = "", error: TaskError | None = None) -> float:
        """Return the seconds to wait before retry number `retry` of a task, after `error`.

        The jitter follows from the task's id and the retry's number: it spreads a burst of failures, and `preview`
        can compute it.
        """
        delay = min(max(self._base(retry, error), 0.0), self.max_interval)
        if not self.jitter:
            return delay
        least, most = delay * (1 - self.jitter), min(delay * (1 + self.jitter), self.max_interval)
        return min(least + (most - least) * _draw(task_id, retry), self.max_interval)

    def spread(self, after: float, task_id: str, what: str) -> float:
        """Return the seconds to wait if a handler asked for `after`: at least `after`, and more by the jitter's share.

        Never fewer: another server may have named `after`. `what` distinguishes the requests of one task.
        """
        return after * (1 + self.jitter * _draw(task_id, what)) if self.jitter else after

    def preview(self, retries: int, task_id: str = "") -> list[float]:
        """Return the exact delays before the first `retries` retries of a task, before anything runs."""
        return [self.delay(retry, task_id) for retry in range(1, retries + 1)]

    def _base(self, retry: int, error: TaskError | None) -> float:
        if self.custom is not None and (delay := _call(self.custom, retry, error)) is not None:
            return delay
        match self.strategy:
            case BackoffStrategy.FIXED:
                return self.interval
            case BackoffStrategy.LINEAR:
                return self.interval * retry
            case _:
                return self._exponential(retry)

    def _exponential(self, retry: int) -> float:
        try:
            return self.interval * float(self.multiplier) ** (retry - 1)
        except OverflowError:  # 30 * 2.0 ** 1999; an interval of 0 stays 0
            return self.max_interval if self.interval else 0.0


def _call(custom: CustomBackoff, retry: int, error: TaskError | None) -> float | None:
    """Return the delay that a user's callable returns. If it returns none, log the error and return None."""
    return contained(lambda: _seconds(custom(retry, error), retry), lambda wrong: _failed(wrong, retry))


def _seconds(delay: float | timedelta, retry: int) -> float | None:
    seconds = float(in_seconds(delay))
    if math.isfinite(seconds):
        return seconds
    log.error("the backoff callable gave %r for retry %d; the exponential formula stands in", seconds, retry)
    return None


def _failed(error: BaseException, retry: int) -> None:
    log.error("the backoff callable failed for retry %d; the exponential formula stands in", retry, exc_info=error)


def _draw(task_id: str, what: int | str) -> float:
    digest = hashlib.blake2b(f"{task_id}:{what}".encode(errors="replace"), digest_size=6).digest()
    return int.from_bytes(digest) / 2**48
