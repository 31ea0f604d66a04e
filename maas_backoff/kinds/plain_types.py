"""Conversions of single values: JSON's own, times, ids, numbers, bytes, enums and literals."""

import base64
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, cast
from uuid import UUID

from maas_backoff.kinds.conversion import (
    ALL_JSON,
    BOOL,
    FLOAT,
    INT,
    NULL,
    TEXT,
    Conversion,
    UnsupportedTypeError,
    json_type_of,
    listed,
)


class AnyJson(Conversion):
    """Leaves any JSON value as it is: `Any`, `object`. The creation of the task checks the value."""

    expected: str = "a JSON value"
    json_types: frozenset[str] = ALL_JSON

    def dump(self, value: object, path: str) -> object:  # noqa: ARG002 - the interface has it
        return value

    def load(self, value: object, path: str) -> object:  # noqa: ARG002 - the interface has it
        return value


class Same(Conversion):
    """Leaves a value of JSON's own types as it is: None, bool, int and str."""

    def __init__(self, kind: type, expected: str, json_type: str) -> None:
        self._kind = kind
        self.unchanged: type | None = kind
        self.expected: str = expected
        self.json_types: frozenset[str] = frozenset({json_type})

    def dump(self, value: object, path: str) -> object:
        # A bool is an int for Python, and not for JSON.
        if type(value) is not self._kind and (not isinstance(value, self._kind) or isinstance(value, bool)):
            self.refuse(path, value)
        return value

    load = dump


class Float(Conversion):
    """A float: a whole number is one, too, as for type checkers."""

    expected: str = "a number"
    json_types: frozenset[str] = frozenset({FLOAT})
    unchanged: type | None = float

    def dump(self, value: object, path: str) -> object:
        return self.load(value, path)

    def load(self, value: object, path: str) -> float:
        if type(value) is float:
            return value
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(path, value)
        try:
            return float(value)
        except OverflowError:
            self.refuse(path, value)


class ByText(Conversion):
    """A value that is text in JSON."""

    json_types: frozenset[str] = frozenset({TEXT})

    def __init__(
        self, kind: type, expected: str, to_text: Callable[[Any], str], from_text: Callable[[str], object]
    ) -> None:
        self._kind = kind
        self.expected: str = expected
        self._to_text = to_text
        self._from_text = from_text

    def dump(self, value: object, path: str) -> object:
        if not isinstance(value, self._kind) or (self._kind is date and isinstance(value, datetime)):
            self.refuse(path, value)
        return self._to_text(value)

    def load(self, value: object, path: str) -> object:
        if not isinstance(value, str):
            self.refuse(path, value)
        try:
            return self._from_text(value)
        except (ValueError, InvalidOperation):
            self.refuse(path, value)


class Duration(Conversion):
    """A timedelta: seconds in JSON."""

    expected: str = "a timedelta"
    json_types: frozenset[str] = frozenset({FLOAT, INT})

    def dump(self, value: object, path: str) -> object:
        if not isinstance(value, timedelta):
            self.refuse(path, value)
        return value.total_seconds()

    def load(self, value: object, path: str) -> timedelta:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(path, value)
        try:
            return timedelta(seconds=value)
        except (OverflowError, ValueError):
            self.refuse(path, value)


class Choice(Conversion):
    """One of some values: a Literal, or an Enum by its values."""

    def __init__(self, expected: str, json_of: Mapping[object, object]) -> None:
        """`json_of` has the JSON value of each allowed value."""
        self.expected: str = expected
        # True == 1: the type belongs to the key.
        self._json_of = {(type(value), value): plain for value, plain in json_of.items()}
        self._of_json = {(type(plain), plain): value for value, plain in json_of.items()}
        self.json_types: frozenset[str] = frozenset(map(json_type_of, json_of.values()))

    def dump(self, value: object, path: str) -> object:
        return self._found(self._json_of, value, path)

    def load(self, value: object, path: str) -> object:
        return self._found(self._of_json, value, path)

    def _found(self, table: Mapping[tuple[type, object], object], value: object, path: str) -> object:
        try:
            return table[type(value), value]
        except (KeyError, TypeError):  # an unhashable value
            self.refuse(path, value)


def choice_of_literals(values: tuple[object, ...]) -> Conversion:
    """Return the conversion of Literal[values]. Members of enums are stored by their values."""
    json_of = {value: value.value if isinstance(value, Enum) else value for value in values}
    if bytes in {type(plain) for plain in json_of.values()}:
        raise UnsupportedTypeError("a Literal of bytes is not JSON; use text")
    return Choice(listed([repr(value) for value in json_of.values()]), json_of)


def choice_of_enum(kind: type[Enum]) -> Conversion:
    """Return the conversion of an Enum whose values are texts, numbers or None."""
    json_of: dict[object, object] = {member: cast(object, member.value) for member in kind}
    for plain in json_of.values():
        if json_type_of(plain) not in {NULL, BOOL, INT, FLOAT, TEXT}:
            raise UnsupportedTypeError(f"a value of {kind.__name__} is neither text nor a number; give it such values")
    return Choice(f"a {kind.__name__}", json_of)


def _bytes_of(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _text_of_bytes(value: bytes) -> str:
    return base64.b64encode(value).decode()


PLAIN: Mapping[object, Conversion] = {
    Any: AnyJson(),
    object: AnyJson(),
    None: Same(type(None), "None", NULL),
    type(None): Same(type(None), "None", NULL),
    bool: Same(bool, "a bool", BOOL),
    int: Same(int, "a whole number", INT),
    float: Float(),
    str: Same(str, "text", TEXT),
    bytes: ByText(bytes, "bytes", _text_of_bytes, _bytes_of),
    datetime: ByText(datetime, "a datetime", datetime.isoformat, datetime.fromisoformat),
    date: ByText(date, "a date", date.isoformat, date.fromisoformat),
    time: ByText(time, "a time of day", time.isoformat, time.fromisoformat),
    timedelta: Duration(),
    UUID: ByText(UUID, "a UUID", str, UUID),
    Decimal: ByText(Decimal, "a Decimal", str, Decimal),
    Path: ByText(Path, "a Path", str, Path),
    PurePath: ByText(PurePath, "a PurePath", str, PurePath),
}
"""The conversions of types without parameters."""
