"""Conversions of pydantic models and msgspec structs. Neither library is imported: a user's class brings it."""

import sys
from typing import Any

from maas_backoff.errors import PayloadError
from maas_backoff.kinds.conversion import OBJECT, Conversion, of_key, refuse_error


def model_of(kind: type) -> Conversion | None:
    """Return the conversion of a pydantic model or a msgspec struct; None for other classes."""
    if callable(getattr(kind, "model_validate", None)) and callable(getattr(kind, "model_dump", None)):
        return PydanticModel(kind)
    if hasattr(kind, "__struct_fields__") and "msgspec" in sys.modules:
        return MsgspecStruct(kind)
    return None


class PydanticModel(Conversion):
    """A model of pydantic 2."""

    json_types: frozenset[str] = frozenset({OBJECT})

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self.expected: str = f"a {kind.__name__}"

    def dump(self, value: object, path: str) -> object:
        if not isinstance(value, self._kind):
            self.refuse(path, value)
        model: Any = value
        try:
            return model.model_dump(mode="json", by_alias=True)
        except Exception as error:  # noqa: BLE001 - a serializer of the user
            refuse_error(path, self.expected, value, error)

    def load(self, value: object, path: str) -> Any:
        if not isinstance(value, dict):
            self.refuse(path, value)
        try:
            return self._kind.model_validate(value)
        except Exception as error:  # noqa: BLE001 - ValidationError cannot be named; a validator of the user
            self._refuse_invalid(path, error)

    def _refuse_invalid(self, path: str, error: Any) -> None:
        """Raise PayloadError with the place of the first fault. The messages of pydantic may show the value."""
        try:
            first = error.errors()[0]
            place, why, given = [str(part) for part in first["loc"]], str(first["type"]), first["input"]
        except Exception:  # noqa: BLE001 - no ValidationError
            refuse_error(path, self.expected, None, error)
        for part in place:
            path = of_key(path, part)
        raise PayloadError(path, f"a valid field of {self.expected} ({why})", given) from None


class MsgspecStruct(Conversion):
    """A struct of msgspec."""

    json_types: frozenset[str] = frozenset({OBJECT})

    def __init__(self, kind: type) -> None:
        self._kind = kind
        self.expected: str = f"a {kind.__name__}"

    def dump(self, value: object, path: str) -> object:
        if not isinstance(value, self._kind):
            self.refuse(path, value)
        try:
            return _msgspec().to_builtins(value, str_keys=True)
        except Exception as error:  # noqa: BLE001 - a field that msgspec does not know
            refuse_error(path, self.expected, value, error)

    def load(self, value: object, path: str) -> Any:
        try:
            return _msgspec().convert(value, self._kind, str_keys=True)
        except Exception as error:  # noqa: BLE001 - ValidationError cannot be named
            # "Expected `int`, got `str` - at `$.steps`": the place shows no value.
            _, _, place = str(error).partition(" - at `$")
            refuse_error(f"{path}{place.removesuffix('`')}", self.expected, value, error)


def _msgspec() -> Any:
    return sys.modules["msgspec"]
