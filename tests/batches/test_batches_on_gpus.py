"""Batches that need a GPU: one reservation for all tasks of a batch."""

import batches_on_gpus
import pytest

from maas_backoff import InvalidValueError, TaskBackoffConfig, TaskBackoffScheduler, TaskFailedError
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio


def _on_a_gpu(config: TaskBackoffConfig, *, concurrency: int, total_gb: float) -> TaskBackoffScheduler:
    """Return the scheduler of batches in child processes, with one device."""
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = concurrency
    scheduler = batches_on_gpus.scheduler
    scheduler.config = config
    scheduler._probe = FakeGpuProbe([FakeGpu("GPU-0", total_gb=total_gb)])
    return scheduler


@pytest.mark.long
@pytest.mark.blocks
async def test_a_batch_has_one_reservation(config: TaskBackoffConfig) -> None:
    scheduler = _on_a_gpu(config, concurrency=4, total_gb=10)
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


@pytest.mark.long
@pytest.mark.blocks
@pytest.mark.parametrize(
    ("tasks", "total_gb", "expected"),
    [
        (3, 16, [3, 3, 3]),
        (8, 16, [8] * 8),
        (8, 7, [4] * 8),  # there is room for 5; half of 8 is tried first
        (2, 3, [1, 1]),
    ],
)
async def test_a_batch_is_as_large_as_there_is_room(
    config: TaskBackoffConfig, tasks: int, total_gb: float, expected: list[int]
) -> None:
    scheduler = _on_a_gpu(config, concurrency=1, total_gb=total_gb)
    kind = batches_on_gpus.sized
    handles = await kind.create_many([kind.spec(f"{n}") for n in range(tasks)])
    async with scheduler:
        results = [await handle.result(30) for handle in handles]
        assert [size for size, _ in results] == expected
        assert all(memory >= 2 + size for size, memory in results)
    await scheduler.purge_tasks("completed")


@pytest.mark.long
@pytest.mark.blocks
async def test_halves_of_a_failed_batch_wait_for_no_others(config: TaskBackoffConfig) -> None:
    scheduler = _on_a_gpu(config, concurrency=1, total_gb=16)
    kind = batches_on_gpus.patient
    handles = await kind.create_many([kind.spec(text) for text in ("bad", "b", "c", "d")])
    async with scheduler:
        assert [await handle.result(30) for handle in handles[1:]] == [1, 2, 2]
        with pytest.raises(TaskFailedError, match="a bad text"):
            await handles[0].result(30)
    for status in ("completed", "failed"):
        await scheduler.purge_tasks(status)


@pytest.mark.parametrize("wrong", [-1, True, "1", 1e9])
def test_the_memory_of_a_task_is_checked(wrong: object) -> None:
    with pytest.raises(InvalidValueError, match="gpu_memory_per_task_gb: expected GiB from 0 to 100,000"):
        TaskBackoffScheduler(TaskBackoffConfig.from_dict({"task": {"biz_prefix": "test"}})).batch(
            gpu_memory_per_task_gb=wrong  # type: ignore[arg-type] - wrong on purpose
        )
