"""Durations: seconds, or a timedelta, wherever one is taken."""

from datetime import timedelta


def in_seconds(value: float | timedelta) -> float:
    """Return a timedelta in seconds, and anything else as it is: what it must be is checked afterwards."""
    return value.total_seconds() if isinstance(value, timedelta) else value
