"""Conversions of lists, tuples, dicts and unions."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from maas_backoff.errors import PayloadError
from maas_backoff.kinds.conversion import (
    FLOAT,
    INT,
    LIST,
    OBJECT,
    Conversion,
    UnsupportedTypeError,
    json_type_of,
    listed,
    of_key,
)


class ListOf(Conversion):
    """A list, a `tuple[item, ...]`, or a sequence that a caller may give as a list or a tuple."""

    json_types: frozenset[str] = frozenset({LIST})

    def __init__(self, kinds: type | tuple[type, ...], made: type, item: Conversion) -> None:
        """`kinds` are the accepted types, and `made` is the type that `load` returns."""
        self._kinds = kinds
        self._made = made
        self._item = item
        self.expected: str = f"a {made.__name__}"

    def dump(self, value: object, path: str) -> object:
        if not isinstance(value, self._kinds):
            self.refuse(path, value)
        items, dump = cast("Sequence[object]", value), self._item.dump
        if self._are_unchanged(items):
            return list(items)
        return [dump(one, f"{path}[{at}]") for at, one in enumerate(items)]

    def load(self, value: object, path: str) -> object:
        if not isinstance(value, list):
            self.refuse(path, value)
        items, load = cast("list[object]", value), self._item.load
        if self._are_unchanged(items):
            return self._made(items)
        return self._made([load(one, f"{path}[{at}]") for at, one in enumerate(items)])

    def _are_unchanged(self, items: Sequence[object]) -> bool:
        """Return whether all items may stay as they are, by their types: to look at each takes nine times as long."""
        return self._item.unchanged is not None and set(map(type, items)) == {self._item.unchanged}


class TupleOf(Conversion):
    """A tuple of a fixed length, whose items have types of their own."""

    json_types: frozenset[str] = frozenset({LIST})

    def __init__(self, items: Sequence[Conversion]) -> None:
        self._items = items
        self.expected: str = f"a tuple of {len(items)}"

    def dump(self, value: object, path: str) -> object:
        if not isinstance(value, tuple):
            self.refuse(path, value)
        given = cast("tuple[object, ...]", value)
        return [item.dump(one, f"{path}[{at}]") for at, (item, one) in enumerate(self._pairs(given, path))]

    def load(self, value: object, path: str) -> object:
        if not isinstance(value, list):
            self.refuse(path, value)
        given = cast("list[object]", value)
        return tuple(item.load(one, f"{path}[{at}]") for at, (item, one) in enumerate(self._pairs(given, path)))

    def _pairs(self, given: Sequence[object], path: str) -> "zip[tuple[Conversion, object]]":
        if len(given) != len(self._items):
            self.refuse(path, given)
        return zip(self._items, given, strict=True)


class DictOf(Conversion):
    """A dict with keys of text."""

    expected: str = "a dict with keys of text"
    json_types: frozenset[str] = frozenset({OBJECT})

    def __init__(self, value: Conversion) -> None:
        self._value = value

    def dump(self, value: object, path: str) -> object:
        items = self._items(value, path)
        return {key: self._value.dump(one, of_key(path, key)) for key, one in items.items()}

    def load(self, value: object, path: str) -> object:
        items = self._items(value, path)
        return {key: self._value.load(one, of_key(path, key)) for key, one in items.items()}

    def _items(self, value: object, path: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            self.refuse(path, value)
        items = cast("dict[str, object]", value)
        if not all(isinstance(key, str) for key in items):
            self.refuse(path, items)
        return items


class UnionOf(Conversion):
    """A union. The JSON type of a value says which member the value belongs to."""

    def __init__(self, members: Sequence[Conversion]) -> None:
        """Raise UnsupportedTypeError if two members share a JSON type."""
        self._members = members
        self._by_json: dict[str, Conversion] = {}
        for member in members:
            for kind in member.json_types:
                if kind in self._by_json:
                    two = f"{self._by_json[kind].expected} from {member.expected}"
                    raise UnsupportedTypeError(
                        f"JSON cannot tell {two}; use one type with a field that says which one it is"
                    )
                self._by_json[kind] = member
        if FLOAT in self._by_json:
            self._by_json.setdefault(INT, self._by_json[FLOAT])
        self.json_types: frozenset[str] = frozenset(self._by_json)
        self.expected: str = listed([member.expected for member in members])

    def dump(self, value: object, path: str) -> object:
        error = PayloadError(path, self.expected, value)
        likely = self._by_json.get(json_type_of(value))
        for member in self._members if likely is None else (likely, *self._members):
            try:
                return member.dump(value, path)
            except PayloadError as other:
                if other.option != path:  # inside of a record or a list: the value itself had the right type
                    error = other
        raise error

    def load(self, value: object, path: str) -> Any:
        member = self._by_json.get(json_type_of(value))
        if member is None:
            self.refuse(path, value)
        return member.load(value, path)
