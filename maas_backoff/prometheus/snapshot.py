"""The numbers that one scrape has read."""

from collections.abc import Sequence
from typing import Self

import attrs

from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.history import Activity
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.worker import Worker
from maas_backoff.scheduler import TaskBackoffScheduler


@attrs.frozen
class Snapshot:
    """A queue as its server knows it; all processes that ask get the same."""

    stats: QueueStats
    total: Activity
    workers: Sequence[Worker] = ()
    gpus: Sequence[GpuStatus] = ()

    @classmethod
    async def of(cls, scheduler: TaskBackoffScheduler) -> Self:
        """Read it, with three commands; one more while tasks wait for a GPU; with GPUs, one more and one for each."""
        stats = await scheduler.get_queue_stats()
        history = await scheduler.get_history(1)
        workers = await scheduler.workers()
        gpus = await scheduler.gpus() if any(worker.devices for worker in workers) else ()
        return cls(stats, history.total, workers, gpus)
