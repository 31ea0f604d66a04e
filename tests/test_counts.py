"""Counts of a queue: tasks that were created, the age of the oldest one, and sums of durations."""

import anyio
import pytest
from support import eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskSpec
from maas_backoff.domain.tally import Tally
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio


def failing(config: TaskBackoffConfig, *gpus: FakeGpu) -> TaskBackoffScheduler:
    scheduler = TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe(gpus))

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        if task.task_params.get("way") == "fails":
            raise ValueError
        await anyio.sleep(task.task_params.get("seconds", 0))

    return scheduler


async def test_each_task_counts_as_created_once(config: TaskBackoffConfig) -> None:
    """Also after retries by hand, marks, cancels, deletes and purges."""
    worker = failing(config)

    async def created() -> int:
        return (await worker.get_queue_stats()).created_count

    async with worker:
        assert await created() == 0
        ids = await worker.create_tasks([TaskSpec({"way": "fails"}, f"f{n}", max_retry_count=0) for n in range(3)])
        ids += await worker.create_tasks([{}] * 2)
        for task_id in ids:
            await worker.wait_task(task_id, 20)
        assert await created() == 5
        await worker.create_task({"way": "fails"}, "f0", max_retry_count=0)
        assert await created() == 5, "the id existed"
        await worker.retry_task("f0")
        await worker.wait_task("f0", 20)
        await worker.mark_task_completed("f1")
        await worker.retry_tasks()
        await worker.wait_task("f2", 20)
        assert await created() == 5
        await worker.create_tasks([TaskSpec({}, f"later{n}", delay=60) for n in range(5)])
        await worker.create_task({}, "later", delay=60, tenant="acme")
        await worker.mark_task_processing("later4")
        assert await worker.delete_task("later4")
        assert await worker.delete_task("later0")
        assert await worker.delete_task("f2")
        await worker.cancel_task("later1")
        assert await created() == 11
        assert await worker.purge_tasks("pending") == 3
        await worker.purge_tasks("completed")
        await worker.purge_tasks("cancelled")
        assert await created() == 11


async def test_a_retry_of_a_task_whose_deadline_has_just_passed_counts_nothing(config: TaskBackoffConfig) -> None:
    producer = TaskBackoffScheduler(config)
    await producer.create_task({}, "late", start_within=0.05)
    await producer.wait_task("late", 20)
    assert await producer.retry_task("late")
    assert (await producer.get_queue_stats()).created_count == 1
    await producer.shutdown()


async def test_tasks_that_can_never_start_have_no_age(config: TaskBackoffConfig) -> None:
    """Unless no live worker has a GPU: then nothing is known about sizes."""
    producer = TaskBackoffScheduler(config.copy())
    await producer.create_tasks(
        [TaskSpec({}, "unfit", min_gpu_memory_gb=141), TaskSpec({}, tenant="acme", min_gpu_memory_gb=141)]
    )

    async def age() -> float:
        return (await producer.get_queue_stats()).oldest_pending_age

    await eventually(age, "without a GPU, every task counts")
    async with failing(config, FakeGpu("GPU-a", total_gb=24)):

        async def without() -> bool:
            return await age() == 0

        await eventually(without, "the worker has told of its GPU")
        assert (await producer.get_queue_stats()).unfit_count == 2
        await producer.pause()
        await producer.create_task({}, min_gpu_memory_gb=8)
        await eventually(age, "a task that fits counts")
        stats = await producer.get_queue_stats()
        assert (stats.gpu_count, stats.unfit_count, stats.gpu_room_count) == (3, 2, 1)
    await producer.shutdown()


async def test_a_worker_tells_the_age_of_its_oldest_attempt(config: TaskBackoffConfig) -> None:
    config.scheduler.lease = 3
    async with failing(config) as worker:
        await worker.create_task({"seconds": 600}, "long")

        async def told() -> bool:
            return (await worker.workers())[0].oldest > 1

        await eventually(told, "a heartbeat has told of the attempt")
        await worker.cancel_task("long", running=True)

        async def idle() -> bool:
            one = (await worker.workers())[0]
            return one.running == 0 and one.oldest == 0

        await eventually(idle, "no attempt is left")


async def test_durations_add_up(config: TaskBackoffConfig) -> None:
    async with failing(config) as worker:
        for _ in range(2):
            await worker.wait_task(await worker.create_task({"seconds": 0.2}), 20)
    producer = TaskBackoffScheduler(config)
    runs = (await producer.get_history(2)).recent.runs
    await producer.shutdown()
    assert runs.count == 2 and 0.2 <= runs.total < 30


def test_sums_are_sent_once_a_second() -> None:
    tally = Tally()
    tally.count_wait(3)
    assert set(tally.take(10).splitlines()) == {"w2 1", "wsum 3000"}
    tally.count_wait(4)
    tally.count_run(2)
    taken = tally.take(10.5)
    assert set(taken.splitlines()) == {"w3 1", "r11 1", "rsum 2000000"}
    tally.count_wait(1)
    taken = tally.take(10.6, is_last=True)
    assert set(taken.splitlines()) == {"w1 1", "wsum 5000"}
    tally.put_back(taken)
    assert set(tally.take(11.7).splitlines()) == set(taken.splitlines())
