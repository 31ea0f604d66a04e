"""The GPU memory of a worker's own process, where tasks run in that process."""

import os

import attrs

from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.sample import GpuSample


class OwnProcess:
    """The worker's own process as a user of devices. If tasks run in child processes, it uses nothing."""

    def __init__(self, *, in_children: bool) -> None:
        self.owner: str = owner_of(os.getpid())
        self._in_children = in_children
        self._resident: dict[str, int] = {}
        """MiB that this process used of a device before its first task there: a model of the worker_lifespan, say."""

    def used(self, sample: GpuSample) -> int:
        """Return the MiB that this process uses, by a GPU sample."""
        return 0 if self._in_children else sample.used.get(self.owner, 0)

    def note_first_task(self, sample: GpuSample) -> None:
        """Note that a task starts on a device. Memory that this process takes from now on belongs to its tasks."""
        self._resident.setdefault(sample.uuid, self.used(sample))

    def with_cache_free(self, sample: GpuSample) -> GpuSample:
        """Return a GPU sample in which the memory that earlier tasks left in this process is free for the next ones.

        A caching allocator, as PyTorch has, gives nothing back. Child processes have no such memory here: each has a
        grant of its own.
        """
        used = self.used(sample)
        cached = max(0, used - self._resident.get(sample.uuid, used))
        return attrs.evolve(sample, free=min(sample.total, sample.free + cached)) if cached else sample
