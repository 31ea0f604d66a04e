"""arq."""

from datetime import UTC, datetime
from typing import Any

from arq import Retry, Worker, create_pool
from arq.connections import RedisSettings
from arq.worker import func
from common import About, Failure, Params, Peer, main


class Arq(Peer):
    about = About(
        packages=("arq", "redis", "hiredis"),
        imports="from arq import Worker, create_pool",
        settings=(
            "`max_jobs=100`, and `poll_delay=0.01` instead of 0.5 s, as it polls and the delay is its latency. It has "
            "no batch call, so 32 `enqueue_job` run at a time. (arq's documentation, “API Reference”: "
            "`arq.worker.Worker`)"
        ),
        notes={
            "retry": "Its handler raises `Retry(defer=0.1)`; another exception ends a task there.",
            "kill": "A task is locked for `job_timeout` and 10 s, by default 310 s.",
        },
        ahead={
            "create": "Its enqueue is one `MULTI` of two plain commands.",
            "memory": "A waiting task is one string, and one member of a sorted set.",
        },
    )

    async def open(self) -> None:
        self.pool = await create_pool(RedisSettings.from_dsn(self.url), default_queue_name=self.queue)

    async def create(self, params: Params, due: float | None = None) -> None:
        until = None if due is None else datetime.fromtimestamp(due, UTC)
        await self.pool.enqueue_job("handle", params, _defer_until=until)

    async def serve(self) -> None:
        async def handle(_: dict[Any, Any], params: Params) -> None:
            try:
                await self.body.call(params)
            except Failure:
                raise Retry(defer=0.1) from None

        worker = Worker(
            functions=[func(handle, name="handle")],
            redis_settings=RedisSettings.from_dsn(self.url),
            queue_name=self.queue,
            max_jobs=self.concurrency,
            poll_delay=0.01,
            handle_signals=False,
        )
        await worker.async_run()

    async def unfinished(self) -> int:
        return await self.pool.zcard(self.queue)

    async def close(self) -> None:
        await self.pool.aclose()


if __name__ == "__main__":
    main(Arq)
