"""JSON text with one spelling per value, to be stored, compared and passed to child processes. Never pickle."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from maas_backoff.common.shown import type_name
from maas_backoff.errors import PayloadError, PayloadTooLargeError

MAX_DEPTH = 100
"""Deepest nesting accepted. Other languages' parsers stop at about 100 to 1000 levels."""

_SHOWN = 80
"""Characters of a key that the path to a value shows."""

_LARGEST_NUMBER = sys.float_info.max

_decoder = json.JSONDecoder()
_encode = json.JSONEncoder(
    ensure_ascii=False,
    allow_nan=False,
    sort_keys=True,
    separators=(",", ":"),
    check_circular=False,  # MAX_DEPTH refuses a circular value before
).encode


def canonical(value: object, option: str, limit: int) -> str:
    """Return the one JSON text of `value`: keys sorted, no spaces, at most `limit` bytes of UTF-8.

    Tuples become arrays. Raises PayloadError with the path of the first value that JSON would change
    (`task_params.images[3]`), and PayloadTooLargeError. No error shows a part of the value.
    """
    if value is None:  # most handlers return None
        return "null"
    if not _plain(value, MAX_DEPTH):
        _check(value, option, MAX_DEPTH)
    try:
        text = _encode(value)
        size = size_of(text)
    except (TypeError, ValueError, UnicodeEncodeError, RecursionError) as error:
        _check(value, option, MAX_DEPTH)  # `_plain` looks at no float of a list: name the one that is not finite
        # Not `from error`: a UnicodeEncodeError keeps the whole text.
        raise PayloadError(option, f"JSON ({type_name(error)})", value) from None
    if size > limit:
        raise PayloadTooLargeError(option, limit, size)
    return text


def size_of(text: str | None) -> int:
    """Return the number of bytes of a text in UTF-8; 0 for None."""
    if text is None or text.isascii():
        return len(text or "")
    return len(text.encode())


def is_utf8(text: str) -> bool:
    """Return whether a text can be written in UTF-8: a lone surrogate, half of an emoji, cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse(text: str | bytes) -> Any:
    """Return the value of a JSON text that `canonical` made."""
    if not isinstance(text, str):
        text = text.decode()
    try:
        value, end = _decoder.raw_decode(text)
    except ValueError:
        value, end = None, -1
    # decode() would search for white space first, which `canonical` does not write: it takes half as long again.
    return value if end == len(text) else _decoder.decode(text)


def _plain(value: object, depth: int) -> bool:  # noqa: PLR0911 - one return per kind of JSON value
    """Return whether a value is certainly good. Most are; this takes a third of the time of `_check`."""
    kind = type(value)
    if kind is str:
        return cast(str, value).isascii()
    if kind is int or kind is float:
        return -_LARGEST_NUMBER <= cast(float, value) <= _LARGEST_NUMBER
    if value is None or kind is bool:
        return True
    if depth == 0:
        return False
    if kind is dict:
        for key, item in cast("dict[object, object]", value).items():
            if type(key) is not str or not key.isascii() or not _plain(item, depth - 1):
                return False
        return True
    if kind is not list:
        return False
    items = cast("list[object]", value)
    # The encoder refuses a float that is not finite. A vector of floats takes a twentieth of the time in this way.
    return set(map(type, items)) == {float} or all(_plain(item, depth - 1) for item in items)


def _check(value: object, path: str, depth: int) -> None:  # noqa: C901 - one case per kind of JSON value
    match value:
        case None | bool():
            pass
        case str():
            _check_text(value, path)
        case int() | float():
            # NaN fails every comparison; an int beyond the largest double is read as infinity elsewhere.
            if not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:
                _refuse(path, "a finite number", value)
        case dict():
            if depth == 0:
                _refuse(path, f"at most {MAX_DEPTH} levels", cast(object, value))
            for key, item in cast("dict[object, object]", value).items():
                if type(key) is not str:
                    # json.dumps would turn 1 into "1", and two keys into one.
                    _refuse(path, "text keys", key)
                _check_text(key, path)
                _check(item, f"{path}.{key[:_SHOWN]}", depth - 1)
        case list() | tuple():
            if depth == 0:
                _refuse(path, f"at most {MAX_DEPTH} levels", cast(object, value))
            for index, item in enumerate(cast(Sequence[object], value)):
                _check(item, f"{path}[{index}]", depth - 1)
        case _:
            _refuse(path, "a JSON value (null, bool, number, text, list, dict)", value)


def _check_text(value: str, path: str) -> None:
    if not is_utf8(value):
        _refuse(path, "text that UTF-8 can hold (no lone surrogates)", value)


def _refuse(path: str, expected: str, got: object) -> NoReturn:
    raise PayloadError(path, expected, got)


def encoded(value: object) -> str:
    """Return the JSON text of a value that `parse` has returned."""
    return _encode(value)


def plain(values: Mapping[str, object]) -> str:
    """Return the JSON text of the library's own small records (policies, errors, frames) without checks."""
    return _encode(dict(values))
