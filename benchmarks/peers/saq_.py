"""SAQ over Redis."""

from typing import Any

from common import ATTEMPTS, About, Params, Peer, main
from saq import Queue, Worker


class Saq(Peer):
    about = About(
        packages=("saq", "redis", "hiredis"),
        imports="from saq import Queue, Worker",
        settings=(
            "`concurrency=100`, and the worker's queue has `max_concurrent_ops=100` instead of 20, so that no slot "
            "waits for its read. It has no batch call that does not wait for results, so 32 `enqueue` run at a time, "
            "of which its default lets 20 through. (SAQ's documentation, “Worker” and “Queue”)"
        ),
        notes={
            "drain": "The sweep with which its worker begins may take a task for stuck that was claimed a moment ago; "
            "that one then runs twice (tobymao/saq, issue 277).",
            "delayed": "Its scheduler looks once a second (`timers`, whole seconds).",
            "retry": "Its scheduler looks once a second for retries with a delay, too.",
            "kill": "Its sweep runs every 60 s by default. `retries=3`, as the default of 1 would abort the tasks.",
        },
        ahead={
            "create": "Its script stores one string, without an index of states.",
            "latency": "Each of its slots waits on the server in a `BLMOVE` of its own that hands over the task's id.",
        },
    )

    async def open(self) -> None:
        self.producer = Queue.from_url(self.url, name=self.queue)
        await self.producer.connect()
        self.options: dict[str, Any] = {"retries": ATTEMPTS} if self.body.seconds else {}
        if self.body.fails:
            self.options = {"retries": ATTEMPTS, "retry_delay": 0.1}

    async def create(self, params: Params, due: float | None = None) -> None:
        await self.producer.enqueue("handle", params=params, scheduled=due or 0, **self.options)

    async def serve(self) -> None:
        async def handle(_: dict[str, Any], *, params: Params) -> None:
            await self.body.call(params)

        queue = Queue.from_url(self.url, name=self.queue, max_concurrent_ops=self.concurrency)
        await queue.connect()
        await Worker(queue, functions=[("handle", handle)], concurrency=self.concurrency).start()

    async def unfinished(self) -> int:
        return await self.producer.count("incomplete")

    async def close(self) -> None:
        await self.producer.disconnect()


if __name__ == "__main__":
    main(Saq)
