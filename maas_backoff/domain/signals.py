"""The signals that a handler may raise to choose the outcome of its attempt."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Self

from maas_backoff.domain.headers import seconds_in
from maas_backoff.domain.lane import checked_limit
from maas_backoff.domain.seconds import LONGEST_DELAY
from maas_backoff.errors import InvalidValueError, MaasBackoffError, PayloadError

__all__ = ["Discard", "HandlerSignal", "Misfit", "RateLimited", "Retry", "Snooze"]


class HandlerSignal(MaasBackoffError):  # noqa: N818 - a signal of a handler is no error
    """The root of the signals that a handler raises to choose the outcome of its attempt."""


def seconds_of(after: object, option: str = "after") -> float:
    """Return `after` in seconds. Raises InvalidValueError unless it is seconds from 0 to ten years, or a timedelta."""
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_DELAY:
        raise InvalidValueError(option, "seconds from 0 to ten years, or a timedelta", after)
    return float(seconds)


def checked_code(code: object) -> int | None:
    """Return the code of an error. Raises InvalidValueError unless it is None or a whole number of 64 bits."""
    if code is None:
        return None
    if isinstance(code, bool) or not isinstance(code, int) or not -(2**63) <= code < 2**63:
        raise InvalidValueError("code", "a whole number of 64 bits, or None", code)
    return int(code)


class Retry(HandlerSignal):
    """Raise to be retried after `after` seconds (or a timedelta) instead of after the backoff's delay.

    `backoff_jitter` may make the wait longer, never shorter. `params`, a dict of JSON values, replace the task's params
    from then on. A Retry uses one of the task's retries; if none is left, the task fails. It uses none if it is raised
    because of an error for lack of GPU memory (`from error`, or in its `except`).
    """

    # For subclasses that do not call `super().__init__()`.
    after: float | None = None
    reason: str = "retry requested"
    params: Mapping[str, object] | None = None

    def __init__(
        self,
        after: float | timedelta | None = None,
        reason: str = "retry requested",
        *,
        params: Mapping[str, object] | None = None,
    ) -> None:
        self.after = None if after is None else seconds_of(after)
        self.reason = reason
        if params is not None and not isinstance(params, dict):
            raise PayloadError("params", "a dict, or None", params)
        self.params = params
        super().__init__(reason)

    @classmethod
    def from_headers(
        cls,
        headers: Mapping[str, str],
        reason: str = "retry requested",
        *,
        params: Mapping[str, object] | None = None,
        otherwise: float | timedelta = 1,
    ) -> Self:
        """Return a Retry after the time that an HTTP answer with these headers asks for.

        The first of these headers that can be read counts: `retry-after-ms`, `x-ms-retry-after-ms`, `Retry-After` in
        seconds or as a date. After them, `x-ratelimit-reset-requests: 6m0s` and the like count, each only if its
        `x-ratelimit-remaining-…` is 0. `headers` may be a dict, or those of httpx, requests or aiohttp; upper and lower
        case are alike. Without such a header, the time is `otherwise`: seconds (1 by default), or a timedelta. A date
        in the past means 0, and a time of more than ten years means ten years. A subclass must take the same arguments
        as Retry. Raises InvalidValueError for a wrong argument.
        """
        return cls(_asked(headers, otherwise), reason, params=params)


def _asked(headers: Mapping[str, str], otherwise: float | timedelta) -> float:
    least = seconds_of(otherwise, "otherwise")
    asked = seconds_in(headers)
    return least if asked is None else asked


class Snooze(HandlerSignal):
    """Raise to come back after `after` seconds (or a timedelta) without using a retry.

    `backoff_jitter` may make the wait longer, never shorter. `snooze_count` counts the snoozes. A task that snoozes
    more than `max_snoozes` times fails.
    """

    after: float

    def __init__(self, after: float | timedelta) -> None:
        self.after = seconds_of(after)
        super().__init__(f"snoozed for {self.after:g} s")


class RateLimited(Snooze):
    """Raise if an upstream gets too many calls: closes its limit for all workers for `after` seconds (or a timedelta).

    No task that names the limit starts before that time has passed, and up to a tenth more: queues that share an
    upstream do not come back in one moment. Then one task starts. Each task that completes lets one more run at once.
    The task that was raised from comes back as after a Snooze, without using a retry.

    `limit` is the name of a limit. The task need not name it. Without `limit`, all limits that the task names are
    closed; if it names none, a RateLimited does what a Snooze does. A subclass may set `limit` as an attribute of its
    class. If an exception group has other errors than Snoozes, these errors decide, and no limit is closed.
    """

    # For subclasses that do not call `super().__init__()`.
    limit: str | None = None

    def __init__(self, after: float | timedelta, *, limit: str | None = None) -> None:
        super().__init__(after)
        if limit is not None:  # a subclass may have set its limit
            self.limit = checked_limit(limit)

    @classmethod
    def from_headers(
        cls, headers: Mapping[str, str], *, limit: str | None = None, otherwise: float | timedelta = 1
    ) -> Self:
        """Return a RateLimited for the time that an HTTP answer with these headers asks for: see Retry.from_headers.

        Without a header that can be read, the time is `otherwise`: seconds (1 by default), or a timedelta. A subclass
        must take the same arguments as RateLimited. Raises InvalidValueError for a wrong argument.
        """
        return cls(_asked(headers, otherwise), limit=limit)


class Discard(HandlerSignal):
    """Raise to fail the task at once, even if it has retries left.

    `reason` is the message of the task's error, and `code` its code, for example an HTTP status. A subclass may set
    `code` as an attribute of its class.
    """

    # For subclasses that do not call `super().__init__()`.
    reason: str = "discarded by its handler"
    code: int | None = None

    def __init__(self, reason: str = "discarded by its handler", *, code: int | None = None) -> None:
        self.reason = reason
        if code is not None:  # a subclass may have set its code
            self.code = checked_code(code)
        super().__init__(reason)


class Misfit(Discard):
    """Raised by this library, not by handlers: a task's params, or a result, do not fit the types of its function.

    `type` is that of the TaskError: `bad_arguments` or `not_serializable`. The same code would fail the same way again.
    """

    def __init__(self, type: str, reason: str) -> None:  # noqa: A002 - the name of the field of TaskError
        self.type = type
        super().__init__(reason)
