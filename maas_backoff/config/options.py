"""Converters and validators of options, for attrs, with one form of message."""

from collections.abc import Callable
from typing import Any

import attrs

from maas_backoff.errors import ConfigError

YEAR = 31_536_000

Validator = Callable[[Any, "attrs.Attribute[Any]", Any], None]


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
