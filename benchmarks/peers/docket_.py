"""Docket, whose package is pydocket."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from common import ATTEMPTS, About, Params, Peer, main
from docket import Docket, Retry, Worker


class DocketPeer(Peer):
    about = About(
        packages=("pydocket", "redis", "hiredis"),
        imports="from docket import Docket, Worker",
        settings=(
            "`concurrency=100`; `minimum_check_interval` and `scheduling_resolution` are 10 ms instead of 250 ms, as a "
            "full worker sleeps so long and due tasks wait for it; `max_connections=300`, as its documentation asks "
            "for at least the concurrency; `add_many` enqueues in batches. (docket's documentation, “Docket in "
            "Production”)"
        ),
        notes={
            "drain": "It stores a state per task, and a result unless it is `None`, as here.",
            "kill": "Its `redelivery_timeout` is 5 min by default.",
        },
        ahead={"latency": "Its worker waits on the server in an `XREADGROUP` that hands over the whole task."},
    )

    def _docket(self) -> Docket:
        async def handle(params: dict[str, Any]) -> None:
            await self.body.call(params)

        again = Retry(attempts=ATTEMPTS, delay=timedelta(seconds=0.1))

        async def handle_again(params: dict[str, Any], _retry: Retry = again) -> None:
            await self.body.call(params)

        self.handle = handle_again if self.body.fails else handle
        docket = Docket(name=self.queue, url=f"{self.url}?max_connections={3 * self.concurrency}")
        docket.register(self.handle)
        return docket

    async def open(self) -> None:
        self.docket = self._docket()
        await self.docket.__aenter__()

    async def create(self, params: Params, due: float | None = None) -> None:
        await self.docket.add(self.handle, when=None if due is None else datetime.fromtimestamp(due, UTC))(params)

    async def create_many(self, items: Iterable[Params]) -> None:
        await self.docket.add_many(self.docket.call(self.handle)(params) for params in items)

    async def serve(self) -> None:
        async with (
            self._docket() as docket,
            Worker(
                docket,
                concurrency=self.concurrency,
                minimum_check_interval=timedelta(milliseconds=10),
                scheduling_resolution=timedelta(milliseconds=10),
            ) as worker,
        ):
            await worker.run_forever()

    async def unfinished(self) -> int:
        return (await self.docket.snapshot()).total_tasks

    async def close(self) -> None:
        await self.docket.__aexit__(None, None, None)


if __name__ == "__main__":
    main(DocketPeer)
