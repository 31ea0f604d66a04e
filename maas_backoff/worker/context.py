"""The name of a worker, and the settings and the store that its parts share."""

from typing import Self

import attrs

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.kind import ONLY_NAMELESS, Kinds
from maas_backoff.store.queue_store import QueueStore


@attrs.frozen
class WorkerContext:
    """The values of one worker that its parts share. Durations are in seconds."""

    name: str
    """The worker's name in the registry of workers."""
    store: QueueStore
    lease: float
    """The duration of a lease after a claim or a renewal."""
    interval: float
    """The longest time between two polls of the queue."""
    exec_timeout: float
    """The timeout of an attempt, unless the task has its own."""
    kinds: Kinds
    """The kinds of tasks that the worker has handlers for."""
    max_stream_bytes: int
    """The most bytes of a task's stream."""

    @classmethod
    def of(cls, name: str, store: QueueStore, config: TaskBackoffConfig, kinds: Kinds = ONLY_NAMELESS) -> Self:
        """Return the context of a worker with this configuration."""
        scheduler = config.scheduler
        timeout, most = config.threadpool.exec_timeout, config.task.max_stream_bytes
        return cls(name, store, scheduler.lease, scheduler.interval, timeout, kinds, most)
