"""The items of a blocking call, read in the thread of the caller."""

from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def items_of(given: Iterable[T]) -> Iterable[T]:
    """Return a list of the items. Anything that cannot be iterated is returned as it is: the call refuses it.

    A database cursor may belong to the thread of the caller, and must not block the event loop. A dict is copied: the
    iterator may change it afterwards.
    """
    if not isinstance(given, Iterable):
        return given
    return [_copied(item) for item in given]


def _copied(item: Any) -> Any:
    return dict(item) if type(item) is dict else item  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] - a dict of whatever
