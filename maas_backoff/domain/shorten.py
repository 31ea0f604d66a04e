"""The texts of values and errors of users, bounded, whatever their `__str__` does."""

from maas_backoff.common.shown import type_name

TEXT_LIMIT = 8192
"""Bytes of an error's message and of its traceback that are kept."""


def cut(value: object) -> str:
    """Return the text of any value, cut to TEXT_LIMIT bytes; characters without UTF-8 are escaped."""
    text = "" if value is None else text_of(value)
    data = text[:TEXT_LIMIT].encode(errors="backslashreplace")
    return data[:TEXT_LIMIT].decode(errors="ignore")


def cut_end(text: str) -> str:
    """Return the last TEXT_LIMIT bytes of a text: the end of a traceback says most."""
    return text[-TEXT_LIMIT:].encode(errors="backslashreplace")[-TEXT_LIMIT:].decode(errors="ignore")


def text_of(value: object) -> str:
    """Return the text of any value, which may raise whatever it is asked for."""
    try:
        return str.__str__(str(value))  # a plain str, also for a subclass of str
    except BaseException:  # noqa: BLE001 - a hostile __str__ must not end the worker
        return f"<unprintable {type_name(value)}>"
