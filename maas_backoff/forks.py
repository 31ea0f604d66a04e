"""A forked child has a copy of its parent's objects, but must not use what they stand for: sockets, locks, threads."""

import os
from typing import Protocol
from weakref import WeakSet

inherited: list[object] = []
"""What a child keeps of its parent, so that no finalizer of it ever runs in the child."""


class Forked(Protocol):
    """Something that belongs to the process that made it."""

    def forked(self) -> None:
        """Let go of what belongs to the parent; called in the child, before it runs anything else."""
        ...


_owners: WeakSet[Forked] = WeakSet()


def tell(owner: Forked) -> None:
    """Call `owner.forked()` in each child that is forked while the owner exists."""
    _owners.add(owner)


def _in_child() -> None:
    for owner in list(_owners):
        owner.forked()


os.register_at_fork(after_in_child=_in_child)
