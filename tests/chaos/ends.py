"""How it all ended, as the server tells it."""

from chaos.checker import Final
from chaos.setting import setting

from maas_backoff import StorageUnavailableError, TaskBackoffScheduler, TaskEntity
from maas_backoff.domain.stats import QueueStats


async def read_stats(port: int) -> QueueStats | None:
    async with TaskBackoffScheduler(setting(port)) as scheduler:
        try:
            return await scheduler.get_queue_stats()
        except StorageUnavailableError:
            return None


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
