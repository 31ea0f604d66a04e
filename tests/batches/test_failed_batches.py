"""Batches that fail as a whole, are stopped, or lose their worker."""

import threading
import time
from collections import Counter
from pathlib import Path

import anyio
import batches_for_children
import pytest
from support import eventually

from maas_backoff import (
    RateLimited,
    ResultEntity,
    Retry,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskFailedError,
    TaskStatus,
)
from maas_backoff.kinds.handle import TaskHandle

pytestmark = pytest.mark.anyio


async def _check_innocent(handles: list[TaskHandle[int]], most_attempts: int) -> None:
    for handle in handles:
        await handle.result(60)
        task = await handle.task()
        assert (task.retry_count, task.error, task.attempts, task.oom_count, task.lost_count) == (0, None, (), 0, 0)
        assert task.attempt <= most_attempts


@pytest.mark.parametrize(
    ("poison", "error"),
    [("raise", "ValueError"), ("memory", "MemoryError"), pytest.param("exit", "crashed", marks=pytest.mark.long)],
)
async def test_one_bad_task_is_found_in_halves(config: TaskBackoffConfig, poison: str, error: str) -> None:
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 1
    scheduler, kind = batches_for_children.scheduler, batches_for_children.poisoned
    scheduler.config = config
    handles = await kind.create_many([kind.spec(poison if n == 17 else f"{n}") for n in range(32)])
    async with scheduler:
        with pytest.raises(TaskFailedError, match=error):
            await handles[17].result(60)
        await _check_innocent(handles[:17] + handles[18:], most_attempts=6)
        bad = await handles[17].task()
        assert (bad.attempt, bad.retry_count, len(bad.attempts)) == (6, 0, 1)
    await scheduler.purge_tasks(TaskStatus.COMPLETED)
    await scheduler.purge_tasks(TaskStatus.FAILED)


async def test_half_of_the_tasks_are_bad(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[int]] = []

    @scheduler.batch(max_size=16, max_wait=0.02, max_retry_count=1, backoff_interval=0.01)
    async def embed(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        if any(number % 2 for number in numbers):
            raise ValueError("odd")
        return [len(numbers)] * len(numbers)

    handles = await embed.create_many([embed.spec(n) for n in range(16)])
    async with scheduler:
        await _check_innocent(handles[::2], most_attempts=5)
        for bad in handles[1::2]:
            with pytest.raises(TaskFailedError, match="odd"):
                await bad.result(30)
            assert (await bad.task()).retry_count == 1
    # A task that has failed alone runs alone from then on.
    assert Counter(number for call in calls if len(call) == 1 for number in call if number % 2) == dict.fromkeys(
        range(1, 16, 2), 2
    )


async def test_a_bad_task_that_is_retried_fails_no_other_batch(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[str]] = []

    @scheduler.batch(max_size=4, max_wait=0.02, max_retry_count=3, backoff_interval=0.05)
    async def embed(tasks: list[TaskEntity], texts: list[str]) -> list[str]:
        calls.append(texts)
        if any(task.retry_count < 2 for task, text in zip(tasks, texts, strict=True) if text == "bad"):
            raise ConnectionError("not now")
        return texts

    bad = await embed.create("bad")
    async with scheduler:
        others = await embed.create_many([embed.spec(f"{n}") for n in range(12)])
        assert await bad.result(30) == "bad"
        for other in others:
            await other.result(30)
            assert (await other.task()).retry_count == 0
    assert sum("bad" in call and len(call) > 1 for call in calls) <= 2


async def test_halves_of_several_batches_run_at_once(scheduler: TaskBackoffScheduler) -> None:
    """Their batches have ended no worker: each may have a slot."""
    running, all_run = set[str](), anyio.Event()

    @scheduler.batch(max_size=4, max_wait=0.02)
    async def embed(texts: list[str]) -> list[str]:
        if len(texts) == 4:
            raise ConnectionError("too many at once")
        running.update(texts)
        if len(running) == 8:
            all_run.set()
        await all_run.wait()
        return texts

    handles = await embed.create_many([embed.spec(f"{n}") for n in range(8)])
    async with scheduler:
        with anyio.fail_after(30):
            await all_run.wait()
        await _check_innocent(handles, most_attempts=2)


async def test_a_half_that_waits_says_that_its_batch_has_failed(config: TaskBackoffConfig) -> None:
    config.threadpool.concurrency = 1
    scheduler = TaskBackoffScheduler(config)
    runs, go_on, running = anyio.Event(), anyio.Event(), list[str]()

    @scheduler.batch(max_size=4, max_wait=0.02)
    async def embed(texts: list[str]) -> list[str]:
        if len(texts) == 4:
            raise ConnectionError("too many at once")
        running.extend(texts)
        runs.set()
        await go_on.wait()
        return texts

    handles = await embed.create_many([embed.spec(f"{n}") for n in range(4)])
    async with scheduler:
        await runs.wait()
        (waiting, _) = [handle for n, handle in enumerate(handles) if f"{n}" not in running]
        why = "suspect: its batch failed; it comes back in a half of it, with 1 other task"
        assert (await waiting.task()).waiting_for == why
        assert "2 tasks come back in halves, of a failed batch" in await scheduler.explain()
        go_on.set()
        await _check_innocent(handles, most_attempts=2)
    await scheduler.shutdown()


async def test_one_of_the_tasks_of_an_outage_is_blamed(scheduler: TaskBackoffScheduler) -> None:
    """All have failed alone, and none has succeeded in between: the others come back in company."""
    alone, good = list[str](), list[int]()

    @scheduler.batch(max_size=4, max_wait=1, max_retry_count=1, backoff_interval=0.1)
    async def embed(texts: list[str]) -> list[str]:
        if len(alone) < 8:
            alone.extend(texts if len(texts) == 1 else [])
            raise ConnectionError("upstream is away")
        good.append(len(texts))
        return texts

    handles = await embed.create_many([embed.spec(f"{n}") for n in range(8)])
    async with scheduler:
        for handle in handles:
            await handle.result(30)
            assert (await handle.task()).retry_count == 1
    assert sorted(good) == [1, 3, 4]


async def test_a_signal_that_is_raised_is_meant_for_all(scheduler: TaskBackoffScheduler) -> None:
    calls: list[int] = []

    @scheduler.batch(max_size=4, max_wait=0.02, max_retry_count=1)
    async def embed(texts: list[str]) -> list[int]:
        calls.append(len(texts))
        if len(calls) == 1:
            raise Retry(0.01)
        if len(calls) == 2:
            raise RateLimited(0.01)
        return [len(texts)] * len(texts)

    handles = await embed.create_many([embed.spec(f"{n}") for n in range(4)])
    async with scheduler:
        for handle in handles:
            await handle.result(30)
            task = await handle.task()
            assert (task.retry_count, task.snooze_count) == (1, 1)


async def test_a_timeout_comes_back_in_halves(config: TaskBackoffConfig) -> None:
    config.threadpool.exec_timeout = 0.3
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=4, max_wait=0.02, max_retry_count=0)
    async def embed(texts: list[str]) -> list[int]:
        if "hang" in texts:
            await anyio.sleep(30)
        return [len(texts)] * len(texts)

    handles = await embed.create_many([embed.spec(text) for text in ("a", "b", "hang", "d")])
    async with scheduler:
        with pytest.raises(TaskFailedError, match="timeout"):
            await handles[2].result(30)
        await _check_innocent([handles[0], handles[1], handles[3]], most_attempts=3)
    await scheduler.shutdown()


