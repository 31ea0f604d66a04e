"""The progress of an attempt: a number and a message."""

from maas_backoff.domain import jsontext
from maas_backoff.errors import InvalidValueError, PayloadError


def checked_progress(progress: float) -> float:
    """Return `progress` if it is a number from 0 to 100, else raise InvalidValueError."""
    if isinstance(progress, bool) or not isinstance(progress, int | float) or not 0 <= progress <= 100:
        raise InvalidValueError("progress", "a number from 0 to 100", progress)
    return progress


LONGEST_MESSAGE = 2000
"""Characters of a progress message that are kept."""


def checked_message(message: object) -> str | None:
    """Return the part of `message` that is kept. Raises InvalidValueError unless it is None or text in UTF-8."""
    if message is None:
        return None
    expected = "None, or text that UTF-8 can hold"
    # The error shows the type only: by mistake, the value may be the task's params.
    if not isinstance(message, str) or not jsontext.is_utf8(message):
        raise PayloadError("message", expected, message)
    return message[:LONGEST_MESSAGE]
