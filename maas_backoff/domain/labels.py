"""Labels of tasks: short names, `key` or `key=value`, that select tasks."""

import re
from collections.abc import Iterable
from typing import cast

from maas_backoff.errors import ConfigError, InvalidValueError

NO_LABELS: tuple[str, ...] = ()

MOST_LABELS = 8
"""Labels that one task may have."""

_PART = r"[A-Za-z0-9_.:@/+-]{1,64}"
_LABEL = re.compile(f"{_PART}(={_PART})?")
_ONE = "key or key=value, each of 1 to 64 of A-Z a-z 0-9 _ . : @ / + -"
_SEVERAL = f"a list of at most {MOST_LABELS} labels"

Labels = tuple[str, ...]
GivenLabels = list[str] | Labels
"""Labels as a user gives them: `["nightly", "customer=acme"]`."""


def checked_label(label: object, option: str = "label") -> str:
    """Return a label. Raises InvalidValueError."""
    found = _LABEL.fullmatch(label) if isinstance(label, str) else None
    if found is None:
        raise InvalidValueError(option, _ONE, label)
    return found[0]


def checked_labels(labels: object) -> Labels:
    """Return the labels of a task in their order, each once. Raises InvalidValueError."""
    if not isinstance(labels, list | tuple | set | frozenset):
        raise InvalidValueError("labels", _SEVERAL, labels)
    given = cast("Iterable[object]", labels)
    found = tuple(dict.fromkeys(checked_label(one, "labels") for one in given))
    if len(found) > MOST_LABELS:
        raise InvalidValueError("labels", _SEVERAL, len(found))
    return found


def in_labels(given: GivenLabels | str) -> Labels:
    """Return labels as a configuration has them. One text has them with commas between: `nightly,customer=acme`.

    Raises ConfigError.
    """
    try:
        return checked_labels(
            [one.strip() for one in given.split(",") if one.strip()] if isinstance(given, str) else given
        )
    except InvalidValueError as error:
        raise ConfigError(f"task.{error.option}", error.expected, error.got) from None


def has_label(labels: Iterable[str], wanted: str) -> bool:
    """Return whether a task has a label. `key` finds `key=value`, too."""
    return any(one == wanted or one.startswith(f"{wanted}=") for one in labels)
