"""A batch that is claimed while another one is about to end: its slot is nearly free."""

import asyncio

import anyio
import pytest
from support import eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskKind, TaskStatus
from maas_backoff.worker import batch_call

pytestmark = pytest.mark.anyio


class Model:
    """Runs one batch after the other for 30 ms; the batch with "slow" runs until `may_end` is set."""

    def __init__(self, config: TaskBackoffConfig) -> None:
        config.threadpool.concurrency = 1
        self.scheduler = TaskBackoffScheduler(config)
        self.may_end = asyncio.Event()
        self.running = 0

        @self.scheduler.batch(max_size=2, max_wait=0)
        async def embed(texts: list[str]) -> list[int]:
            self.running += 1
            assert self.running == 1
            try:
                await asyncio.sleep(0.03)
                if "slow" in texts:
                    await self.may_end.wait()
            finally:
                self.running -= 1
            return [len(texts)] * len(texts)

        self.kind: TaskKind[[str], int] = embed

    async def learn(self) -> None:
        for handle in await self.kind.create_many([self.kind.spec("a") for _ in range(8)]):
            assert await handle.result(30) == 2

    async def eventually_is(self, task_id: str, status: TaskStatus) -> None:
        async def holds() -> bool:
            task = await self.scheduler.get_task(task_id)
            return task is not None and task.status is status

        await eventually(holds, f"{task_id} is {status}")


async def test_a_batch_that_waits_too_long_for_its_slot_goes_back(config: TaskBackoffConfig) -> None:
    model = Model(config)
    async with model.scheduler:
        await model.learn()
        handles = await model.kind.create_many([model.kind.spec(text) for text in ("slow", "slow", "b", "b")])
        last = handles[3]
        await model.eventually_is(last.task_id, TaskStatus.PROCESSING)
        await model.eventually_is(last.task_id, TaskStatus.PENDING)
        await anyio.sleep(0.1)
        assert (await last.task()).attempt == 1  # nobody claims it again until a slot is free
        model.may_end.set()
        for handle in handles:
            assert await handle.result(30) == 2
        task = await last.task()
        assert (task.attempt, task.retry_count, task.lost_count, task.error) == (2, 0, 0, None)


async def test_a_worker_that_drains_gives_back_a_batch_that_waits(
    config: TaskBackoffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_call, "LONGEST_HOLD", 60)
    model = Model(config)
    async with model.scheduler:
        await model.learn()
        handles = await model.kind.create_many([model.kind.spec(text) for text in ("slow", "slow", "b", "b")])
        await model.eventually_is(handles[3].task_id, TaskStatus.PROCESSING)
        async with asyncio.TaskGroup() as group:
            group.create_task(model.scheduler.shutdown())
            await model.eventually_is(handles[3].task_id, TaskStatus.PENDING)
            model.may_end.set()
        assert await handles[0].result(30) == 2
        task = await handles[3].task()
        assert (task.status, task.retry_count, task.lost_count) == (TaskStatus.PENDING, 0, 0)


async def test_all_tasks_of_a_batch_that_waits_are_cancelled(
    config: TaskBackoffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_call, "LONGEST_HOLD", 60)
    model = Model(config)
    async with model.scheduler:
        await model.learn()
        handles = await model.kind.create_many([model.kind.spec(text) for text in ("slow", "slow", "b", "b", "c")])
        await model.eventually_is(handles[3].task_id, TaskStatus.PROCESSING)
        for handle in handles[2:4]:
            await model.scheduler.cancel_task(handle.task_id, running=True)
        for handle in handles[2:4]:
            await model.eventually_is(handle.task_id, TaskStatus.CANCELLED)
        model.may_end.set()
        assert [await handles[n].result(30) for n in (0, 1, 4)] == [2, 2, 1]


@pytest.mark.long
async def test_a_quiet_worker_claims_no_batch(config: TaskBackoffConfig) -> None:
    config.scheduler.worker_name = "box"
    model = Model(config)
    async with model.scheduler as scheduler:
        await model.learn()
        assert len(await scheduler.quiet_workers("box")) == 1

        async def is_quiet() -> bool:
            return all(worker.quiet for worker in await scheduler.workers())

        await eventually(is_quiet, "it says so")
        handle = await model.kind.create("a")
        await anyio.sleep(1.5)  # longer than `interval`
        assert await handle.status() is TaskStatus.PENDING
        await scheduler.quiet_workers("box", on=False)
        assert await handle.result(30) == 1
