"""The declaration of an option as a field of attrs: name, type, default, check, and help in the metadata.

The environment, the flags of commands, the docstrings and the tables in docs/configuration.md follow these fields.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import attrs

from maas_backoff.errors import ConfigError

YEAR = 31_536_000

_IN_WORDS: dict[float, str] = {YEAR: "a year", 10 * YEAR: "ten years"}
"""Words for seconds that are hard to read as a number."""

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]
_T = TypeVar("_T", bound=attrs.AttrsInstance)


def described(section: type[_T]) -> type[_T]:
    """Return the section with each option, its default and its help appended to the docstring."""
    options = [f"`{one.name}` = {one.default!r}: {one.metadata['help']}" for one in attrs.fields(section)]
    section.__doc__ = "\n".join([inspect.cleandoc(section.__doc__ or ""), "", *options])
    return section


def kind_of(option: "attrs.Attribute[Any]") -> type[bool | float | str]:
    """Return the type that parses the text of an option, by the option's declared type: bool, float, int or str."""
    types = get_args(option.type) or (option.type,)
    return next((kind for kind in (bool, float, int) if kind in types), str)


def option_name(owner: object, name: str) -> str:
    section = type(owner).__name__.removesuffix("Config").lower()
    return name if section == "taskbackoff" else f"{section}.{name}"


def must(expected: str, is_valid: Callable[[Any], bool], *, secret: bool = False) -> Validator:
    """Return a validator that raises ConfigError unless `is_valid`; the error does not show a secret."""

    def check(owner: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not is_valid(value):
            raise ConfigError(option_name(owner, attribute.name), expected, type(value) if secret else value)

    return check


def number(low: float, high: float, unit: str = "a number") -> Validator:
    """Return a validator for a number in a range: no bool, and no NaN."""
    highest = _IN_WORDS.get(high, f"{high:g}")

    def is_valid(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    return must(f"{unit} from {low:g} to {highest}", is_valid)


def whole(low: int, high: int) -> Validator:
    """Return a validator for a whole number in a range: no bool."""

    def is_valid(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return must(f"a whole number from {low} to {high}", is_valid)


def duration(low: float, high: float = YEAR) -> Validator:
    """Return a validator for seconds in a range."""
    return number(low, high, "seconds (or a timedelta)")


def choice(*values: str) -> Validator:
    """Return a validator for one of some names."""
    return must("one of " + ", ".join(map(repr, values)), lambda value: isinstance(value, str) and value in values)


def text(*, secret: bool = False) -> Validator:
    """Return a validator for any text."""
    return must("text", lambda value: isinstance(value, str), secret=secret)


def flag() -> Validator:
    """Return a validator for True or False."""
    return must("True or False", lambda value: isinstance(value, bool))
