"""Conversions of classes with fields: dataclasses, attrs, TypedDict and NamedTuple. Each is an object in JSON."""

from collections.abc import Mapping
from typing import Any, cast

import attrs

from maas_backoff.errors import PayloadError
from maas_backoff.kinds.conversion import OBJECT, Conversion, of_key, refuse_error


@attrs.frozen
class Field:
    """A field of a record."""

    key: str
    """Its name in JSON, and for the constructor."""
    attribute: str
    """Its name in the object."""
    conversion: Conversion
    required: bool


class Record(Conversion):
    """A class with fields. All fields are stored; a field that is not in JSON has its default."""

    json_types: frozenset[str] = frozenset({OBJECT})

    def __init__(self, kind: type) -> None:
        """`fields` are set afterwards: a field may have the type of its own class."""
        self._kind = kind
        self.expected: str = f"a {kind.__name__}"
        self.fields: Mapping[str, Field] = {}

    def dump(self, value: object, path: str) -> object:
        if not isinstance(value, self._kind):
            self.refuse(path, value)
        return {
            field.key: field.conversion.dump(getattr(value, field.attribute), of_key(path, field.key))
            for field in self.fields.values()
        }

    def load(self, value: object, path: str) -> Any:
        fields = loaded_fields(self, self.fields, value, path)
        try:
            return self._kind(**fields)
        except Exception as error:  # noqa: BLE001 - a validator of the user
            refuse_error(path, self.expected, value, error)


class Dict(Conversion):
    """A TypedDict."""

    json_types: frozenset[str] = frozenset({OBJECT})

    def __init__(self, kind: type) -> None:
        self.expected: str = f"a {kind.__name__}"
        self.fields: Mapping[str, Field] = {}

    def dump(self, value: object, path: str) -> object:
        given = checked_keys(self, self.fields, value, path)
        return {key: self.fields[key].conversion.dump(one, of_key(path, key)) for key, one in given.items()}

    def load(self, value: object, path: str) -> Any:
        return loaded_fields(self, self.fields, value, path)


def loaded_fields(record: Conversion, fields: Mapping[str, Field], value: object, path: str) -> dict[str, object]:
    """Return the values of the fields of a JSON object. Raises PayloadError."""
    given = checked_keys(record, fields, value, path)
    return {key: fields[key].conversion.load(one, of_key(path, key)) for key, one in given.items()}


def checked_keys(record: Conversion, fields: Mapping[str, Field], value: object, path: str) -> Mapping[str, object]:
    """Return a dict if it has each required field, and no others. Raises PayloadError."""
    if not isinstance(value, dict):
        record.refuse(path, value)
    given = cast("dict[str, object]", value)
    for key in given:
        if key not in fields:
            raise PayloadError(of_key(path, str(key)), f"no field but those of {record.expected}", given[key])
    for field in fields.values():
        if field.required and field.key not in given:
            raise PayloadError(of_key(path, field.key), f"{field.conversion.expected}, as it has no default", MISSING)
    return given


class _Missing:
    """The type of a value that is not there: errors show its name."""


_Missing.__name__ = "nothing"
MISSING = _Missing()
