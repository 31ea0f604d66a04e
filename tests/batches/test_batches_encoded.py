"""The results of a batch become JSON in its child process: the slot is free for the next batch meanwhile."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import batches_for_children
import pytest
from slow_values import let_go
from support import eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskFailedError, TaskHandle, TaskStatus

pytestmark = pytest.mark.anyio

Handles = list[TaskHandle[object]]


@asynccontextmanager
async def two_batches(config: TaskBackoffConfig, folder: Path) -> AsyncIterator[tuple[Handles, Handles]]:
    """Run a worker with one slot until the results of a batch are being encoded, and the next batch is claimed."""
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 1
    scheduler, kind = batches_for_children.scheduler, batches_for_children.slow_to_encode
    scheduler.config = config
    async with scheduler:
        first = [await kind.create(str(folder))]
        await eventually((folder / "began").exists, "the results are being encoded")
        second = await kind.create_many([kind.spec(""), kind.spec("")])

        async def is_claimed() -> bool:
            return await second[1].status() is TaskStatus.PROCESSING

        await eventually(is_claimed, "the next batch is claimed")
        yield first, second


async def test_the_next_batch_is_claimed_while_results_are_encoded(config: TaskBackoffConfig, tmp_path: Path) -> None:
    async with two_batches(config, tmp_path) as (first, second):
        third = await batches_for_children.slow_to_encode.create("")
        await anyio.sleep(0.1)
        assert await third.status() is TaskStatus.PENDING  # one batch in the slot, and one whose handler has ended
        let_go(tmp_path)
        results = [await handle.result(30) for handle in (*first, *second, third)]
        assert len({str(one) for one in results}) == 1
        assert [(await handle.task()).attempt for handle in (*first, *second, third)] == [1] * 4


@pytest.mark.long
async def test_a_timeout_while_results_are_encoded_costs_the_next_batch_nothing(
    config: TaskBackoffConfig, tmp_path: Path
) -> None:
    config.threadpool.exec_timeout = 1
    async with two_batches(config, tmp_path) as (first, second):
        with pytest.raises(TaskFailedError, match="timeout"):
            await first[0].result(30)
        for handle in second:
            await handle.result(30)
            task = await handle.task()
            assert (task.attempt, task.retry_count, task.lost_count) == (1, 0, 0)


@pytest.mark.long
async def test_a_worker_that_drains_ends_both(config: TaskBackoffConfig, tmp_path: Path) -> None:
    async with two_batches(config, tmp_path) as (first, second), anyio.create_task_group() as group:
        scheduler, reader = batches_for_children.scheduler, TaskBackoffScheduler(config)
        group.start_soon(scheduler.shutdown)
        await eventually(lambda: "shutting down" in scheduler.health().reasons, "the worker drains")
        let_go(tmp_path)
        for handle in (*first, *second):
            task = await reader.wait_task(handle.task_id, 30)
            assert (task.status, task.attempt) == (TaskStatus.COMPLETED, 1)
        await reader.disconnect()
