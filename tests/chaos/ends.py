"""How it all ended, as the server tells it."""

from chaos.checker import Final
from chaos.setting import setting
from chaos.shares import LOOSE, TENANTS, Limits

from maas_backoff import StorageUnavailableError, TaskBackoffScheduler, TaskEntity
from maas_backoff.domain.stats import QueueStats


async def read_stats(port: int) -> QueueStats | None:
    async with TaskBackoffScheduler(setting(port)) as scheduler:
        try:
            return await scheduler.get_queue_stats()
        except StorageUnavailableError:
            return None


async def set_shares(port: int, limits: Limits) -> None:
    """Set the weights of tenants, and the limits that never change."""
    async with TaskBackoffScheduler(setting(port)) as scheduler:
        for tenant, weight in TENANTS.items():
            await scheduler.set_weight(tenant, weight)
        for name, most in limits.most.items():
            await scheduler.set_limit(name, concurrency=most)
        for name, rate in limits.rates.items():
            await scheduler.set_limit(name, rate=rate)


async def change_shares(port: int, *, paused: str, is_limited: bool) -> None:
    """Have one tenant paused, or none, and the loose limit set or not."""
    async with TaskBackoffScheduler(setting(port, timeout=3)) as scheduler:
        for tenant in TENANTS:
            await (scheduler.pause(tenant=tenant) if tenant == paused else scheduler.resume(tenant=tenant))
        await (scheduler.set_limit(LOOSE, concurrency=1) if is_limited else scheduler.remove_limit(LOOSE))


async def read_finals(port: int, ids: list[str]) -> dict[str, Final]:
    finals: dict[str, Final] = {}
    async with TaskBackoffScheduler(setting(port)) as scheduler:
        for task_id in ids:
            task = await scheduler.get_task(task_id)
            if task is not None:
                finals[task_id] = final_of(task)
    return finals


def final_of(task: TaskEntity) -> Final:
    """Return the end of a task."""
    return Final(
        status=task.status,
        token=task.token,
        attempt=task.attempt,
        retry=task.retry_count,
        lost=task.lost_count,
        error=None if task.error is None else task.error.type,
        result=task.result,
        failed_attempts=tuple(attempt.number for attempt in task.attempts),
        created=task.created_at.timestamp(),
        expired=getattr(task, "cancel_reason", None) == "expired",  # the last release has none
        function=task.kind,
    )
