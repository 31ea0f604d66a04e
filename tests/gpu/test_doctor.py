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
        return [line for line in await examine(store) if re.match(r"gpu \d of|gpus of", line.text)]
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
        wrong, others = await lines(scheduler)
        assert others == Line("ok", "gpus of the workers: 1 of 2 take tasks, 24.0 GiB are free")
        # The fault puts the device into quarantine, a moment later.
        text = wrong.text.replace("quarantine: ", "")
        assert (wrong.kind, text) == ("wrong", f"gpu 1 of {host} ({broken.name}, GPU-b): Xid 79: it has fallen off")
        await scheduler.quarantine_gpu("GPU-a", "fan noise")
        (gpu,) = [gpu for gpu in await scheduler.gpus() if gpu.uuid == "GPU-a"]
        assert gpu.quarantine_age is not None and 0 <= gpu.quarantine_age < 60
        kept_off = (await lines(scheduler))[0]
        assert kept_off.kind == "warning"
        assert re.fullmatch(
            r"gpu 0 of .*: quarantine: by hand: fan noise, since [\d -]{11}[\d:]{8}Z; "
            "to undo it: maas-backoff release GPU-a",
            kept_off.text,
        )
        await scheduler.release_gpu("GPU-a")
        assert len(await lines(scheduler)) == 2


async def test_a_worker_that_was_told_to_claim_nothing_is_named(
    config: TaskBackoffConfig, scheduler: TaskBackoffScheduler
) -> None:
    """At once: before the worker's heartbeat, which shows it. Since when it is quiet does not change."""
    worker = TaskBackoffScheduler(config.copy())

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> None: ...

    async def told() -> str:
        store = QueueStore.of(config)
        try:
            found = [line for line in await examine(store) if "told to claim nothing" in line.text]
        finally:
            await store.aclose()
        assert all(line.kind == "warning" for line in found)
        return "".join(line.text for line in found)

    async with worker:
        (entry,) = await scheduler.workers()
        assert not await told()
        await scheduler.quiet_workers(entry.name)
        first = await told()
        said = (
            rf"worker {entry.name}: told to claim nothing since .*Z; to undo it: maas-backoff quiet {entry.name} --off"
        )
        assert re.fullmatch(said, first)
        await scheduler.quiet_workers(entry.name)
        assert await told() == first
        await scheduler.quiet_workers(entry.name, on=False)
        assert not await told()
