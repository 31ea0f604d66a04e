"""The tools that users test with: a day of retries and delays in moments, on the real worker and the real scripts."""

import itertools
import time
from datetime import timedelta
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from maas_backoff import (
    Discard,
    HandlerError,
    InvalidValueError,
    RateLimited,
    Retry,
    Snooze,
    TaskBackoffConfig,
    TaskConfig,
    TaskEntity,
    TaskSpec,
    TaskStatus,
)
from maas_backoff.testing import FakeGpu, SimulatedScheduler

pytestmark = [pytest.mark.anyio, pytest.mark.blocks]


async def test_a_day_of_retries_takes_a_moment() -> None:
    """Each attempt at the time that the policy says, to the millisecond or two."""
    config = TaskBackoffConfig(task=TaskConfig(max_retry_count=12, backoff_interval=30, max_backoff_interval=7200))
    scheduler = SimulatedScheduler(config)
    at: list[float] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        at.append((scheduler.now - task.created_at).total_seconds())
        raise ConnectionError

    begun = time.perf_counter()
    async with scheduler:
        await scheduler.create_task({}, "x")
        await scheduler.advance(timedelta(days=1))
        task = await scheduler.get_task("x")
    print(f"a day of 12 retries took {time.perf_counter() - begun:.2f} s")
    assert task is not None and (task.status, task.retry_count) == (TaskStatus.FAILED, 12)
    delays = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert delays == pytest.approx(config.task.backoff.preview(12), abs=0.02)


async def test_time_passes_only_when_the_test_says_so() -> None:
    scheduler = SimulatedScheduler()
    seen: list[str] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        seen.append(task.task_id)
        if task.task_id == "snoozes" and task.snooze_count < 3:
            raise Snooze(after=3600)
        if task.task_id == "retries" and task.retry_count == 0:
            raise Retry(after=90)

    async with scheduler:
        specs = [TaskSpec({}, "later", delay=60), TaskSpec({}, "snoozes"), TaskSpec({}, "retries")]
        await scheduler.create_tasks([*specs, *(TaskSpec({}, f"t{n}") for n in range(50))])
        await scheduler.drain()
        assert sorted(seen) == sorted(["snoozes", "retries", *(f"t{n}" for n in range(50))])
        seen.clear()
        await scheduler.advance(59)
        assert seen == []
        await scheduler.advance(2)
        assert seen == ["later"]
        await scheduler.advance(30)
        assert seen == ["later", "retries"]
        await scheduler.advance(timedelta(hours=4))
        assert seen == ["later", "retries", "snoozes", "snoozes", "snoozes"]
        stats = await scheduler.get_queue_stats()
        assert (stats.completed_count, stats.pending_count) == (53, 0)


@pytest.mark.parametrize("by", [-5, timedelta(seconds=-1), "1h", None, True, float("inf"), float("nan")])
async def test_the_clock_goes_forward_by_seconds(by: Any) -> None:
    async with SimulatedScheduler() as scheduler:
        before = scheduler.now
        with pytest.raises(InvalidValueError, match="by: expected seconds from 0 to ten years, or a timedelta, got "):
            await scheduler.advance(by)
        assert scheduler.now == before


async def test_no_task_runs_before_the_start() -> None:
    """Without the error, `drain` would return at once, and the task would stay pending."""
    scheduler = SimulatedScheduler()

    @scheduler.set_custom_task_handler
    async def handle(_: TaskEntity) -> None: ...

    with pytest.raises(HandlerError, match="drain: the scheduler is not started, so no task would run; call start"):
        await scheduler.drain()
    with pytest.raises(HandlerError, match="advance: the scheduler is not started"):
        await scheduler.advance(1)
    async with scheduler:
        await scheduler.drain()
    with pytest.raises(HandlerError, match="drain: "):
        await scheduler.drain()


async def test_finished_tasks_expire_in_simulated_time() -> None:
    scheduler = SimulatedScheduler(TaskBackoffConfig(task=TaskConfig(result_ttl=3600)))
    scheduler.set_custom_task_handler(_nothing)
    async with scheduler:
        await scheduler.create_task({})
        await scheduler.drain()
        assert (await scheduler.get_queue_stats()).completed_count == 1
        await scheduler.advance(3601)
        assert (await scheduler.get_queue_stats()).completed_count == 0