@pytest.mark.long
async def test_a_timeout_kills_the_child(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 2
    config.threadpool.exec_timeout = 1
    scheduler, kind = batches_for_children.scheduler, batches_for_children.poisoned
    scheduler.config = config
    handles = await kind.create_many([kind.spec(text) for text in ("a", "hang", "c")])
    async with scheduler:
        with pytest.raises(TaskFailedError, match="timeout"):
            await handles[1].result(30)
        await _check_innocent([handles[0], handles[2]], most_attempts=3)


async def test_a_cancel_of_one_leaves_the_others(scheduler: TaskBackoffScheduler) -> None:
    began, go_on, ended = anyio.Event(), anyio.Event(), list[str]()

    @scheduler.batch(max_size=3, max_wait=0.02)
    async def embed(texts: list[str]) -> list[str]:
        began.set()
        try:
            await go_on.wait()
        finally:
            ended.append("end")
        return texts

    handles = await embed.create_many([embed.spec(text) for text in "abc"])
    async with scheduler:
        await began.wait()
        await handles[1].cancel(running=True)
        await eventually(lambda: _is(handles[1], TaskStatus.CANCELLED), "one is cancelled")
        assert not ended and await handles[0].status() is TaskStatus.PROCESSING
        go_on.set()
        assert [await handles[0].result(30), await handles[2].result(30)] == ["a", "c"]
        assert await handles[1].status() is TaskStatus.CANCELLED


@pytest.mark.long
async def test_a_cancel_of_all_stops_the_call(config: TaskBackoffConfig, tmp_path: Path) -> None:
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 1
    scheduler, kind = batches_for_children.scheduler, batches_for_children.slow
    scheduler.config = config
    paths = [tmp_path / "a", tmp_path / "b"]
    handles = await kind.create_many([kind.spec(str(path)) for path in paths])
    async with scheduler:
        await eventually(paths[1].exists, "the handler has begun")
        pid = int(paths[0].read_text())
        for handle in handles:
            await handle.cancel(running=True)
        for handle in handles:
            await eventually(lambda handle=handle: _is(handle, TaskStatus.CANCELLED), "all are cancelled")
        await eventually(lambda: not Path(f"/proc/{pid}").exists(), "the child is gone")
        # The slot is free again.
        again = await batches_for_children.coroutine.create("a")
        assert (await again.result(30))[2] == "A"


async def test_a_drain_hands_all_back(config: TaskBackoffConfig) -> None:
    config.scheduler.shutdown_grace = 0.1
    scheduler = TaskBackoffScheduler(config)
    began = anyio.Event()

    @scheduler.batch(max_size=3, max_wait=0.02)
    async def embed(texts: list[str]) -> list[str]:
        began.set()
        await anyio.sleep(60)
        return texts

    handles = await embed.create_many([embed.spec(text) for text in "abc"])
    async with scheduler:
        await began.wait()
    for handle in handles:
        task = await handle.task()
        assert (task.status, task.retry_count, task.attempt) == (TaskStatus.PENDING, 0, 1)
    await scheduler.shutdown()


async def test_a_drain_waits_for_the_batch(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    began = anyio.Event()

    @scheduler.batch(max_size=3, max_wait=0.02)
    def embed(texts: list[str]) -> list[str]:
        anyio.from_thread.run_sync(began.set)
        time.sleep(0.2)
        return texts

    handles = await embed.create_many([embed.spec(text) for text in "abc"])
    async with scheduler:
        await began.wait()
    assert [await handle.result(1) for handle in handles] == list("abc")
    await scheduler.shutdown()


async def _is(handle: TaskHandle[str], status: TaskStatus) -> bool:
    return await handle.status() is status


async def test_the_size_that_fits_is_learned(scheduler: TaskBackoffScheduler) -> None:
    sizes: list[int] = []

    @scheduler.batch(max_size=16, max_wait=0.02, max_retry_count=0)
    async def embed(texts: list[str]) -> list[str]:
        sizes.append(len(texts))
        if len(texts) > 5:
            raise MemoryError("CUDA out of memory")
        return texts

    handles = await embed.create_many([embed.spec(f"{n}") for n in range(48)])
    async with scheduler:
        for handle in handles:
            await handle.result(30)
            assert (await handle.task()).retry_count == 0
    assert max(sizes[10:]) <= 5 and sum(sizes) <= 48 + 16 + 8 + 8 + 16


async def test_the_exception_handler_sees_tasks_that_failed_alone(scheduler: TaskBackoffScheduler) -> None:
    seen: list[str] = []

    @scheduler.batch(max_size=4, max_wait=0.02, max_retry_count=0)
    async def embed(texts: list[str]) -> list[str]:
        if "bad" in texts:
            raise ValueError("a bad text")
        return texts

    @scheduler.set_custom_task_exception_handler
    async def replace(task: TaskEntity) -> ResultEntity:
        seen.append(task.task_id)
        return ResultEntity.ok("a fallback")

    handles = await embed.create_many([embed.spec(text) for text in ("a", "bad", "c", "d")])
    async with scheduler:
        assert [await handle.result(30) for handle in handles] == ["a", "a fallback", "c", "d"]
    assert seen == [handles[1].task_id]


async def test_a_thread_that_cannot_be_stopped_keeps_one_slot(config: TaskBackoffConfig) -> None:
    config.threadpool.exec_timeout = 0.2
    config.threadpool.concurrency = 1
    scheduler = TaskBackoffScheduler(config)
    end, calls = threading.Event(), list[list[str]]()

    @scheduler.batch(max_size=4, max_wait=0.02, max_retry_count=0)
    def embed(texts: list[str]) -> list[str]:
        calls.append(texts)
        if len(calls) == 1:
            end.wait(20)
        return texts

    handles = await embed.create_many([embed.spec(text) for text in "abcd"])
    async with scheduler:
        await eventually(lambda: scheduler._service.parts.slots.lingering, "the thread is left behind")
        assert scheduler._service.parts.slots.lingering == 1 and len(calls) == 1
        end.set()
        assert [await handle.result(30) for handle in handles] == list("abcd")
    assert [len(call) for call in calls] == [4, 2, 2]
    await scheduler.shutdown()


async def test_a_worker_that_ends_when_idle_waits_for_batches(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=8, max_wait=1)
    async def embed(texts: list[str]) -> list[str]:
        return texts

    handles = await embed.create_many([embed.spec(text) for text in "abc"])
    await scheduler.start()
    await scheduler._service.until_idle(0)
    assert [await handle.status() for handle in handles] == [TaskStatus.COMPLETED] * 3
    await scheduler.shutdown()


async def test_a_failed_batch_comes_back_beside_other_kinds(scheduler: TaskBackoffScheduler) -> None:
    """A claim of the other kinds sleeps on the server, and must not keep the batches from their halves."""
    scheduler.config.scheduler.interval = 60  # no poll helps

    @scheduler.task
    async def other() -> str:
        return "other"

    @scheduler.batch(max_size=8, max_wait=0.02, max_retry_count=1, backoff_interval=0.01)
    async def embed(numbers: list[int]) -> list[int]:
        if 3 in numbers:
            raise ValueError("three")
        return numbers

    async with scheduler:
        assert await (await other.create()).result(30) == "other"
        handles = await embed.create_many([embed.spec(n) for n in range(8)])
        await _check_innocent(handles[:3] + handles[4:], most_attempts=4)
        with pytest.raises(TaskFailedError, match="three"):
            await handles[3].result(30)
