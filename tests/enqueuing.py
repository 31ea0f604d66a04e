"""A scheduler whose handler runs in child processes, and creates a task from there."""

import asyncio
import os

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    ThreadPoolConfig,
)

scheduler = TaskBackoffScheduler(
    TaskBackoffConfig(
        storage=StorageConfig(url=os.environ.get("MAAS_BACKOFF_TEST_URL", "redis://127.0.0.1:1/0")),
        task=TaskConfig(biz_prefix="test", max_retry_count=0),
        threadpool=ThreadPoolConfig(proc_mode="process", concurrency=1),
    )
)


@scheduler.set_custom_task_handler
def enqueue(task: TaskEntity) -> list[str]:
    """Create two tasks, each in an event loop of its own."""
    return [asyncio.run(scheduler.create_task({}, f"{task.task_id}-{n}", delay=3600)) for n in range(2)]
