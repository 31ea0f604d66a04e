"""The doctor looks at the GPUs of all workers of a queue, wherever it runs."""

import re

import pytest
from support import eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.commands.doctor import Line, examine
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio


async def lines(scheduler: TaskBackoffScheduler) -> list[Line]:
    store = QueueStore.of(scheduler.config)
    try:
        return [line for line in await examine(scheduler, store) if re.match(r"gpu \d of|gpus of", line.text)]
    finally:
        await store.aclose()


async def test_a_broken_gpu_of_a_worker_is_named(config: TaskBackoffConfig, scheduler: TaskBackoffScheduler) -> None:
    well, broken = FakeGpu("GPU-a", total_gb=24), FakeGpu("GPU-b", total_gb=24, trouble="Xid 79: it has fallen off")
    worker = TaskBackoffScheduler(config.copy(), gpu_probe=FakeGpuProbe([well, broken]))

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> None: ...

    assert not await lines(scheduler)
    async with worker:

        async def told() -> object:
            return await scheduler.gpus()

        await eventually(told, "the worker has told of its GPUs")
        host = (await scheduler.workers())[0].host
        assert await lines(scheduler) == [
            Line("wrong", f"gpu 1 of {host} ({broken.name}, GPU-b): Xid 79: it has fallen off"),
            Line("ok", "gpus of the workers: 1 of 2 take tasks, 24.0 GiB are free"),
        ]
