"""The identity of a worker, and the settings and the store that its parts share."""

from typing import Self

import attrs

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.store.queue_store import QueueStore


@attrs.frozen
class WorkerContext:
    """One worker, as its parts know it. Durations are in seconds."""

    name: str
    """The worker's name in the registry of workers."""
    store: QueueStore
    lease: float
    """For how long a claim or a renewal gives the right to run a task."""
    interval: float
    """The longest time between two looks for tasks."""
    exec_timeout: float
    """The longest time of an attempt whose task names none."""

    @classmethod
    def of(cls, name: str, store: QueueStore, config: TaskBackoffConfig) -> Self:
        """Return the context of a worker with this configuration."""
        scheduler = config.scheduler
        return cls(name, store, scheduler.lease, scheduler.interval, config.threadpool.exec_timeout)
