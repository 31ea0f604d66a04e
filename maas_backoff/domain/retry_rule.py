"""The rule of `retry_on` and `give_up_on`: which errors end a task, although it has retries left.

Both options list kinds of errors. A kind is a number, the code of an error; or a text: the type of an error, such as
`timeout`, or the name of an exception class, with its module or without.
"""

import re
from collections.abc import Sequence
from typing import Literal, cast

from maas_backoff.domain import raised
from maas_backoff.domain.outcome import Failed

ErrorKinds = tuple[str | int, ...]
GivenKinds = Sequence[str | int | type[BaseException]]
"""Kinds as users write them: an exception class stands for its name."""

EndedBy = Literal["", "retry_on", "give_up_on"]

MOST_KINDS = 100
_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_CODE = re.compile(r"-?[0-9]{1,19}")


def in_kinds(given: "GivenKinds | str") -> ErrorKinds:
    """Return kinds as they are stored. One text has the names and codes with commas between them.

    Other values are returned unchanged. The caller checks the result with `are_kinds`.
    """
    kinds = [kind.strip() for kind in given.split(",") if kind.strip()] if isinstance(given, str) else given
    if not isinstance(kinds, list | tuple | set | frozenset):
        return cast(ErrorKinds, kinds)
    stored = dict.fromkeys(map(_kind, kinds))
    return tuple(sorted(stored, key=str) if isinstance(kinds, set | frozenset) else stored)


def _kind(given: object) -> str | int:
    if isinstance(given, type) and issubclass(given, BaseException):
        return raised.stable_name(given)
    if isinstance(given, str):
        return int(given) if _CODE.fullmatch(given) else str.__str__(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return int(given)  # http.HTTPStatus is an int, too
    return cast(str, _Refused(given))  # pyright: ignore[reportUnknownArgumentType] - any value of a user


class _Refused:
    """A value that is no kind; its text is that of the value."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __repr__(self) -> str:
        return repr(self._value)


def are_kinds(value: object) -> bool:
    """Return whether a value is a tuple of kinds."""
    if not isinstance(value, tuple):
        return False
    kinds = cast("tuple[object, ...]", value)
    return len(kinds) <= MOST_KINDS and all(map(_is_kind, kinds))


def _is_kind(kind: object) -> bool:
    if isinstance(kind, int):
        return not isinstance(kind, bool) and -(2**63) <= kind < 2**63
    return isinstance(kind, str) and len(kind) <= raised.LONGEST_NAME and _NAME.fullmatch(kind) is not None


def ended_by(failed: Failed, retry_on: ErrorKinds, give_up_on: ErrorKinds) -> EndedBy:
    """Return the option by which a failure ends its task; empty: the task is retried while retries remain.

    `give_up_on` wins over `retry_on`. A retry that the handler asked for is no error.
    """
    if failed.requested or not (retry_on or give_up_on):
        return ""
    if _has(give_up_on, failed):
        return "give_up_on"
    return "retry_on" if retry_on and not _has(retry_on, failed) else ""


def _has(kinds: ErrorKinds, failed: Failed) -> bool:
    error = failed.error
    return any(
        kind == error.code
        if isinstance(kind, int)
        else kind == error.type or any(_is(name, kind) for name in failed.names)
        for kind in kinds
    )


def _is(name: str, kind: str) -> bool:
    """Return whether `kind` is the name of a class: alone, or after its module or a package that has the module."""
    module, _, last = kind.rpartition(".")
    return name.rpartition(".")[2] == last and (not module or name == kind or name.startswith(f"{module}."))
