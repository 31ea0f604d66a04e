"""The rule of `retry_on` and `give_up_on`: which errors end a task, although it has retries left.

Both options list filters of errors. A filter is a number, the code of an error; or a text: the type of an error, such
as `timeout`, or the name of an exception class, with its module or without.
"""

import re
from collections.abc import Sequence
from typing import Literal, cast

from maas_backoff.domain import raised
from maas_backoff.domain.outcome import Failed

ErrorFilters = tuple[str | int, ...]
GivenFilters = Sequence[str | int | type[BaseException]]
"""Filters as users write them: an exception class stands for its name."""

EndedBy = Literal["", "retry_on", "give_up_on"]

MOST_FILTERS = 100
_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_CODE = re.compile(r"-?[0-9]{1,19}")


def in_filters(given: "GivenFilters | str") -> ErrorFilters:
    """Return filters as they are stored. One text has the names and codes with commas between them.

    Other values are returned unchanged. The caller checks the result with `are_filters`.
    """
    filters = [one.strip() for one in given.split(",") if one.strip()] if isinstance(given, str) else given
    if not isinstance(filters, list | tuple | set | frozenset):
        return cast(ErrorFilters, filters)
    stored = dict.fromkeys(map(_filter, filters))
    return tuple(sorted(stored, key=str) if isinstance(filters, set | frozenset) else stored)


def _filter(given: object) -> str | int:
    if isinstance(given, type) and issubclass(given, BaseException):
        return raised.stable_name(given)
    if isinstance(given, str):
        return int(given) if _CODE.fullmatch(given) else str.__str__(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return int(given)  # http.HTTPStatus is an int, too
    return cast(str, _Refused(given))  # pyright: ignore[reportUnknownArgumentType] - any value of a user


class _Refused:
    """A value that is no filter; its text is that of the value."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        return repr(self._value)


def are_filters(value: object) -> bool:
    """Return whether a value is a tuple of filters."""
    if not isinstance(value, tuple):
        return False
    filters = cast("tuple[object, ...]", value)
    return len(filters) <= MOST_FILTERS and all(map(_is_filter, filters))


def _is_filter(one: object) -> bool:
    if isinstance(one, int):
        return not isinstance(one, bool) and -(2**63) <= one < 2**63
    return isinstance(one, str) and len(one) <= raised.LONGEST_NAME and _NAME.fullmatch(one) is not None


def ended_by(failed: Failed, retry_on: ErrorFilters, give_up_on: ErrorFilters) -> EndedBy:
    """Return the option by which a failure ends its task; empty: the task is retried while retries remain.

    `give_up_on` wins over `retry_on`. A retry that the handler asked for is no error.
    """
    if failed.requested or not (retry_on or give_up_on):
        return ""
    if _has(give_up_on, failed):
        return "give_up_on"
    return "retry_on" if retry_on and not _has(retry_on, failed) else ""


def _has(filters: ErrorFilters, failed: Failed) -> bool:
    error = failed.error
    return any(
        one == error.code if isinstance(one, int) else one == error.type or any(_is(name, one) for name in failed.names)
        for one in filters
    )


def _is(name: str, one: str) -> bool:
    """Return whether `one` is the name of a class: alone, or after its module or a package that has the module."""
    module, _, last = one.rpartition(".")
    return name.rpartition(".")[2] == last and (not module or name == one or name.startswith(f"{module}."))
