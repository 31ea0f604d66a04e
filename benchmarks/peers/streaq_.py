"""streaQ."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from common import About, Failure, Params, Peer, main
from streaq import StreaqRetry, Worker


class Streaq(Peer):
    about = About(
        packages=("streaq", "coredis"),
        imports="from streaq import Worker",
        settings=(
            "`concurrency=100`, which also prefetches 100, and `enqueue_many` by the thousand; `prefetch=200` and "
            "`1000` were measured and are no faster. (streaQ's documentation, “Workers” and “Tasks”)"
        ),
        notes={
            "delayed": "It looks for due tasks every 0.5 s.",
            "retry": "Its handler raises `StreaqRetry(delay=0.1 s)`; it looks for due tasks every 0.5 s.",
            "kill": "Its `idle_timeout` is 60 s by default.",
        },
        ahead={
            "memory": "A waiting task is one string and one short stream entry.",
            "latency": "Its worker waits on the server in an `XREADGROUP` that hands over the task's id.",
        },
    )

    def _worker(self) -> tuple[Worker[Any], Any]:
        worker = Worker(self.url, queue_name=self.queue, concurrency=self.concurrency, handle_signals=False)

        @worker.task(name="handle")
        async def handle(params: Params) -> None:
            try:
                await self.body.call(params)
            except Failure:
                raise StreaqRetry(delay=timedelta(seconds=0.1)) from None

        return worker, handle

    async def open(self) -> None:
        self.producer, self.handle = self._worker()
        await self.producer.__aenter__()

    async def create(self, params: Params, due: float | None = None) -> None:
        task = self.handle.enqueue(params)
        await (task if due is None else task.start(schedule=datetime.fromtimestamp(due, UTC)))

    async def create_many(self, items: Iterable[Params]) -> None:
        rest = [self.handle.enqueue(params) for params in items]
        for start in range(0, len(rest), 1000):
            await self.producer.enqueue_many(rest[start : start + 1000])

    async def serve(self) -> None:
        worker, _ = self._worker()
        await worker.run_async()

    async def unfinished(self) -> int:
        return await self.producer.queue_size()

    async def close(self) -> None:
        await self.producer.__aexit__(None, None, None)


if __name__ == "__main__":
    main(Streaq)
