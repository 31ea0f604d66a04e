"""Events for a worker's loops: work may be available, a poll was replanned, tasks that need a GPU may be available.

This module does no I/O, and does not `await` between a read of the state and its change.
"""

import asyncio
import math
from collections.abc import Iterable


class WakeUps:
    """The events by which the loops of one worker wake each other. Used in one event loop only."""

    def __init__(self, batches: Iterable[str] = (), *, only_batches: bool = False) -> None:
        """`batches` are the kinds whose tasks run in batches. `only_batches`: the worker has no other kinds."""
        self.idle: asyncio.Event = asyncio.Event()
        """Set while the queue has no task for a free slot, as far as is known."""
        self.idle.set()
        self.to_send: asyncio.Event = asyncio.Event()
        """Set when an exchange loop may have something to send."""
        self.look_at: float = 0.0
        """The time of the next poll, on the event loop's clock, if nothing wakes this worker before."""
        self.replanned: asyncio.Event = asyncio.Event()
        """Set when `look_at` has changed."""
        self.count: int = 0
        """The number of wake-ups of this worker."""
        self.gpu: asyncio.Event = asyncio.Event()
        """Set when something may have changed for tasks that need a GPU."""
        self.gpu_marked: bool = False
        """Whether a task that needs a GPU has woken this worker."""
        self.listens_for_gpu = False
        """Whether tasks that need a GPU should wake this worker: not while it polls for a task that does not fit."""
        self.hears_gpu = False
        """Whether tasks that need a GPU end the present sleep of this worker on the server."""

        self.only_batches: bool = only_batches
        """Whether all kinds of the worker run in batches."""
        self.batches: list[str] = list(batches)
        """The kinds that run in batches."""
        self.batch: asyncio.Event = asyncio.Event()
        """Set when there may be a batch, or a slot for one."""
        self.unseen: set[str] = set(self.batches)
        """The kinds for which there may be a batch: nobody has looked since the last wake-up."""
        self.ranks: dict[str, float] = dict.fromkeys(self.batches, math.inf)
        """The rank of the first task that waits, of each kind that runs in batches; infinity: none waits."""

    @property
    def has_work(self) -> bool:
        """Whether the queue may have a task for a free slot."""
        return not self.idle.is_set()

    def wake(self) -> None:
        """Poll the queue now."""
        self.look_again()
        if self.batches:
            self.look_for_batches(self.batches)

    def look_again(self) -> None:
        """Look now for tasks that run alone, and once more after a request that is on its way."""
        self.count += 1
        self.note_work(found=True)

    def look_for_batches(self, kinds: Iterable[str]) -> None:
        """Look for batches of these kinds now."""
        self.unseen.update(kinds)
        self.batch.set()

    def note_ranks(self, ranks: Iterable[float], seen: str = "") -> None:
        """Note how urgent the kinds in batches are. Look for those with new tasks, but not for the one just `seen`.

        Each claim tells: a busy worker hears no wake-up.
        """
        for kind, rank in zip(self.batches, ranks, strict=False):
            if rank < self.ranks[kind] and kind != seen:
                self.look_for_batches([kind])
            self.ranks[kind] = rank

    def no_batch(self) -> None:
        """Note that a look has found no batch to claim, for now."""
        if self.only_batches and not self.unseen:
            self.note_work(found=False)

    def note_work(self, *, found: bool) -> None:
        """Note whether the queue may have a task for a free slot."""
        if found:
            self.idle.clear()
            self.to_send.set()
        else:
            self.idle.set()

    def plan(self, look_at: float) -> None:
        """Set the time of the next poll, on the event loop's clock."""
        self.look_at = look_at
        self.replanned.set()

    def mark_gpu(self) -> None:
        """Note that a task waits for a GPU."""
        self.gpu_marked = True
        self.gpu.set()

    def suspect_ended(self) -> None:
        """Note that a suspect has ended in this worker: it may claim the next cohort."""
        self.wake()
        # The server has sent no GPU wake-up for suspects that this worker could not claim.
        if self.listens_for_gpu:
            self.mark_gpu()

    def reconsider(self) -> None:
        """Check again what can be claimed, with a GPU and without."""
        self.to_send.set()
        self.gpu.set()