async def test_what_cannot_start_is_left_waiting() -> None:
    """For room on a GPU, or in a paused queue; and goes on when it can."""
    gpu = FakeGpu("GPU-a", total_gb=8, other_processes_gb=6)
    scheduler = SimulatedScheduler(gpus=[gpu])
    scheduler.set_custom_task_handler(_nothing)
    async with scheduler:
        await scheduler.create_task({}, "large", min_gpu_memory_gb=4)
        await scheduler.drain()
        assert await _status(scheduler, "large") == "pending"
        gpu.other_processes_gb = 0
        await scheduler.drain()
        assert await _status(scheduler, "large") == "completed"
        await scheduler.pause()
        await scheduler.create_task({}, "paused")
        await scheduler.advance(60)
        assert await _status(scheduler, "paused") == "pending"
        await scheduler.resume()
        await scheduler.drain()
        assert await _status(scheduler, "paused") == "completed"


async def test_tasks_of_a_paused_kind_are_left_waiting() -> None:
    gpu = FakeGpu("GPU-a", total_gb=8)
    scheduler = SimulatedScheduler(gpus=[gpu])

    @scheduler.task
    async def render() -> str:
        return "done"

    @scheduler.task
    async def other() -> str:
        return "done"

    async with scheduler:
        await scheduler.pause(kind="render")
        waiting = [
            await kind.create() for kind in (render, render.options(delay=5), render.options(min_gpu_memory_gb=1))
        ]
        others = [await kind.create() for kind in (other, other.options(delay=20), other.options(min_gpu_memory_gb=1))]
        await scheduler.advance(60)
        assert [await one.status() for one in waiting] == ["pending"] * 3
        assert [await one.status() for one in others] == ["completed"] * 3
        await scheduler.resume(kind="render")
        await scheduler.drain()
        assert [await one.status() for one in waiting] == ["completed"] * 3


async def test_tasks_of_a_paused_tenant_are_left_waiting() -> None:
    """Those that are due, delayed, of a kind, or for a GPU."""
    scheduler = SimulatedScheduler(gpus=[FakeGpu("GPU-a", total_gb=8)])
    scheduler.set_custom_task_handler(_nothing)

    @scheduler.task
    async def render() -> None: ...

    async with scheduler:
        await scheduler.pause(tenant="acme")
        for tenant in ("acme", "bolt"):
            for options in ({}, {"delay": 5}, {"min_gpu_memory_gb": 1}, {"limits": {"openai": 1}}):
                await scheduler.create_task({}, f"{tenant}-{'-'.join(options)}", tenant=tenant, **options)
            await render.options(task_id=f"{tenant}-kind", tenant=tenant).create()
        await scheduler.advance(60)
        for status, tenant in (("pending", "acme"), ("completed", "bolt")):
            tasks = (await scheduler.list_tasks(status)).tasks
            assert len(tasks) == 5 and {task.tenant for task in tasks} == {tenant}
        await scheduler.pause(kind="render")
        await scheduler.drain()
        await scheduler.resume(tenant="acme")
        await scheduler.drain()
        assert [task.task_id for task in (await scheduler.list_tasks("pending")).tasks] == ["acme-kind"]
        await scheduler.resume(kind="render")
        await scheduler.drain()
        assert (await scheduler.get_queue_stats()).completed_count == 10


async def test_a_rate_opens_as_the_clock_moves() -> None:
    """Each task starts when there is room for it, to the millisecond or two."""
    scheduler = SimulatedScheduler()
    at: list[float] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        at.append((scheduler.now - task.created_at).total_seconds())

    async with scheduler:
        await scheduler.set_limit("openai", rate=(60, "1m"))
        await scheduler.create_tasks([TaskSpec({}, f"t{n}", limits={"openai": 1}) for n in range(6)])
        await scheduler.drain()
        assert len(at) == 1
        await scheduler.advance(2.5)
        assert len(at) == 3
        await scheduler.advance(timedelta(hours=1))
        assert at == pytest.approx(range(6), abs=0.05)
        task = await scheduler.get_task("t5")
        assert task is not None and task.status == "completed"


async def test_units_open_as_the_clock_moves() -> None:
    scheduler = SimulatedScheduler()
    scheduler.set_custom_task_handler(_nothing)
    async with scheduler:
        await scheduler.set_limit("openai", tokens=(1000, "1h"))
        await scheduler.create_tasks([TaskSpec({}, f"t{n}", limits={"openai": 500}) for n in range(4)])
        await scheduler.drain()
        assert (await scheduler.get_queue_stats()).completed_count == 1
        await scheduler.advance(timedelta(minutes=59))
        assert (await scheduler.get_queue_stats()).completed_count == 2
        await scheduler.advance(timedelta(hours=1))
        assert (await scheduler.get_queue_stats()).completed_count == 4


