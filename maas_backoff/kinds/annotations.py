"""The conversion of each annotation that a parameter or a result may have."""

import collections.abc
import dataclasses
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import attrs

from maas_backoff.domain.result import ResultEntity
from maas_backoff.domain.task import TaskEntity
from maas_backoff.kinds.containers import DictOf, ListOf, TupleOf, UnionOf
from maas_backoff.kinds.conversion import Conversion, UnsupportedTypeError
from maas_backoff.kinds.models import model_of
from maas_backoff.kinds.plain_types import PLAIN, choice_of_enum, choice_of_literals
from maas_backoff.kinds.records import Dict, Field, Record

_LISTS: tuple[Any, ...] = (list, collections.abc.Sequence, collections.abc.Collection, collections.abc.Iterable)
_DICTS: tuple[Any, ...] = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_SUPPORTED = (
    "JSON's own types, Enum, Literal, datetime, date, time, timedelta, UUID, Decimal, Path, bytes, list, tuple, dict, "
    "unions, dataclasses, attrs, TypedDict, NamedTuple, and models of pydantic and msgspec"
)


class Conversions:
    """Finds the conversion of each annotation, and keeps it: a class may have fields of its own type."""

    def __init__(self) -> None:
        self._records: dict[type, Conversion] = {}

    def of(self, annotation: Any) -> Conversion:
        """Return the conversion of an annotation. Raises UnsupportedTypeError."""
        annotation = _unwrapped(annotation)
        try:
            plain = PLAIN.get(annotation)
        except TypeError:  # Annotated[int, []]
            plain = None
        if plain is not None:
            return plain
        origin = get_origin(annotation)
        if origin is Literal:
            return choice_of_literals(get_args(annotation))
        if origin is Union or origin is types.UnionType:
            return UnionOf([self.of(member) for member in get_args(annotation)])
        container = self._container(origin or annotation, get_args(annotation))
        if container is not None:
            return container
        if origin is None and isinstance(annotation, type):
            return self._class(annotation)
        raise UnsupportedTypeError(f"{_name(annotation)} cannot be stored as JSON; use {_SUPPORTED}")

    def _container(self, kind: Any, args: Sequence[Any]) -> Conversion | None:
        if kind in _LISTS:
            return ListOf((list, tuple) if kind is not list else list, list, self.of(*args or (Any,)))
        if kind is tuple:
            if not args or (len(args) == 2 and args[1] is ...):
                return ListOf(tuple, tuple, self.of(args[0] if args else Any))
            return TupleOf([self.of(one) for one in args if one != ()])
        if kind in _DICTS:
            key, value = args or (str, Any)
            if _unwrapped(key) is not str:
                raise UnsupportedTypeError(f"a dict in JSON has keys of str, not of {_name(key)}; use a list of pairs")
            return DictOf(self.of(value))
        return None

    def _class(self, kind: Any) -> Conversion:
        if kind in self._records:
            return self._records[kind]
        if issubclass(kind, TaskEntity):
            raise UnsupportedTypeError("a TaskEntity is the first parameter, or none")
        if issubclass(kind, ResultEntity):
            raise UnsupportedTypeError(
                "a ResultEntity has no type for its result; return the result itself, and raise an error to fail"
            )
        if issubclass(kind, Enum):
            return choice_of_enum(kind)
        model = model_of(kind)
        if model is not None:
            return model
        record = self._record(kind)
        if record is None:
            raise UnsupportedTypeError(f"{kind.__name__} cannot be stored as JSON; use {_SUPPORTED}")
        return record

    def _record(self, kind: type) -> Conversion | None:
        found = _fields_of(kind)
        if found is None:
            return None
        record = self._records[kind] = Dict(kind) if is_typeddict(kind) else Record(kind)
        hints = get_type_hints(kind, include_extras=True)
        try:
            record.fields = {
                key: Field(key, name, self._of_field(kind, name, hints), _is_required(hints.get(name), required))
                for key, (name, required) in found.items()
            }
        except BaseException:
            del self._records[kind]
            raise
        return record

    def _of_field(self, kind: type, name: str, hints: Mapping[str, Any]) -> Conversion:
        try:
            return self.of(hints.get(name, Any))
        except UnsupportedTypeError as error:
            raise UnsupportedTypeError(f"{kind.__name__}.{name}: {error}") from None


def _fields_of(kind: Any) -> dict[str, tuple[str, bool]] | None:
    """Return the fields of a class by their keys: the name of the attribute, and whether it is required."""
    if dataclasses.is_dataclass(kind):
        none = dataclasses.MISSING
        return {
            field.name: (field.name, field.default is none and field.default_factory is none)
            for field in dataclasses.fields(kind)
            if field.init
        }
    if attrs.has(kind):
        return {
            field.alias or field.name: (field.name, field.default is attrs.NOTHING)
            for field in attrs.fields(kind)
            if field.init
        }
    if is_typeddict(kind):
        return {name: (name, name in kind.__required_keys__) for name in get_type_hints(kind)}
    if hasattr(kind, "_fields") and hasattr(kind, "_field_defaults"):  # a NamedTuple
        return {name: (name, name not in kind._field_defaults) for name in kind._fields}
    return None


def _is_required(annotation: Any, required: bool) -> bool:
    # A TypedDict does not see through annotations that are text (`from __future__ import annotations`).
    origin = get_origin(annotation)
    return origin is Required or (required and origin is not NotRequired)


def _unwrapped(annotation: Any) -> Any:
    """Return the type inside of Annotated, Required, NotRequired, a NewType or a type alias."""
    while True:
        if get_origin(annotation) in {Annotated, Required, NotRequired}:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # of typing since 3.12, or of typing_extensions
            annotation = annotation.__value__
        else:
            return annotation


def _name(annotation: object) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
