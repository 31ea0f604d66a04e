"""The name of who pauses a queue, a kind or a tenant."""

from collections.abc import Mapping
from typing import NamedTuple

from maas_backoff.errors import InvalidValueError

LONGEST_NAME = 100
"""The most characters of a name."""

_EXPECTED = f"up to {LONGEST_NAME} printable characters without spaces at their ends"


class PausedBy(NamedTuple):
    """The names of who paused: the `queue` (empty: no name), and paused kinds and tenants that have one."""

    queue: str
    kinds: Mapping[str, str]
    tenants: Mapping[str, str]

    @classmethod
    def of(cls, names: Mapping[str, str]) -> "PausedBy":
        """Return the names in fields of the hash `paused_by`: `queue`, `kind render`, `tenant acme`."""
        return cls(names.get("queue", ""), _of("kind", names), _of("tenant", names))


def _of(what: str, names: Mapping[str, str]) -> dict[str, str]:
    return {field.removeprefix(f"{what} "): by for field, by in names.items() if field.startswith(f"{what} ")}


def checked_by(by: object) -> str:
    """Return the name of who pauses; empty: no name. Raises InvalidValueError."""
    if not isinstance(by, str) or len(by) > LONGEST_NAME or not by.isprintable() or by != by.strip():
        raise InvalidValueError("by", _EXPECTED, by)
    return str.__str__(by)


def fitting_by(name: str) -> str:
    """Return the name of a visitor or a user as `checked_by` takes it: shortened, without unprintable characters."""
    return "".join(char for char in name if char.isprintable()).strip()[:LONGEST_NAME].strip()
