"""The registry of workers: their entries, leases and cancel requests."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from maas_backoff.common.orphans import Origin
from maas_backoff.domain.kind import ONLY_NAMELESS, Kinds
from maas_backoff.domain.worker import Worker
from maas_backoff.store import scripts
from maas_backoff.store.connect import Client
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.replies import RenewReply

LARGEST_FLEET = 1000

QUIET_KEPT = 86_400
"""Seconds for which a worker without heartbeats stays quiet."""


class Registry:
    """The workers of one queue."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def fleet(self, deadline: float | None = None) -> Sequence[Worker]:
        """Return the entries of this queue's live workers, at most 1000. The deadline is as in `Server.patiently`."""
        queue = self._queue
        args = [queue.clock, queue.keys.prefix, LARGEST_FLEET]
        entries = await queue.server.run(scripts.FLEET, queue.keys.all(scripts.FLEET.keys), args, deadline)
        return [Worker.of(name.decode(), text) for name, text in zip(entries[::2], entries[1::2], strict=True)]

    async def enter(self, worker: str, info: str) -> None:
        """Write a worker's entry, until the server answers or `storage.timeout` is over."""
        args = self._renew_args(worker, info, ())
        await self._queue.run(scripts.RENEW, args, **self._keys_of(worker))

    async def renew(self, client: Client, worker: str, info: str, leases: Iterable[tuple[str, int]]) -> RenewReply:
        """Renew a worker's entry and its leases (id and token of each task). Send the call once, by `client`."""
        names = self._queue.keys.all(scripts.RENEW.keys, **self._keys_of(worker))
        return await client.run(scripts.RENEW, names, self._renew_args(worker, info, leases))

    def _renew_args(self, worker: str, info: str, leases: Iterable[tuple[str, int]]) -> list[Any]:
        queue, process = self._queue, self._queue.process
        args: list[Any] = [queue.clock, queue.keys.prefix, worker, info]
        args += self._lease_ms, "" if process is None else str(process)
        for lease in leases:
            args += lease
        return args

    @property
    def _lease_ms(self) -> str:
        return f"{self._queue.config.scheduler.lease * 1000:.0f}"

    def _keys_of(self, worker: str) -> dict[str, str]:
        queue = self._queue
        name = queue.keys.name(queue.config.scheduler.worker_name or "")
        keys = queue.keys
        return {"info": keys.info(worker), "host": self._host(), "name": name, "quiet": keys.quiet(worker)}

    def _host(self) -> str:
        """Return the key of the workers that can see this process."""
        process = self._queue.process
        return self._queue.keys.host(*(("", "") if process is None else (process.boot, process.namespace)))

    async def named(self, name: str) -> tuple[str, Origin | None]:
        """Return the worker that has a name, and its process if that is one of this host; "" if there is none."""
        queue = self._queue
        worker = await queue.server.execute("GET", queue.keys.name(name))
        if worker is None:
            return "", None
        process = await queue.server.execute("HGET", self._host(), worker)
        return worker.decode(), None if process is None else Origin.parse(process.decode())

    async def take_name(self, name: str, worker: str) -> None:
        """Give a name to a worker, for a lease. Heartbeats renew it."""
        queue = self._queue
        await queue.server.execute("SET", queue.keys.name(name), worker, "PX", self._lease_ms)

    async def take_free_name(self, client: Client, name: str, worker: str) -> None:
        """Give a worker its name again, which an outage of more than a lease has cost. Do nothing if another has it."""
        await client.execute("SET", self._queue.keys.name(name), worker, "PX", self._lease_ms, "NX")

    async def set_quiet(self, worker: str, *, on: bool) -> bool:
        """Tell a worker to claim nothing, or to claim again. Return False if it was told so before.

        Its heartbeats renew the key.
        """
        key = self._queue.keys.quiet(worker)
        client = await self._queue.server.connect()
        if not on:
            return bool(await client.execute("UNLINK", key))
        since = await client.execute("HGET", key, "quiet") or _now_ms(await client.execute("TIME"))
        told, _ = await client.execute_together(("HSET", key, "quiet", since), ("EXPIRE", key, QUIET_KEPT))
        return bool(told)

    async def quieted(self, workers: Sequence[str]) -> Mapping[str, float]:
        """Return the workers that were told to claim nothing, each with the server time of that in ms; 0: unknown."""
        client = await self._queue.server.connect()
        reads = [("HGET", self._queue.keys.quiet(worker), "quiet") for worker in workers]
        found = await client.execute_together(*reads) if reads else []
        return {name: _moment_ms(since) for name, since in zip(workers, found, strict=True) if isinstance(since, bytes)}

    async def expire(self, worker: str) -> int:
        """Let the leases of a worker run out whose process has ended, and remove its entry. Return how many leases."""
        keys, cursor, ended = self._queue.keys, "0", 0
        while True:
            args = [keys.prefix, worker, cursor]
            reply = await self._queue.run(scripts.EXPIRE, args, info=keys.info(worker), host=self._host())
            cursor, ended = reply.cursor.decode(), ended + reply.ended
            if cursor == "0":
                return ended

    async def cancel_request(self, client: Client, worker: str, seconds: float) -> str | None:
        """Wait for a request to cancel a task of this worker. Return the task's id; None if none came."""
        taken = await client.execute("BZPOPMIN", self._queue.keys.control(worker), f"{seconds:.3f}")
        return None if taken is None else taken[1].decode()

    async def leave(self, worker: str, kinds: Kinds = ONLY_NAMELESS) -> None:
        """Remove a worker's entry, and wake others that run tasks of its `kinds`."""
        keys = self._queue.keys
        args = [keys.prefix, worker, kinds.text]
        await self._queue.run(scripts.LEAVE, args, info=keys.info(worker), host=self._host())


def _now_ms(time: Sequence[bytes]) -> str:
    """Return the reply of TIME in ms."""
    return f"{int(time[0]) * 1000 + int(time[1]) // 1000}"


def _moment_ms(text: bytes) -> float:
    """Return a stored moment; 0 for the "1" of an older release, or the text of a person."""
    return float(text) if text.isdigit() and text != b"1" else 0.0


def processes(neighbours: Sequence[bytes]) -> Mapping[str, Origin]:
    """Return the processes of workers by their names, as renew.lua lists them."""
    pairs = zip(neighbours[::2], neighbours[1::2], strict=True)
    found = {name.decode(): Origin.parse(process.decode()) for name, process in pairs}
    return {name: process for name, process in found.items() if process is not None}
