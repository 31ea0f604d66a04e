"""The parts of an exception: the members of a group, its causes, and the names of its classes.

A user writes the exception's class. Nothing here uses its `__bool__`, its `__class__`, or an attribute that it can
make a property.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

MOST = 1000
"""Exceptions that are read: causes may be circular, and groups may be endless."""

MOST_NAMES = 50
"""Names of classes that are read of one error."""

LONGEST_NAME = 200
"""Characters of a name that are kept."""

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


def class_names(errors: Sequence[BaseException]) -> tuple[str, ...]:
    """Return the names of the classes of some errors and of all their base classes, each after its module."""
    if len(errors) == 1:
        return _names_of(type(errors[0]))
    names: dict[str, None] = {}
    for error in errors:
        names |= dict.fromkeys(_names_of(type(error)))
        if len(names) >= MOST_NAMES:
            break
    return tuple(names)[:MOST_NAMES]


def _names_of(kind: type) -> tuple[str, ...]:
    """Return the names of a class and of its base classes. They are cached: tasks often fail with the same classes."""
    # By its id: a metaclass of a user may have a __hash__. The reference tells a class from a later one with its id.
    known = _known_names.get(id(kind))
    if known is not None and known[0]() is kind:
        return known[1]
    if len(_known_names) >= MOST:
        _known_names.clear()
    names = tuple(_name(base) for base in _bases_of(kind)[:MOST_NAMES] if base is not object)
    _known_names[id(kind)] = weakref.ref(kind), names
    return names


_known_names: dict[int, tuple[weakref.ref[type], tuple[str, ...]]] = {}


def stable_name(kind: type[BaseException]) -> str:
    """Return the name of a class that its other processes use, too.

    The program itself has another module name in a child process, and a class in a function has no place in a module.
    """
    name = _name(kind)
    is_local = name.partition(".")[0] in _PROGRAM or "<locals>" in name
    return name.rpartition(".")[2] if is_local else name


_PROGRAM = {"__main__", "__mp_main__"}
_bases_of: Callable[[type], tuple[type, ...]] = vars(type)["__mro__"].__get__
_qualname_of: Callable[[type], str] = vars(type)["__qualname__"].__get__
_module_of: Callable[[type], object] = vars(type)["__module__"].__get__


def _name(kind: type) -> str:
    try:
        module = _module_of(kind)
    except AttributeError:  # the class has deleted it
        module = None
    name = _qualname_of(kind)[-LONGEST_NAME:]
    return f"{module[:LONGEST_NAME]}.{name}" if type(module) is str else name


def from_outside(error: BaseException, package: str) -> BaseException:
    """Return the exception, with the first frames of `package` removed from its traceback."""
    place = _place_of(error)
    while place is not None and place.tb_frame.f_globals.get("__name__", "").startswith(package):
        place = place.tb_next
    return BaseException.with_traceback(error, place)


def is_group(error: BaseException) -> bool:
    """Return whether an exception is a group, by its real class."""
    return issubclass(type(error), BaseExceptionGroup)
