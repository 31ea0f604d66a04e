"""The time that an HTTP answer asks its client to wait, by its headers."""

import re
import time
from collections.abc import Callable, Iterable, Mapping

from maas_backoff.domain.seconds import LONGEST_DELAY
from maas_backoff.errors import PayloadError

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
_RESET, _REMAINING = "x-ratelimit-reset-", "x-ratelimit-remaining-"


def seconds_in(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, from 0 to ten years; None if no header says so in a form that is known.

    Raises PayloadError unless `headers` has names and values.
    """
    if not callable(getattr(headers, "items", None)):
        raise PayloadError("headers", "a mapping of names to texts", headers)
    pairs: Iterable[tuple[object, object]] = headers.items()
    found = {name.lower(): value.strip() for name, value in pairs if isinstance(name, str) and isinstance(value, str)}
    for name, read in _READERS.items():
        seconds = read(found[name]) if name in found else None
        if seconds is not None:
            return _bounded(seconds)
    resets = list(_resets(found))
    return _bounded(max(resets)) if resets else None


def _bounded(seconds: float) -> float:
    return float(min(max(seconds, 0), LONGEST_DELAY))


def _number(text: str) -> float | None:
    return float(text) if _NUMBER.fullmatch(text) else None


def _milliseconds(text: str) -> float | None:
    number = _number(text)
    return None if number is None else number / 1000


def _seconds_or_date(text: str) -> float | None:
    number = _number(text)
    return _until(text) if number is None else number


def _until(text: str) -> float | None:
    """Return the seconds until an HTTP date, in any of its three forms, by this machine's clock."""
    from datetime import UTC
    from email.utils import parsedate_to_datetime  # late: few programs need it

    try:
        moment = parsedate_to_datetime(text)
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return aware.timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _duration(text: str) -> float | None:
    """Return the seconds in a duration such as `6m0s` or `12ms`."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def _resets(found: Mapping[str, str]) -> Iterable[float]:
    """Yield the time to the reset of each limit of which nothing remains.

    Only durations with units are read: services send plain numbers as seconds, milliseconds or moments.
    """
    for name, text in found.items():
        if name.startswith(_RESET) and _number(found.get(_REMAINING + name.removeprefix(_RESET), "")) == 0:
            seconds = _duration(text)
            if seconds is not None:
                yield seconds


_READERS: Mapping[str, Callable[[str], float | None]] = {
    "retry-after-ms": _milliseconds,
    "x-ms-retry-after-ms": _milliseconds,
    "retry-after": _seconds_or_date,
}
"""The headers that say how long to wait, in this order."""
