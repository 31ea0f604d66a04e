"""Durations: seconds, or a timedelta."""

from datetime import timedelta

LONGEST_DELAY = 315_360_000
"""Ten years in seconds: the longest delay of a signal."""


def in_seconds(value: float | timedelta) -> float:
    """Return a timedelta in seconds, and any other value unchanged. The caller checks the result."""
    return value.total_seconds() if isinstance(value, timedelta) else value


def in_seconds_if_any(value: float | timedelta | None) -> float | None:
    """Return what `in_seconds` does, and None for None."""
    return None if value is None else in_seconds(value)


def span(seconds: float) -> str:
    """Return a duration in words, rounded to its largest unit."""
    left = max(0.0, seconds)
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if left >= 2 * size:
            return f"{left / size:.0f} {unit}"
    return f"{left:.0f} s"


def moments(seconds: float) -> str:
    """Return a duration in words, in ms below two seconds."""
    return f"{max(0.0, seconds) * 1000:.0f} ms" if seconds < 2 else span(seconds)
