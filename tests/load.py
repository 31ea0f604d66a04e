"""A queue under load: a worker and producers, and what became of every task whose creation was acknowledged."""

import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from support import eventually, quick_config

from maas_backoff import StorageConfig, StorageUnavailableError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.store.keys import Keys

_INDEXES = {
    b"pending": ("ready", "suspects", "scheduled"),
    b"processing": ("leases",),
    b"external": ("external",),
    b"completed": ("completed",),
    b"failed": ("failed",),
    b"cancelled": ("cancelled",),
}


class Load:
    """One worker; one producer in its process, `beside`, and one without a worker, `apart`, as a web service has it."""

    def __init__(self, storage: StorageConfig, biz_prefix: str = "test") -> None:
        self.worker = TaskBackoffScheduler(_config(storage, biz_prefix))
        self.worker.set_custom_task_handler(self._handle)
        self._producers = {"beside": self.worker, "apart": TaskBackoffScheduler(_config(storage, biz_prefix))}
        self.acknowledged: dict[str, float] = {}
        self.started: list[tuple[float, str]] = []
        self.refused: Counter[str] = Counter()
        self.enough = False

    async def _handle(self, task: TaskEntity) -> int:
        self.started.append((time.monotonic(), task.task_id))
        await anyio.sleep(0.01)
        return int(task.task_params["n"])

    async def _produce(self, name: str) -> None:
        """Create one task after the other. Any error but the one that says "try again" ends the test."""
        for n in itertools.count():
            if self.enough:
                return
            task_id = f"{name}-{n}"
            try:
                await self._producers[name].create_task({"n": n}, task_id=task_id)
            except StorageUnavailableError as error:
                self.refused[str(error).split(":")[0]] += 1
            else:
                self.acknowledged[task_id] = time.monotonic()
            await anyio.sleep(0.005)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run it; at the end stop creating, and wait until nothing is left to be done."""
        async with self.worker:
            async with anyio.create_task_group() as group:
                for name in self._producers:
                    group.start_soon(self._produce, name)
                await self.goes_on(100)
                yield
                self.enough = True
            await eventually(self._all_done, "all is done", 40)
            self.tasks = {task_id: await self.worker.get_task(task_id) for task_id in self.acknowledged}
        await self._producers["apart"].shutdown()

    async def goes_on(self, count: int, seconds: float = 40) -> float:
        """Wait until `count` tasks have been run that were acknowledged from now on; the time of the first of them."""
        since = time.monotonic()

        def fresh() -> list[float]:
            return [at for at, task_id in self.started[-5000:] if self.acknowledged.get(task_id, 0) >= since]

        await eventually(lambda: len(fresh()) >= count, f"{count} new tasks have been run", seconds)
        return fresh()[0]

    async def _all_done(self) -> bool:
        stats = await self.worker.get_queue_stats()
        return not stats.pending_count and not stats.processing_count

    def lost(self, name: str = "") -> list[str]:
        """Return tasks whose creation was acknowledged, and that are not there."""
        return [task_id for task_id, task in self.tasks.items() if task is None and task_id.startswith(name)]

    def unfinished(self) -> list[TaskEntity]:
        return [task for task in self.tasks.values() if task is not None and task.status != "completed"]

    def standstill(self) -> float:
        """Return the longest time in which no task was started, in seconds."""
        return max(later - earlier for (earlier, _), (later, _) in itertools.pairwise(self.started))

    def summary(self) -> str:
        ran = {task_id for _, task_id in self.started}
        parts = [f"longest standstill {self.standstill():.1f} s, {sum(self.refused.values())} creates refused"]
        for name in self._producers:
            created = sum(task_id.startswith(name) for task_id in self.acknowledged)
            unrun = [task_id for task_id in self.lost(name) if task_id not in ran]
            parts.append(f"{name}: {len(self.lost(name))} of {created} acknowledged lost, {len(unrun)} never run")
        return "; ".join(parts)


def _config(storage: StorageConfig, biz_prefix: str) -> TaskBackoffConfig:
    config = quick_config(storage)
    config.task.biz_prefix = biz_prefix
    return config


def strays(client: Any, biz_prefix: str = "test") -> list[str]:
    """Return tasks that are not in exactly the index of their state, by the server's own data."""
    keys = Keys(biz_prefix)
    gpu = tuple(keys.ready_for_gpu(name.decode()) for name in client.hkeys(keys("demands")))
    indexes = {**_INDEXES, b"pending": _INDEXES[b"pending"] + gpu}
    found = []
    for key in client.scan_iter(match=keys.task("*"), count=1000):
        task_id = key[len(keys.task("")) :]
        state = client.hget(key, "s") or b"pending"
        everywhere = [name for names in indexes.values() for name in names]
        holding = [name for name in everywhere if client.zscore(keys(name), task_id) is not None]
        if len(holding) != 1 or holding[0] not in indexes[state]:
            found.append(f"{task_id.decode()}: {state.decode()} in {holding}")
    return found
