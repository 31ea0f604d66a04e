"""Reads that meet travel in one call; each caller keeps a task, an error and a deadline of its own."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from support import Server, eventually, quick_config

from maas_backoff import StorageError, StorageUnavailableError, TaskBackoffScheduler, TaskEntity, TaskSpec
from maas_backoff.client.reader import MOST_READS
from maas_backoff.store.reader import READ_BYTES, Reader

pytestmark = pytest.mark.anyio


class Calls:
    """The calls to the server: how many tasks each asked for, and the tasks of its reply."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.watching: list[int] = []
        self.replies: list[Sequence[TaskEntity | None]] = []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    get_first = Reader.get_first

    async def noted(
        self: Reader, task_ids: Sequence[str], deadline: float | None = None, *, watch: float = 0
    ) -> list[TaskEntity | None]:
        (found.watching if watch else found.asked).append(len(task_ids))
        reply = await get_first(self, task_ids, deadline, watch=watch)
        found.replies.append(reply)
        return reply

    monkeypatch.setattr(Reader, "get_first", noted)
    return found


@pytest.fixture
async def scheduler(server: Server) -> AsyncIterator[TaskBackoffScheduler]:
    scheduler = TaskBackoffScheduler(quick_config(server.storage))
    yield scheduler
    await scheduler.shutdown()


async def read(scheduler: TaskBackoffScheduler, ids: Sequence[str]) -> list[Any]:
    return await asyncio.gather(*(scheduler.get_task(task_id) for task_id in ids), return_exceptions=True)


async def test_a_hundred_reads_at_once_are_two_calls(scheduler: TaskBackoffScheduler, calls: Calls) -> None:
    ids = await scheduler.create_tasks(TaskSpec({"n": n}, f"task-{n}") for n in range(100))
    for task_id in ids[::2]:
        assert await scheduler.mark_task_completed(task_id, task_id)
    tasks = await read(scheduler, ids)
    assert [(task.task_id, task.task_params) for task in tasks] == [(f"task-{n}", {"n": n}) for n in range(100)]
    assert [task.result for task in tasks] == [None if n % 2 else f"task-{n}" for n in range(100)]
    assert calls.asked == [1, 99]


async def test_a_read_that_comes_alone_is_a_call_of_its_own(scheduler: TaskBackoffScheduler, calls: Calls) -> None:
    await scheduler.create_task({}, "a")
    for _ in range(3):
        assert await scheduler.get_task("a") is not None
    assert calls.asked == [1, 1, 1]


