"""Following a task: watch, wait, call; woken by what the scripts publish, whatever happens to the connection."""

import asyncio
import contextlib
import json
from typing import Any

import anyio
import handlers_for_children as handlers
import pytest
from support import Server, eventually

from maas_backoff import (
    InvalidValueError,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskEvent,
    TaskNotFoundError,
    TaskStatus,
    current_task,
)

pytestmark = pytest.mark.anyio


async def collected(scheduler: TaskBackoffScheduler, task_id: str, after: str | None = None) -> list[TaskEvent]:
    with anyio.fail_after(20):
        return [event async for event in scheduler.watch(task_id, after=after)]


async def test_whoever_watches_is_told_of_each_state_and_of_progress(scheduler: TaskBackoffScheduler) -> None:
    steps = {name: anyio.Event() for name in ("begun", "halfway", "again")}
    seen: list[tuple[str, int, float]] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        await steps["begun"].wait()
        if task.attempt == 1:
            task.update_progress(50, "half")
            await steps["halfway"].wait()
            raise ValueError
        await steps["again"].wait()
        return "done"

    async with scheduler:
        await scheduler.create_task({"secret": 1}, "x", backoff_interval=0.5)
        async for event in scheduler.watch("x"):
            seen.append((event.task.status, event.task.attempt, event.task.progress))
            if seen[-1] == ("processing", 1, 0):
                steps["begun"].set()
            if seen[-1] == ("processing", 1, 50):
                steps["halfway"].set()
            if seen[-1][:2] == ("processing", 2):
                steps["again"].set()
            last = event
    wanted = [
        ("processing", 1, 0),
        ("processing", 1, 50),
        ("pending", 1, 0),
        ("processing", 2, 0),
        ("completed", 2, 100),
    ]
    assert [one for one in seen if one in wanted] == wanted
    sse = last.to_sse()
    assert sse["event"] == "completed" and json.loads(sse["data"])["result"] == "done"
    assert "secret" not in sse["data"] and all("\n" not in value for value in sse.values())


async def test_a_watch_that_comes_back_is_told_of_what_came_after(scheduler: TaskBackoffScheduler) -> None:
    """By the id of the last event: nothing twice, and the end at once, also long after it."""
    await scheduler.create_task({}, "x", delay=60)
    first = await anext(scheduler.watch("x"))
    assert first.task.status is TaskStatus.PENDING
    await scheduler.mark_task_completed("x", 1)
    (event,) = await collected(scheduler, "x", first.id)
    assert event.task.result == 1
    assert await collected(scheduler, "x", event.id) == []
    assert len(await collected(scheduler, "x", "an id of long ago")) == 1
    with pytest.raises(InvalidValueError, match="after: expected the id of an event, or None, got 5"):
        await collected(scheduler, "x", 5)  # type: ignore[arg-type] - wrong on purpose


async def test_a_task_that_is_not_there_or_is_deleted_ends_a_watch(
    scheduler: TaskBackoffScheduler, server: Server
) -> None:
    with pytest.raises(TaskNotFoundError):
        await collected(scheduler, "x")
    await scheduler.create_task({}, "x", delay=60)
    watch = scheduler.watch("x")
    await anext(watch)
    async with anyio.create_task_group() as group:

        async def end() -> None:
            with pytest.raises(TaskNotFoundError), anyio.fail_after(5):
                await anext(watch)

        group.start_soon(end)
        await eventually(lambda: server.client.pubsub_numsub("maas:{test}:changed")[0][1] == 1, "it listens")
        await scheduler.delete_task("x")


async def test_a_watch_survives_a_lost_connection(scheduler: TaskBackoffScheduler, server: Server) -> None:
    """The end is not missed that comes while nobody listens."""
    await scheduler.create_task({}, "x", delay=60)
    watch = scheduler.watch("x")
    await anext(watch)
    async with anyio.create_task_group() as group:

        async def end() -> None:
            with anyio.fail_after(10):
                assert (await anext(watch)).task.status is TaskStatus.COMPLETED

        group.start_soon(end)
        await eventually(lambda: server.client.pubsub_numsub("maas:{test}:changed")[0][1] == 1, "it listens")
        server.client.client_kill_filter(_type="pubsub")
        await scheduler.mark_task_completed("x")


