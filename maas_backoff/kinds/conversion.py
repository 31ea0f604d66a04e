"""The conversion of a value of one type into JSON and back, and the errors on the way."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from maas_backoff.common.shown import type_name
from maas_backoff.errors import PayloadError

LONGEST_KEY = 80
"""Characters of a key that the path to a value shows."""

NULL, BOOL, INT, FLOAT, TEXT, LIST, OBJECT = "null", "bool", "int", "float", "text", "list", "object"
"""The JSON types. A union tells its members apart by their JSON types."""

ALL_JSON = frozenset({NULL, BOOL, INT, FLOAT, TEXT, LIST, OBJECT})

_JSON_TYPES: Mapping[type, str] = {
    type(None): NULL,
    bool: BOOL,
    int: INT,
    float: FLOAT,
    str: TEXT,
    list: LIST,
    dict: OBJECT,
}


class UnsupportedTypeError(Exception):
    """Raised for an annotation that has no conversion. The text says why, and what to write instead."""


class Conversion(ABC):
    """Converts the values of one type. `path` names the value in errors, which never show the value."""

    expected: str
    """The words for a value of the type, such as "a whole number"."""
    json_types: frozenset[str]
    """The JSON types that `dump` may return."""
    unchanged: type | None = None
    """The type whose values `dump` and `load` always return as they are."""

    @abstractmethod
    def dump(self, value: object, path: str) -> object:
        """Return the JSON value of `value`. Raises PayloadError for a value of another type."""

    @abstractmethod
    def load(self, value: object, path: str) -> Any:
        """Return the value of a JSON value. Raises PayloadError for one that `dump` would not return."""

    def refuse(self, path: str, value: object) -> NoReturn:
        """Raise the PayloadError for a value of another type."""
        raise PayloadError(path, self.expected, value)


def json_type_of(value: object) -> str:
    """Return the JSON type of a value; empty for a value that is not JSON."""
    return _JSON_TYPES.get(type(value), "")


def of_key(path: str, key: str) -> str:
    """Return the path to the value of a key."""
    return f"{path}.{key[:LONGEST_KEY]}"


def listed(names: Iterable[str]) -> str:
    """Return words with commas, and "or" before the last."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def refuse_error(path: str, expected: str, value: object, error: Exception) -> NoReturn:
    """Raise the PayloadError for a value that users' code refused. The text of `error` could show the value."""
    raise PayloadError(path, f"{expected} ({type_name(error)})", value) from None