async def test_tasks_read_together_are_what_each_is_alone(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_task({}, "first")
    await scheduler.create_task({}, "second", priority=5)
    await scheduler.create_task({}, "later", delay=60)
    await scheduler.create_task({}, "done")
    assert await scheduler.mark_task_completed("done", [1])
    client = scheduler._client
    await client.store.registry.enter("worker", "{}")
    ids = ["first", "second", "none", "later", "done"]
    alone = [await scheduler.get_task(task_id) for task_id in ids]
    assert await read(scheduler, ids) == alone
    assert [task and task.waiting_for for task in alone[:2]] == ["slot: next in line", "slot: 1 ahead of it"]
    await client.store.registry.leave("worker")


async def test_callers_of_one_task_do_not_share_its_values(scheduler: TaskBackoffScheduler, calls: Calls) -> None:
    await scheduler.create_task({"n": [1]}, "a")
    tasks = await read(scheduler, ["a"] * 10)
    assert calls.asked == [1, 9]
    tasks[1].task_params["n"].append(2)
    assert [task.task_params for task in tasks[2:]] == [{"n": [1]}] * 8


async def test_a_reply_is_bounded_in_tasks(scheduler: TaskBackoffScheduler, calls: Calls) -> None:
    ids = await scheduler.create_tasks({} for _ in range(2 * MOST_READS + 11))
    assert [task.task_id for task in await read(scheduler, ids)] == ids
    assert sorted(calls.asked) == [1, 10, MOST_READS, MOST_READS]


async def test_a_reply_is_bounded_in_bytes(scheduler: TaskBackoffScheduler, calls: Calls) -> None:
    """A hundred results of one MiB in one reply would stand in the way of the server and of the event loop."""
    size = READ_BYTES * 2 // 5
    ids = await scheduler.create_tasks({} for _ in range(20))
    for task_id in ids:
        assert await scheduler.mark_task_completed(task_id, "x" * size)
    assert [len(task.result) for task in await read(scheduler, ids)] == [size] * 20
    assert max(len(reply) for reply in calls.replies) == 3
    assert sum(len(reply) for reply in calls.replies) == 20


async def test_a_task_larger_than_a_reply_is_read(scheduler: TaskBackoffScheduler, calls: Calls) -> None:
    ids = await scheduler.create_tasks({} for _ in range(4))
    for task_id in ids:
        assert await scheduler.mark_task_completed(task_id, "x" * READ_BYTES)
    assert [len(task.result) for task in await read(scheduler, ids)] == [READ_BYTES] * 4
    assert [len(reply) for reply in calls.replies] == [1] * 4


async def test_a_task_that_cannot_be_read_is_an_error_of_its_own_caller(
    server: Server, scheduler: TaskBackoffScheduler
) -> None:
    await scheduler.create_tasks([TaskSpec({}, "good"), TaskSpec({}, "odd"), TaskSpec({}, "better")])
    server.client.set("maas:{test}:t:wrong", "no hash", ex=60)
    server.client.hset("maas:{test}:t:odd", "k", "no counts")
    ids = ["good", "wrong", "odd", "better"]
    came = await read(scheduler, ids)
    assert [one.task_id for one in (came[0], came[3])] == ["good", "better"]
    assert isinstance(came[1], StorageError) and "WRONGTYPE" in str(came[1])
    assert isinstance(came[2], ValueError)
    server.client.hdel("maas:{test}:t:odd", "k")


async def test_a_caller_that_is_cancelled_takes_nobody_with_it(scheduler: TaskBackoffScheduler, calls: Calls) -> None:
    ids = await scheduler.create_tasks({} for _ in range(10))
    callers = [asyncio.create_task(scheduler.get_task(task_id)) for task_id in ids]
    await asyncio.sleep(0)
    callers[0].cancel()
    callers[5].cancel()
    came = await asyncio.gather(*callers, return_exceptions=True)
    assert [type(one) for one in came] == [
        asyncio.CancelledError if n in {0, 5} else TaskEntity for n in range(len(ids))
    ]


async def test_callers_behind_a_server_that_stands_still_have_an_error_in_time(server: Server) -> None:
    config = quick_config(server.storage)
    config.storage.timeout = 1
    scheduler = TaskBackoffScheduler(config)
    await scheduler.create_task({}, "a")
    server.pause()
    try:
        async with asyncio.timeout(20):
            came = await read(scheduler, ["a"] * 50)
    finally:
        server.go_on()
    assert {type(one) for one in came} == {StorageUnavailableError}
    assert await scheduler.get_task("a") is not None
    await scheduler.shutdown()


async def test_waiters_watch_together(server: Server, scheduler: TaskBackoffScheduler, calls: Calls) -> None:
    ids = await scheduler.create_tasks({} for _ in range(50))
    waiters = [asyncio.create_task(scheduler.wait_task(task_id, timeout=20)) for task_id in ids]
    await eventually(lambda: server.client.zcard("maas:{test}:watched") == 50, "all are watched")
    # The subscription begins beside the first reads, and wakes all waiters once.
    assert len(calls.watching) < 10
    for task_id in ids:
        assert await scheduler.mark_task_completed(task_id, task_id)
    assert [task.result for task in await asyncio.gather(*waiters)] == ids
    assert calls.asked == []


async def test_a_read_does_not_wait_for_a_watch_that_the_server_refuses(
    server: Server, scheduler: TaskBackoffScheduler, calls: Calls
) -> None:
    """A watch writes: a server without its replicas refuses that, and answers reads."""
    ids = await scheduler.create_tasks({} for _ in range(10))
    server.client.config_set("min-replicas-to-write", 1)
    try:
        waiters = [asyncio.create_task(scheduler.wait_task(task_id, timeout=60)) for task_id in ids]
        await eventually(lambda: calls.watching, "somebody wants to wait")
        assert [task.task_id for task in await read(scheduler, ids)] == ids
        assert not any(waiter.done() for waiter in waiters)
    finally:
        server.client.config_set("min-replicas-to-write", 0)
    for task_id in ids:
        assert await scheduler.mark_task_completed(task_id)
    assert {task.status for task in await asyncio.gather(*waiters)} == {"completed"}
