"""huey over Redis. Its workers are threads, so its handler is a plain function."""

import asyncio
import logging
import time

from common import ATTEMPTS, About, Params, Peer, main
from huey import RedisHuey


class Huey(Peer):
    about = About(
        packages=("huey", "redis", "hiredis"),
        imports="from huey import RedisHuey; import huey.consumer",
        settings=(
            "8 threads, as dramatiq (100 only in the `kill` row, whose tasks last). It has no batch call, and is "
            "synchronous, so that its enqueues follow each other. (huey's documentation, “Consuming Tasks”)"
        ),
        notes={
            "drain": "It stores no state, and no result that is `None`, as here.",
            "crowd": "It is synchronous: the calls of 100 coroutines follow each other.",
            "delayed": "Its scheduler looks once a second, its shortest interval.",
            "retry": "Its scheduler looks once a second for retries with a delay, too.",
            "kill": "A task leaves the list when it begins. If its worker dies, it is lost.",
        },
        ahead={
            "create": "Its enqueue is one plain `LPUSH`, and synchronous: no event loop between write and read.",
            "latency": "Each of its threads waits on the server in a `BRPOP` that hands over the whole task.",
            "memory": "A waiting task is one entry of a list, and has no state that could be asked for.",
            "lone": "A task is one `LPUSH` and one `BRPOP`. Nothing records that it runs, or that it has ended.",
            "startup": "It is one package of few modules, and needs redis-py only.",
        },
    )

    async def open(self) -> None:
        logging.getLogger("huey").setLevel(logging.CRITICAL)
        self.huey = RedisHuey(self.queue, url=self.url)
        again = {"retries": ATTEMPTS - 1, "retry_delay": 0.1} if self.body.fails else {}

        def handle(params: Params) -> None:
            self.body.call_in_thread(params)

        self.handle = self.huey.task(name="handle", **again)(handle)

    async def create(self, params: Params, due: float | None = None) -> None:
        if due is None:
            self.handle(params)
        else:
            self.handle.schedule(args=(params,), delay=due - time.time())

    async def serve(self) -> None:
        if not hasattr(self, "huey"):
            await self.open()
        workers = self.concurrency if self.body.seconds else 8
        self.huey.create_consumer(workers=workers, worker_type="thread", periodic=False).start()
        await asyncio.Event().wait()

    async def unfinished(self) -> int:
        return self.huey.pending_count() + self.huey.scheduled_count()

    async def close(self) -> None:
        self.huey.storage.close()


if __name__ == "__main__":
    main(Huey)
