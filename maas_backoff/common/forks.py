"""A forked child has a copy of its parent's objects, but must not use what they stand for: sockets, locks, threads."""

import os
from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

inherited: list[object] = []
"""Objects of the parent that a child keeps, so that their finalizers never run in the child."""

_T = TypeVar("_T")
_owners: WeakKeyDictionary[Any, Callable[[Any], None]] = WeakKeyDictionary()


def tell(owner: _T, forked: Callable[[_T], None]) -> None:
    """Call `forked(owner)` in each child that is forked while the owner exists, before the child runs anything else."""
    _owners[owner] = forked


def _in_child() -> None:
    for owner, forked in list(_owners.items()):
        forked(owner)


os.register_at_fork(after_in_child=_in_child)
