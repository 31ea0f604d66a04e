"""The parts of an exception: the members of a group, and its causes.

A user writes the exception's class. Nothing here uses its `__bool__`, its `__class__`, or an attribute that it can
make a property.
"""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

MOST = 1000
"""Exceptions that are read: causes may be circular, and groups may be endless."""

_members_of: Callable[[BaseException], Sequence[BaseException]] = vars(BaseExceptionGroup)["exceptions"].__get__
_cause_of: Callable[[BaseException], BaseException | None] = vars(BaseException)["__cause__"].__get__
_context_of: Callable[[BaseException], BaseException | None] = vars(BaseException)["__context__"].__get__
_hides_context: Callable[[BaseException], bool] = vars(BaseException)["__suppress_context__"].__get__
_place_of: Callable[[BaseException], TracebackType | None] = vars(BaseException)["__traceback__"].__get__


def members(error: BaseException) -> list[BaseException]:
    """Return the exceptions of a group and of its groups, at most MOST; a single exception returns itself."""
    found: list[BaseException] = []
    waiting = [error]
    while waiting and len(found) < MOST:
        one = waiting.pop()
        if is_group(one):
            waiting += reversed(_members_of(one))
        else:
            found.append(one)
    return found


def related(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and the members of groups, as Python prints them, at most MOST."""
    waiting, seen = [error], set[int]()
    while waiting and len(seen) < MOST:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if is_group(one):
            waiting += _members_of(one)
        because = cause(one)
        if because is not None:
            waiting.append(because)


def cause(error: BaseException, *, hidden: bool = False) -> BaseException | None:
    """Return the cause (`from`) or the context of an exception; with `hidden`, also a context after `from None`."""
    because = _cause_of(error)
    if because is not None or (_hides_context(error) and not hidden):
        return because
    return _context_of(error)


def from_outside(error: BaseException, package: str) -> BaseException:
    """Return the exception, with the first frames of `package` removed from its traceback."""
    place = _place_of(error)
    while place is not None and place.tb_frame.f_globals.get("__name__", "").startswith(package):
        place = place.tb_next
    return BaseException.with_traceback(error, place)


def is_group(error: BaseException) -> bool:
    """Return whether an exception is a group, by its real class."""
    return issubclass(type(error), BaseExceptionGroup)
