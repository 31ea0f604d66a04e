"""Dramatiq over Redis. Its workers are threads, so its handler is a plain function."""

import asyncio
import os
import time

from common import ATTEMPTS, About, Failure, Params, Peer, main


class Dramatiq(Peer):
    about = About(
        packages=("dramatiq", "redis", "hiredis"),
        imports="import dramatiq; from dramatiq.brokers.redis import RedisBroker",
        settings=(
            "8 threads, its default, with `dramatiq_queue_prefetch=1000`: for no-ops faster than 100 threads (100 "
            "only in the `kill` row, whose tasks last). `dramatiq_worker_timeout=10` instead of 1000, as it polls. It "
            "stores no results, which is its default. (Dramatiq's documentation, “API Reference”: “Environment "
            "Variables”)"
        ),
        notes={
            "drain": "It stores neither results nor states.",
            "crowd": "It is synchronous: the calls of 100 coroutines follow each other.",
            "retry": "Its handler raises `Retry(delay=100)`, as its own backoff has a jitter.",
            "kill": "Its `heartbeat_timeout` is 60 s by default.",
        },
        ahead={
            "drain": "It keeps nothing of a task that has ended.",
            "create": "It is synchronous: a call is a write and a read of one socket, with no event loop between them.",
            "lone": "It keeps nothing of a task that has ended.",
            "memory": "A waiting task is a member of a list and a field of a hash.",
        },
    )

    async def open(self) -> None:
        os.environ.setdefault("dramatiq_queue_prefetch", "1000")
        os.environ.setdefault("dramatiq_worker_timeout", "10")
        import dramatiq
        from dramatiq.brokers.redis import RedisBroker

        self.broker = RedisBroker(url=self.url, namespace=self.queue)

        def handle(params: Params) -> None:
            try:
                self.body.call_in_thread(params)
            except Failure:
                raise dramatiq.Retry(delay=100) from None

        self.handle = dramatiq.actor(handle, broker=self.broker, max_retries=ATTEMPTS - 1)

    async def create(self, params: Params, due: float | None = None) -> None:
        if due is None:
            self.handle.send(params)
        else:
            self.handle.send_with_options(args=(params,), delay=round((due - time.time()) * 1000))

    async def serve(self) -> None:
        if not hasattr(self, "broker"):
            await self.open()
        from dramatiq import Worker

        Worker(self.broker, worker_threads=self.concurrency if self.body.seconds else 8).start()
        await asyncio.Event().wait()

    async def unfinished(self) -> int:
        return self.broker.do_qsize(self.handle.queue_name)

    async def close(self) -> None:
        self.broker.close()


if __name__ == "__main__":
    main(Dramatiq)
