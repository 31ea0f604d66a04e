"""Events for a worker's loops: work may be available, the plan has changed, tasks for a GPU may be available.

No I/O, and no `await` between looking at the state and changing it.
"""

import asyncio


class WakeUps:
    """The events by which the loops of one worker wake each other. Belongs to the event loop that makes it."""

    def __init__(self) -> None:
        self.idle: asyncio.Event = asyncio.Event()
        """Set while the queue holds no task for a free slot, as far as is known."""
        self.idle.set()
        self.to_send: asyncio.Event = asyncio.Event()
        """Set when an exchange loop may have something to send."""
        self.look_at: float = 0.0
        """When to look for tasks again, on the event loop's clock, if nothing wakes this worker before."""
        self.replanned: asyncio.Event = asyncio.Event()
        """Set when `look_at` has changed."""
        self.count: int = 0
        """How often this worker was woken."""
        self.gpu: asyncio.Event = asyncio.Event()
        """Set when something may have changed for tasks that need a GPU."""
        self.gpu_marked: bool = False
        """Whether this worker was woken because a task waits for a GPU."""
        self.listens_for_gpu = False
        """Whether it is to be woken then: not while it looks by itself, as something waits that does not fit."""
        self.hears_gpu = False
        """Whether its sleep on the server ends when a task waits for a GPU."""

    @property
    def has_work(self) -> bool:
        """Whether the queue may hold a task for a free slot."""
        return not self.idle.is_set()

    def wake(self) -> None:
        """Look for tasks now."""
        self.count += 1
        self.note_work(found=True)

    def note_work(self, *, found: bool) -> None:
        """Note whether the queue may hold a task for a free slot."""
        if found:
            self.idle.clear()
            self.to_send.set()
        else:
            self.idle.set()

    def plan(self, look_at: float) -> None:
        """Look for tasks at `look_at`, on the event loop's clock."""
        self.look_at = look_at
        self.replanned.set()

    def mark_gpu(self) -> None:
        """Note that a task waits for a GPU."""
        self.gpu_marked = True
        self.gpu.set()

    def suspect_ended(self) -> None:
        """Note that a suspect has ended here: the next cohort may come."""
        self.wake()
        # While it listens for a GPU, the server told of no suspect that it could not have claimed.
        if self.listens_for_gpu:
            self.mark_gpu()

    def reconsider(self) -> None:
        """Look again at what can be claimed, with a GPU and without."""
        self.to_send.set()
        self.gpu.set()
