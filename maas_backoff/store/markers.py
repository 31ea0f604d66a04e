"""Markers: the keys that wake workers which sleep on the server."""

from typing import Any

from maas_backoff.domain.kind import NAMELESS, ONLY_NAMELESS, Kinds
from maas_backoff.store.connect import Client
from maas_backoff.store.connection import QueueConnection

_KEPT = 10
"""Seconds for which the marker of one worker is kept."""


class Markers:
    """The wake-ups of one queue. A marker is a hint: a worker that takes it looks for tasks."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def sleep(
        self, client: Client, worker: str, longest: float, *, gpu: bool, kinds: Kinds = ONLY_NAMELESS
    ) -> str:
        """Sleep until there is a marker. Return its name, or "" after `longest` seconds. Errors as `Client.execute`.

        The markers are that of the worker, and "marker" of each of its kinds. With `gpu`, also "gpu_marker" of each.
        """
        return self.name_of(await client.execute(*self.blocking(worker, longest, gpu=gpu, kinds=kinds)))

    def blocking(self, worker: str, longest: float, *, gpu: bool, kinds: Kinds = ONLY_NAMELESS) -> tuple[str, ...]:
        """Return the command that sleeps as `sleep` does. `name_of` reads its answer."""
        keys = self._queue.keys
        markers = [keys(keys.of_kind(kind, "marker")) for kind in kinds.names]
        markers.append(keys.marker(worker))
        if gpu:
            markers += (keys(keys.of_kind(kind, "gpu_marker")) for kind in kinds.names)
        return "BZPOPMIN", *markers, f"{longest:.3f}"

    def name_of(self, taken: list[Any] | None) -> str:
        """Return the name of the marker that ended a sleep, or ""."""
        return "" if taken is None else taken[0].decode().removeprefix(self._queue.keys.prefix)

    async def wake(self, worker: str) -> None:
        """End a worker's sleep, or its next one."""
        await self.wake_by(await self._queue.server.connect(), worker)

    async def wake_by(self, client: Client, worker: str) -> None:
        """End a worker's sleep as `wake` does, by a client of another event loop."""
        marker = self._queue.keys.marker(worker)
        # In one message: a caller that is stopped between the two would leave a key without an expiry.
        await client.execute_together(("ZADD", marker, 0, "0"), ("EXPIRE", marker, _KEPT))

    async def wake_next(self, client: Client, marker: str) -> None:
        """Let the marker with this name wake the next worker."""
        await client.execute("ZADD", self._queue.keys(marker), 0, "0")

    async def wake_for_gpu(self, kinds: Kinds = ONLY_NAMELESS) -> None:
        """Wake the next worker with GPUs: tasks of one of these kinds wait for a GPU."""
        keys = self._queue.keys
        for kind in kinds.names:
            await self._queue.server.execute("ZADD", keys(keys.of_kind(kind, "gpu_marker")), "0", "0")


def is_for_slots(marker: str) -> bool:
    """Return whether a marker, by its name, tells that a task has become ready."""
    return marker.rpartition(":")[2] == "marker"


def is_for_gpu(marker: str) -> bool:
    """Return whether a marker, by its name, tells that a task waits for a GPU."""
    return marker.rpartition(":")[2] == "gpu_marker"


def kind_of(marker: str) -> str:
    """Return the kind of the tasks that a marker tells of, by its name."""
    return marker.split(":")[1] if marker.startswith("k:") else NAMELESS
