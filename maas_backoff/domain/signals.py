"""The signals that a handler may raise to choose the outcome of its attempt."""

from collections.abc import Mapping
from datetime import timedelta

from maas_backoff.errors import InvalidValueError, MaasBackoffError, PayloadError

__all__ = ["Discard", "HandlerSignal", "Misfit", "Retry", "Snooze"]


class HandlerSignal(MaasBackoffError):  # noqa: N818 - a signal of a handler is no error
    """The root of the signals that a handler raises to choose the outcome of its attempt."""


def seconds_of(after: object) -> float:
    """Return `after` in seconds. Raises InvalidValueError unless it is seconds from 0 to ten years, or a timedelta."""
    seconds = after.total_seconds() if isinstance(after, timedelta) else after
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 315_360_000:
        raise InvalidValueError("after", "seconds from 0 to ten years, or a timedelta", after)
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


class Snooze(HandlerSignal):
    """Raise to come back after `after` seconds (or a timedelta) without using a retry.

    `backoff_jitter` may make the wait longer, never shorter. `snooze_count` counts the snoozes. A task that snoozes
    more than `max_snoozes` times fails.
    """

    after: float

    def __init__(self, after: float | timedelta) -> None:
        self.after = seconds_of(after)
        super().__init__(f"snoozed for {self.after:g} s")


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
