"""BullMQ for Python, over Redis."""

import asyncio
import itertools
import time
from collections.abc import Iterable
from typing import Any

from bullmq import Queue, Worker
from common import ATTEMPTS, About, Params, Peer, main


class BullMQ(Peer):
    about = About(
        packages=("bullmq", "redis", "hiredis"),
        imports="from bullmq import Queue, Worker",
        settings=(
            "`concurrency=100`, and `addBulk` by the thousand; all else as it comes. (BullMQ's documentation, “Python” "
            "and “Concurrency”)"
        ),
        notes={"kill": "Its `lockDuration` and its `stalledInterval` are 30 s by default."},
        ahead={"latency": "Its worker waits on the server in a `BZPOPMIN` of a marker, as ours does."},
    )

    async def open(self) -> None:
        self.producer = Queue(self.queue, {"connection": self.url})
        self.options: dict[str, Any] = {}
        if self.body.fails:
            self.options = {"attempts": ATTEMPTS, "backoff": {"type": "fixed", "delay": 100}}

    async def create(self, params: Params, due: float | None = None) -> None:
        delay = {} if due is None else {"delay": max(0, round((due - time.time()) * 1000))}
        await self.producer.add("handle", params, {**self.options, **delay})

    async def create_many(self, items: Iterable[Params]) -> None:
        jobs = ({"name": "handle", "data": params, "opts": self.options} for params in items)
        while chunk := list(itertools.islice(jobs, 1000)):
            await self.producer.addBulk(chunk)

    async def serve(self) -> None:
        async def handle(job: Any, _: str) -> None:
            await self.body.call(job.data)

        Worker(self.queue, handle, {"connection": self.url, "concurrency": self.concurrency})
        await asyncio.Event().wait()

    async def unfinished(self) -> int:
        return sum((await self.producer.getJobCounts("waiting", "active", "delayed")).values())

    async def close(self) -> None:
        await self.producer.close()


if __name__ == "__main__":
    main(BullMQ)
