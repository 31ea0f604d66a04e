"""The settings of a limit that all workers of a queue share."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import attrs

from maas_backoff.domain.lane import checked_limit, is_cost
from maas_backoff.errors import InvalidValueError

Rate = tuple[float, float | str | timedelta]
"""A number, and the time in which so many may start: `(500, "1m")`, or seconds, or a timedelta."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_TIME = re.compile(r"(\d+(?:\.\d+)?) ?([smhd])")
_LONGEST = 86_400 * 31
_NONE = "-"
CLASS = ":*"
"""The end of the name of a limit that is the default of all names of a class: `user:*`."""

SHARE = 50
"""A fiftieth of a rate may start at once. The rest is spread evenly: no stretch of that time has more than the rate."""


def checked_limit_name(name: object) -> str:
    """Return the name of a limit, or of a class of limits: `openai`, `user:*`. Raises InvalidValueError."""
    if isinstance(name, str) and name.endswith(CLASS) and ":" not in name[: -len(CLASS)]:
        checked_limit(name[: -len(CLASS)])
        return name
    return checked_limit(name)


def rate_of(option: str, text: str, *, whole: bool) -> Rate:
    """Return the rate of a text such as `500/1m`. Raises InvalidValueError."""
    most, _, period = text.partition("/")
    try:
        rate: Rate = (int(most) if whole else float(most)), period
        _parsed(option, rate, whole=whole)
    except ValueError:  # an InvalidValueError, too
        number = "a whole number" if whole else "a number"
        raise InvalidValueError(option, f"{number} and a time up to 31d, such as 500/1m", text) from None
    return rate


def rate_text(rate: Rate) -> str:
    """Return a rate as `rate_of` reads it: `500/1m`."""
    most, period = rate
    seconds = _seconds(period) or 0.0
    unit = next((name for name, size in reversed(_SECONDS.items()) if seconds >= size and not seconds % size), "s")
    return f"{most:.12g}/{seconds / _SECONDS[unit]:.12g}{unit}"


def _parsed(option: str, rate: Any, *, whole: bool) -> tuple[float, float]:
    """Return the number and the ms of a rate. Raises InvalidValueError."""
    number = "a whole number from 1 on" if whole else "a number above 0"
    expected = f'a pair of {number} and a time up to 31 days, such as (500, "1m"), or None'
    if not isinstance(rate, tuple | list):
        raise InvalidValueError(option, expected, rate)
    pair: list[Any] = [*rate]
    seconds = _seconds(pair[1]) if len(pair) == 2 else None
    if seconds is None or not is_cost(pair[0]) or (whole and not isinstance(pair[0], int)):
        raise InvalidValueError(option, expected, pair)
    return float(pair[0]), seconds * 1000


def _rate_of(text: str, number: Callable[[str], float]) -> Rate | None:
    """Return the rate of a text "number/ms", with seconds."""
    if text == _NONE:
        return None
    most, _, period = text.partition("/")
    return number(most), float(period) / 1000


def _seconds(period: Any) -> float | None:
    """Return the seconds of a time, or None if it is none up to 31 days."""
    if isinstance(period, str):
        parts = _TIME.fullmatch(period)
        period = None if parts is None else float(parts[1]) * _SECONDS[parts[2]]
    elif isinstance(period, timedelta):
        period = period.total_seconds()
    if isinstance(period, bool) or not isinstance(period, int | float) or not 0 < period <= _LONGEST:
        return None
    return float(period)


@attrs.frozen
class Limit:
    """A limit: most running tasks, most starts in a time, most units in a time. None: no such limit.

    Rates follow the generic cell rate algorithm (ITU-T I.371): a start moves the moment of the next one. At most a
    fiftieth of a rate starts at once, and the rest evenly: no stretch of that time has more starts than the rate.
    """

    concurrency: int | None = None
    rate: Rate | None = None
    tokens: Rate | None = None

    def __attrs_post_init__(self) -> None:
        most = self.concurrency
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 1_000_000):
            raise InvalidValueError("concurrency", "a whole number from 1 to 1,000,000, or None", most)
        if self.concurrency is None and self.rate is None and self.tokens is None:
            raise InvalidValueError("concurrency", "concurrency, rate or tokens", None)
        if self.rate is not None:
            _parsed("rate", self.rate, whole=True)
        if self.tokens is not None:
            _parsed("tokens", self.tokens, whole=False)

    @property
    def setting(self) -> str:
        """The text that _limits.lua reads, and the rates as they were set."""
        interval = burst = unit = unit_burst = 0.0
        rate = tokens = _NONE
        if self.rate is not None:
            most, period = _parsed("rate", self.rate, whole=True)
            at_once = max(1, most // SHARE)
            interval = period / (most - at_once + 1)
            burst = (at_once - 1) * interval
            rate = f"{most:.12g}/{period:.12g}"
        if self.tokens is not None:
            most, period = _parsed("tokens", self.tokens, whole=False)
            unit = period / (most - most / SHARE)
            unit_burst = most / SHARE * unit
            tokens = f"{most:.12g}/{period:.12g}"
        numbers = (self.concurrency or 0, interval, burst, unit, unit_burst)
        return " ".join((*(f"{number:.12g}" for number in numbers), rate, tokens))

    @classmethod
    def of(cls, setting: str) -> "Limit | None":
        """Return the limit of a text that `setting` has made, with the times of its rates in seconds.

        Return None for a text that has no limit: a person has written over it.
        """
        try:
            most, _, _, _, _, rate, tokens = setting.split()
            return cls(int(most) or None, _rate_of(rate, int), _rate_of(tokens, float))
        except ValueError:  # an InvalidValueError, too
            return None
