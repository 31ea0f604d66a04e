"""Declare an option once, as a field of attrs: its name, type, default, check, and its help in the metadata.

The environment, the flags of commands, the docstrings and the tables in docs/configuration.md follow these fields.
"""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import attrs

from maas_backoff.errors import ConfigError

YEAR = 31_536_000

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]
_T = TypeVar("_T", bound=attrs.AttrsInstance)


def described(section: type[_T]) -> type[_T]:
    """Append each option of a section, with its default and its help, to the docstring of the section."""
    options = [f"`{one.name}` = {one.default!r}: {one.metadata['help']}" for one in attrs.fields(section)]
    section.__doc__ = "\n".join([inspect.cleandoc(section.__doc__ or ""), "", *options])
    return section


def kind_of(option: "attrs.Attribute[Any]") -> type[bool | float | str]:
    """Return how to read the text of an option, by its declared type: bool, float, int or str."""
    types = get_args(option.type) or (option.type,)
    return next((kind for kind in (bool, float, int) if kind in types), str)


def option_name(owner: object, name: str) -> str:
    section = type(owner).__name__.removesuffix("Config").lower()
    return name if section == "taskbackoff" else f"{section}.{name}"


def must(expected: str, holds: Callable[[Any], bool], *, secret: bool = False) -> Validator:
    """Return a validator that raises ConfigError unless `holds`; a secret is not shown."""

    def check(owner: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not holds(value):
            raise ConfigError(option_name(owner, attribute.name), expected, type(value) if secret else value)

    return check


def number(low: float, high: float, unit: str = "a number") -> Validator:
    """Check for a number, not a bool, in a range; NaN is in none."""

    def holds(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    return must(f"{unit} from {low:g} to {high:g}", holds)


def whole(low: int, high: int) -> Validator:
    """Check for a whole number, not a bool, in a range."""

    def holds(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return must(f"a whole number from {low} to {high}", holds)


def duration(low: float, high: float = YEAR) -> Validator:
    """Seconds in a range."""
    return number(low, high, "seconds (or a timedelta)")


def choice(*values: str) -> Validator:
    """One of some names."""
    return must("one of " + ", ".join(map(repr, values)), lambda value: isinstance(value, str) and value in values)


def text(*, secret: bool = False) -> Validator:
    """Any text."""
    return must("text", lambda value: isinstance(value, str), secret=secret)


def flag() -> Validator:
    """Check for True or False."""
    return must("True or False", lambda value: isinstance(value, bool))