async def test_a_concurrency_lets_one_after_the_other_run() -> None:
    scheduler = SimulatedScheduler()
    running: list[int] = [0]

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        running.append(running[-1] + 1)
        await anyio.sleep(0.01)
        running.append(running[-1] - 1)

    async with scheduler:
        await scheduler.set_limit("user:*", concurrency=2)
        await scheduler.create_tasks([TaskSpec({}, tenant=f"t{n % 3}", limits={"user:a": 1}) for n in range(9)])
        await scheduler.drain()
        assert (await scheduler.get_queue_stats()).completed_count == 9 and max(running) == 2


async def test_many_shut_limits_keep_no_test_waiting() -> None:
    scheduler = SimulatedScheduler()
    scheduler.set_custom_task_handler(_nothing)
    async with scheduler:
        await scheduler.set_limit("user:*", rate=(1, "1h"))
        await scheduler.create_tasks([TaskSpec({}, limits={f"user:{n % 150}": 1}) for n in range(300)])
        await scheduler.drain()
        assert (await scheduler.get_queue_stats()).completed_count == 150
        await scheduler.advance(3700)
        assert (await scheduler.get_queue_stats()).completed_count == 300


async def test_a_closed_limit_opens_as_the_clock_moves() -> None:
    """And not before; a limit that opens for a paused tenant keeps no test waiting."""
    scheduler = SimulatedScheduler()
    runs: list[str] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        runs.append(task.task_id)
        if task.attempt == 1 and task.task_id == "first":
            raise RateLimited(after=600)

    async with scheduler:
        await scheduler.create_task({}, "first", limits={"openai": 1})
        await scheduler.drain()
        await scheduler.create_task({}, "second", limits={"openai": 1})
        await scheduler.create_task({}, "third", tenant="acme", limits={"openai": 1})
        await scheduler.pause(tenant="acme")
        await scheduler.advance(590)
        assert runs == ["first"]
        await scheduler.advance(80)
        assert sorted(runs[1:]) == ["first", "second"]
        await scheduler.advance(timedelta(days=1))
        await scheduler.resume(tenant="acme")
        await scheduler.drain()
        assert runs[3:] == ["third"]


async def test_threads_and_producers_are_simulated_as_well() -> None:
    scheduler = SimulatedScheduler()
    scheduler.set_custom_task_handler(lambda task: task.attempt)
    async with scheduler:
        await scheduler.create_tasks([{}] * 30)
        await scheduler.drain()
        assert (await scheduler.get_queue_stats()).completed_count == 30
    async with SimulatedScheduler() as producer:
        await producer.create_task({}, "x", delay=60)
        await producer.advance(61)
        task = await producer.get_task("x")
        assert task is not None and task.waiting_for == "worker: none is running"


async def test_finished_tasks_expire_by_the_clock_of_the_test() -> None:
    """Each state after its own time; one that is made anew under the same id lives on."""
    config = TaskBackoffConfig(task=TaskConfig(result_ttl=timedelta(days=1), failed_ttl=timedelta(days=7)))
    scheduler = SimulatedScheduler(config)

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        await anyio.lowlevel.checkpoint()
        if task.task_id == "failed":
            raise Discard

    async with scheduler:
        for name in ("completed", "failed", "cancelled"):
            await scheduler.create_task({}, name, delay=60 if name == "cancelled" else 0)
        await scheduler.cancel_task("cancelled")
        await scheduler.drain()
        await scheduler.advance(timedelta(hours=23))
        stats = await scheduler.get_queue_stats()
        assert (stats.completed_count, stats.failed_count, stats.cancelled_count) == (1, 1, 1)
        await scheduler.advance(timedelta(hours=2))
        assert [await scheduler.get_task(name) for name in ("completed", "cancelled")] == [None, None]
        assert await _status(scheduler, "failed") == "failed"
        await scheduler.create_task({"made": "anew"}, "completed")
        await scheduler.drain()
        assert await _status(scheduler, "completed") == "completed"
        assert await scheduler.retry_task("failed")
        await scheduler.advance(timedelta(days=6))
        assert await _status(scheduler, "failed") == "failed"
        await scheduler.advance(timedelta(days=2))
        stats = await scheduler.get_queue_stats()
        assert (stats.completed_count, stats.failed_count, stats.cancelled_count) == (0, 0, 0)
        assert await scheduler.get_task("failed") is None


async def _nothing(task: TaskEntity) -> None:
    await anyio.lowlevel.checkpoint()


async def _status(scheduler: SimulatedScheduler, task_id: str) -> str:
    task = await scheduler.get_task(task_id)
    assert task is not None
    return task.status
