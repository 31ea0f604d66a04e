"""The child processes of one worker."""

import asyncio
from contextlib import suppress

from maas_backoff.worker.executors.base import GpuGrant
from maas_backoff.worker.executors.parent import Child


class ChildPool:
    """The children that live: each runs a call, or is idle and waits for one."""

    def __init__(self, max_tasks: int | None, child_ended: asyncio.Event | None = None) -> None:
        """Replace a child after `max_tasks` calls; None keeps it. Set `child_ended` when a child has ended."""
        self._max_tasks = max_tasks
        self._children: set[Child] = set()
        self._idle: list[Child] = []  # the last one used is the first one taken: its memory is warm
        self._unused_ended = False
        self.lacking: asyncio.Event = asyncio.Event()
        """Set when a child may be missing: one has ended, or could not be started."""
        self.child_ended: asyncio.Event = child_ended or asyncio.Event()
        """Set when a child has ended: processes that it has started may be left."""

    def add(self, child: Child) -> None:
        """Note a child that was started."""
        self._children = {known for known in self._children if not known.gone} | {child}
        self._idle = [known for known in self._idle if not known.gone]

    def keep(self, child: Child) -> None:
        """Keep a child for the next call."""
        self._idle.append(child)

    def keep_early(self, child: Child) -> bool:
        """Keep a child whose handler has ended, while its outcomes are on their way. Return False if it cannot be kept.

        The child is taken for a call if no other is idle.
        """
        if not self._keeps(child):
            return False
        self._idle.insert(0, child)
        return True

    def answered(self, child: Child) -> None:
        """Note that the outcomes of a child that was kept early are there."""
        if child in self._idle:
            self._idle.remove(child)
            self._idle.append(child)

    def take(self, grant: GpuGrant | None) -> Child | None:
        """Return an idle child with this grant (None: one without a GPU), or None if there is none."""
        for child in reversed(self._idle):
            if child.grant is grant:
                self._idle.remove(child)
                if child.usable:
                    return child
        return None

    def give_back(self, child: Child, *, reusable: bool) -> None:
        """Keep a child after its call, or let it end."""
        if reusable and self._keeps(child):
            self.keep(child)
        else:
            child.dismiss()

    def _keeps(self, child: Child) -> bool:
        """Return whether a child may run another call."""
        return not child.leaving and (self._max_tasks is None or child.calls < self._max_tasks)

    def evict(self, child: Child) -> None:
        """Let a child end, and keep it no longer if it is idle."""
        with suppress(ValueError):
            self._idle.remove(child)
        child.dismiss()

    def count(self, *, ready: bool = False) -> int:
        """Return how many children without a GPU live; with `ready`, without those that are being started."""
        return sum(child.grant is None and not child.leaving and (child.ready or not ready) for child in self._children)

    def ended(self, child: Child) -> None:
        """Note that a child has ended."""
        self._unused_ended = self._unused_ended or (child.ready and not child.calls and not child.dismissed)
        self.lacking.set()
        self.child_ended.set()

    def unused_ended(self) -> bool:
        """Return whether a ready child that no task had used has ended since the last call of this method."""
        unused, self._unused_ended = self._unused_ended, False
        return unused

    async def aclose(self) -> None:
        """End all children: by themselves within a second, or killed."""
        self._idle.clear()
        for child in self._children:
            child.dismiss()
        for child in self._children:
            await child.ended()
        self._children.clear()
