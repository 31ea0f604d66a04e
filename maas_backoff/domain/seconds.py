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
