"""Durations: seconds, or a timedelta."""

from datetime import timedelta


def in_seconds(value: float | timedelta) -> float:
    """Return a timedelta in seconds, and any other value unchanged. The caller checks the result."""
    return value.total_seconds() if isinstance(value, timedelta) else value
