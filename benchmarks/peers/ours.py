"""maas_backoff, by its public API."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import anyio
from common import About, Params, Peer, main

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    ThreadPoolConfig,
)


class Ours(Peer):
    about = About(
        packages=("maas_backoff", "redis", "hiredis"),
        imports="from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler",
        settings=(
            "`concurrency=100` and the queue's name, all else as it comes: results are stored for a day, the lease is "
            "30 s. `create_tasks` enqueues in batches. (README.md, “Configuration”)"
        ),
        notes={
            "kill": "Both workers run on one host, where a worker sees within a second that the process of another has "
            "ended. Tasks of a worker on another host wait for their lease, 30 s by default."
        },
    )

    async def open(self) -> None:
        task = TaskConfig(biz_prefix=self.queue)
        if self.body.fails:
            task = TaskConfig(biz_prefix=self.queue, backoff_strategy="fixed", backoff_interval=0.1, max_retry_count=3)
        self.scheduler = TaskBackoffScheduler(
            TaskBackoffConfig(
                storage=StorageConfig(url=self.url),
                task=task,
                threadpool=ThreadPoolConfig(concurrency=self.concurrency),
            )
        )

        @self.scheduler.set_custom_task_handler
        async def handle(task: TaskEntity) -> None:
            await self.body.call(task.task_params)

    async def create(self, params: Params, due: float | None = None) -> None:
        options: dict[str, Any] = {} if due is None else {"run_at": datetime.fromtimestamp(due, UTC)}
        await self.scheduler.create_task(params, **options)

    async def create_many(self, items: Iterable[Params]) -> None:
        await self.scheduler.create_tasks(items)

    async def serve(self) -> None:
        if not hasattr(self, "scheduler"):
            await self.open()
        async with self.scheduler:
            await anyio.sleep_forever()

    async def unfinished(self) -> int:
        stats = await self.scheduler.get_queue_stats()
        return stats.pending_count + stats.processing_count

    async def close(self) -> None:
        await self.scheduler.shutdown()


if __name__ == "__main__":
    main(Ours)
