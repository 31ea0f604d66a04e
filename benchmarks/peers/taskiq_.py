"""taskiq over Redis streams (taskiq-redis)."""

import asyncio
from datetime import UTC, datetime, timedelta

from common import ATTEMPTS, About, Params, Peer, main
from redis.asyncio import Redis
from taskiq import SmartRetryMiddleware, TaskiqScheduler
from taskiq.api import run_receiver_task, run_scheduler_task
from taskiq_redis import ListRedisScheduleSource, RedisAsyncResultBackend, RedisStreamBroker


class Taskiq(Peer):
    about = About(
        packages=("taskiq", "taskiq-redis", "redis", "hiredis"),
        imports="import taskiq.api; from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker",
        settings=(
            "`RedisStreamBroker`, which acknowledges, with `RedisAsyncResultBackend`; `max_async_tasks=100`, "
            "`max_prefetch=100`. It has no batch call, so 32 `kiq` run at a time; its batched tasks are one call for "
            "many, which is another workload. A scheduler runs beside the worker and asks every second, its shortest "
            "interval. (taskiq's documentation, “CLI” and “Scheduling tasks”; taskiq-redis' README)"
        ),
        notes={
            "delayed": "Its scheduler works by whole seconds.",
            "retry": "`SmartRetryMiddleware` with a delay goes through the scheduler, which works by whole seconds.",
            "kill": "Its `idle_timeout` is 10 min by default.",
        },
        ahead={
            "create": "Its enqueue is one plain `XADD`.",
            "memory": "A waiting task is one stream entry and nothing else: it has no state that could be asked for. "
            "The entry stays after the acknowledgement unless `maxlen` is set.",
            "latency": "Its worker waits on the server in an `XREADGROUP` that hands over the whole task.",
        },
    )

    async def open(self) -> None:
        self.source = ListRedisScheduleSource(self.url, prefix=f"{self.queue}-schedule")
        results = RedisAsyncResultBackend(self.url, result_ex_time=3600, prefix_str=f"{self.queue}-result")
        self.broker = RedisStreamBroker(self.url, queue_name=self.queue).with_result_backend(results)
        if self.body.fails:
            again = SmartRetryMiddleware(
                default_retry_count=ATTEMPTS, default_retry_label=True, default_delay=0.1, schedule_source=self.source
            )
            self.broker = self.broker.with_middlewares(again)

        async def handle(params: Params) -> None:
            await self.body.call(params)

        self.handle = self.broker.task(task_name="handle")(handle)
        await self.broker.startup()

    async def create(self, params: Params, due: float | None = None) -> None:
        if due is None:
            await self.handle.kiq(params)
        else:
            await self.handle.schedule_by_time(self.source, datetime.fromtimestamp(due, UTC), params)

    async def serve(self) -> None:
        if not hasattr(self, "broker"):
            await self.open()
        scheduler = TaskiqScheduler(self.broker, [self.source])
        await asyncio.gather(
            run_receiver_task(self.broker, max_async_tasks=self.concurrency, max_prefetch=self.concurrency),
            run_scheduler_task(scheduler, interval=timedelta(seconds=1)),
        )

    async def unfinished(self) -> int:
        async with Redis(connection_pool=self.broker.connection_pool) as client:
            (group,) = await client.xinfo_groups(self.queue)
        return group["pending"] + (group["lag"] or 0)

    async def close(self) -> None:
        await self.broker.shutdown()


if __name__ == "__main__":
    main(Taskiq)
