"""The numbers of one scrape."""

from collections.abc import Sequence
from typing import Self

import attrs

from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.history import Activity
from maas_backoff.domain.shares import LimitStats, TenantStats
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.worker import Worker
from maas_backoff.scheduler import TaskBackoffScheduler


@attrs.frozen
class Snapshot:
    """The numbers of a queue on its server, the same for all processes."""

    stats: QueueStats
    total: Activity
    workers: Sequence[Worker] = ()
    gpus: Sequence[GpuStatus] = ()
    tenants: Sequence[TenantStats] = ()
    """Those with most waiting tasks first."""
    limits: Sequence[LimitStats] = ()

    @classmethod
    async def of(cls, scheduler: TaskBackoffScheduler) -> Self:
        """Read a snapshot: 3 commands, and 1 more while tasks wait for a GPU; with GPUs, 1 more plus 1 for each.

        With tenants, 2 more, and 1 for each 250 of them; with limits, 3 more, and 1 for each 100 of them.
        """
        stats = await scheduler.get_queue_stats()
        history = await scheduler.get_history(1)
        workers = await scheduler.workers()
        gpus = await scheduler.gpus() if any(worker.devices for worker in workers) else ()
        tenants = await scheduler.tenants() if stats.tenant_count or stats.paused_tenants else ()
        limits = await scheduler.limits() if stats.limit_count else ()
        return cls(stats, history.total, workers, gpus, tenants, limits)
