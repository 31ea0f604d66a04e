"""Batches that need a GPU: one reservation for all tasks of a batch."""

import batches_on_gpus
import pytest

from maas_backoff import TaskBackoffConfig
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio


@pytest.mark.blocks
async def test_a_batch_has_one_reservation(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 4
    scheduler = batches_on_gpus.scheduler
    scheduler.config = config
    scheduler._probe = FakeGpuProbe([FakeGpu("GPU-0", total_gb=10)])
    kind = batches_on_gpus.embed
    handles = await kind.create_many([kind.spec(f"{n}") for n in range(20)])
    async with scheduler:
        results = [await handle.result(30) for handle in handles]
        assert sorted(size for size, _, _ in results) == [4] * 4 + [8] * 16
        # There is room for one child only.
        assert {uuid for _, uuid, _ in results} == {"GPU-0"} and len({pid for _, _, pid in results}) == 1
        large = await kind.create_many([kind.spec("large") for _ in range(8)])
        for handle in large:
            assert (await handle.result(30))[0] <= 3
            task = await handle.task()
            assert (task.oom_count, task.retry_count) == (0, 0)
