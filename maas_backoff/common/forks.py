"""Callbacks after a fork: a child has copies of its parent's objects, but must not use their sockets and locks."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

inherited: list[object] = []
"""Objects of the parent that a child keeps, so that their finalizers never run in the child."""

_T = TypeVar("_T")
_owners: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def on_fork(owner: _T, forked: Callable[[_T], None]) -> None:
    """Register `forked(owner)`, to be called first in each child that is forked while the owner exists."""
    _owners[owner] = forked


def end_if_forked(pid: int, error: BaseException | None = None) -> None:
    """End this process if its number is not `pid`: a handler has forked it, and has returned or raised `error` in it.

    Otherwise the process would go on as a second worker, with the tasks and the sockets of the first. Its exit code is
    that of a Python program which ends so.
    """
    # A GeneratorExit is Python's, which frees an attempt of the parent in a process that may live on. By the type: the
    # class of an error may have a property `__class__` that raises.
    if os.getpid() != pid and not issubclass(type(error), GeneratorExit):
        os._exit(_exit_code(error))


def _exit_code(error: BaseException | None) -> int:
    """Return the exit code of a program that ends with an error, or without one. Print what Python would print."""
    if error is None:
        return 0
    kind = type(error)
    code = error.code if issubclass(kind, SystemExit) and isinstance(error, SystemExit) else error
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(Exception):  # the error of a user may fail to print
        if code is error:
            traceback.print_exception(error)
        else:
            sys.stderr.write(f"{code}\n")
    return 1


def _in_child() -> None:
    for owner, forked in list(_owners.items()):
        forked(owner)


os.register_at_fork(after_in_child=_in_child)
