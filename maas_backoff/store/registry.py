"""The registry of workers: their entries, leases and cancel requests."""

from collections.abc import Iterable, Sequence
from typing import Any

from maas_backoff.domain.worker import Worker
from maas_backoff.store import scripts
from maas_backoff.store.connect import Client
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.replies import RenewReply

LARGEST_FLEET = 1000


class Registry:
    """The workers of one queue."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def fleet(self) -> Sequence[Worker]:
        """Return the entries of this queue's live workers, at most 1000."""
        queue = self._queue
        entries = await queue.run(scripts.FLEET, [queue.clock, queue.keys.prefix, LARGEST_FLEET])
        return [Worker.of(name.decode(), text) for name, text in zip(entries[::2], entries[1::2], strict=True)]

    async def enter(self, worker: str, info: str) -> None:
        """Write a worker's entry, until the server answers or `storage.timeout` is over."""
        args = self._renew_args(worker, info, ())
        await self._queue.run(scripts.RENEW, args, info=self._queue.keys.info(worker))

    async def renew(self, client: Client, worker: str, info: str, leases: Iterable[tuple[str, int]]) -> RenewReply:
        """Renew a worker's entry and its leases (id and token of each task). Send the call once, by `client`."""
        keys = self._queue.keys
        names = keys.all(scripts.RENEW.keys, info=keys.info(worker))
        return await client.run(scripts.RENEW, names, self._renew_args(worker, info, leases))

    def _renew_args(self, worker: str, info: str, leases: Iterable[tuple[str, int]]) -> list[Any]:
        queue = self._queue
        args: list[Any] = [queue.clock, queue.keys.prefix, worker, info]
        args.append(f"{queue.config.scheduler.lease * 1000:.0f}")
        for lease in leases:
            args += lease
        return args

    async def cancel_request(self, client: Client, worker: str, seconds: float) -> str | None:
        """Wait for a request to cancel a task of this worker. Return the task's id; None if none came."""
        taken = await client.execute("BZPOPMIN", self._queue.keys.control(worker), f"{seconds:.3f}")
        return None if taken is None else taken[1].decode()

    async def leave(self, worker: str) -> None:
        """Remove a worker's entry."""
        await self._queue.run(scripts.LEAVE, [worker], info=self._queue.keys.info(worker))