async def test_many_watchers_cost_one_connection_and_none_is_left_behind(
    scheduler: TaskBackoffScheduler, server: Server
) -> None:
    ids = [f"t{n}" for n in range(50)]
    for task_id in ids:
        await scheduler.create_task({}, task_id, delay=60)
    async with anyio.create_task_group() as group:
        for task_id in ids:
            for _ in range(3):
                group.start_soon(collected, scheduler, task_id)
        await eventually(lambda: server.client.zcard("maas:{test}:watched") == 50, "all watch")
        assert server.client.pubsub_numsub("maas:{test}:changed")[0][1] == 1
        for task_id in ids:
            await scheduler.cancel_task(task_id)
    assert scheduler._client._waiters is not None and not scheduler._client._waiters._events
    assert 0 < server.client.pttl("maas:{test}:watched") <= 40_000


async def test_a_call_whose_caller_goes_away_while_it_is_being_made_is_cancelled(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is there, and runs, before the answer to its creation is."""
    begun, answer = anyio.Event(), anyio.Event()
    create = scheduler.create_task

    async def slow(*args: Any, **options: Any) -> str:
        made = await create(*args, **options)
        await answer.wait()
        return made

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        begun.set()
        await anyio.sleep(60)

    monkeypatch.setattr(scheduler, "create_task", slow)

    async def caller() -> None:
        async with scheduler.call({}, "x"):
            raise AssertionError

    async with scheduler:
        calling = asyncio.create_task(caller())
        await begun.wait()
        calling.cancel()
        await asyncio.sleep(0)
        answer.set()
        with pytest.raises(asyncio.CancelledError):
            await calling
        assert (await scheduler.wait_task("x", 20)).status is TaskStatus.CANCELLED


async def test_a_call_whose_caller_goes_away_is_cancelled(scheduler: TaskBackoffScheduler) -> None:
    """By an exception, a cancel, or a return before its end; one that is finished stays as it is."""
    begun, ended = anyio.Event(), list[str]()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        if task.task_params.get("quick"):
            return "done"
        begun.set()
        try:
            await anyio.sleep(60)
        finally:
            ended.append(task.task_id)
        return "late"

    async with scheduler:
        async with scheduler.call({"quick": True}, "quick") as task_id:
            assert (await scheduler.wait_task(task_id, 10)).result == "done"
        assert (await scheduler.wait_task("quick", 1)).status is TaskStatus.COMPLETED

        async def caller() -> None:
            async with scheduler.call({}, "running") as task_id:
                await scheduler.wait_task(task_id)

        calling = asyncio.create_task(caller())
        await begun.wait()
        calling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await calling
        assert (await scheduler.wait_task("running", 10)).status is TaskStatus.CANCELLED
        assert ended == ["running"]
        with pytest.raises(ZeroDivisionError):
            async with scheduler.call({}, "pending", delay=60):
                raise ZeroDivisionError
        assert (await scheduler.wait_task("pending", 1)).status is TaskStatus.CANCELLED


@pytest.mark.parametrize("mode", ["coroutine", "thread", "process"])
@pytest.mark.blocks
async def test_a_handler_finds_its_task_in_the_context(config: TaskBackoffConfig, mode: str) -> None:
    """Each its own, also side by side; nobody else has one."""
    config.threadpool.proc_mode = "process" if mode == "process" else "thread"
    config.threadpool.concurrency = 4
    scheduler = TaskBackoffScheduler(config)

    async def on_the_loop(task: TaskEntity) -> str:
        await anyio.sleep(0.01)
        return handlers.name_of_current(task)

    scheduler.set_custom_task_handler(on_the_loop if mode == "coroutine" else handlers.name_of_current)
    async with scheduler:
        ids = await scheduler.create_tasks([{}] * 20)
        assert [(await scheduler.wait_task(task_id, 20)).result for task_id in ids] == ids
        assert current_task() is None
