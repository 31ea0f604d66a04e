"""A queue that has `max_queue_size` unfinished tasks refuses new ones, and says when to come back."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from support import Server, quick_config

from maas_backoff import QueueFullError, StorageFullError, TaskBackoffScheduler, TaskEntity, TaskSpec
from maas_backoff.store.writer import ENQUEUE_LIMIT, Writer
from maas_backoff.worker.loops.reap import settle_lost

pytestmark = pytest.mark.anyio


@pytest.fixture
async def small(any_server: Server) -> AsyncIterator[TaskBackoffScheduler]:
    """A queue of at most five."""
    config = quick_config(any_server.storage)
    config.task.max_queue_size = 5
    scheduler = TaskBackoffScheduler(config)
    yield scheduler
    await scheduler.shutdown()


async def test_what_would_be_too_much_is_refused_whole(small: TaskBackoffScheduler) -> None:
    """Pending, scheduled and outside tasks count; an id that exists already does not."""
    first = await small.create_task({"n": 1}, "first")
    await small.create_task({}, delay=100)
    await small.mark_task_processing(await small.create_task({}))
    with pytest.raises(QueueFullError) as caught:
        await small.create_tasks({"n": n} for n in range(3))
    assert (caught.value.limit, caught.value.size, caught.value.created) == (5, 3, [])
    assert 1 <= caught.value.retry_after <= 300
    await small.create_tasks({"n": n} for n in range(2))
    assert await small.create_task({"n": 1}, "first") == first
    with pytest.raises(QueueFullError, match="5 of at most 5"):
        await small.create_task({})
    assert (await small.get_queue_stats()).pending_count == 4


async def test_finished_tasks_make_room(small: TaskBackoffScheduler) -> None:
    ids = await small.create_tasks({"n": n} for n in range(5))
    await small.cancel_task(ids[0])
    await small.mark_task_completed(ids[1])
    await small.create_tasks([{}, {}])
    with pytest.raises(QueueFullError):
        await small.create_task({})


async def test_fifty_at_once_never_pass_the_limit(small: TaskBackoffScheduler) -> None:
    refused: list[QueueFullError] = []

    async def create() -> None:
        try:
            await small.create_task({})
        except QueueFullError as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(create)
    assert (len(refused), (await small.get_queue_stats()).pending_count) == (45, 5)


async def test_of_a_large_call_the_error_names_what_was_created(small: TaskBackoffScheduler) -> None:
    small.config.task.max_queue_size = ENQUEUE_LIMIT + 5
    with pytest.raises(QueueFullError) as caught:
        await small.create_tasks({"n": n} for n in range(ENQUEUE_LIMIT + 6))
    assert len(caught.value.created) == ENQUEUE_LIMIT == (await small.get_queue_stats()).pending_count


async def test_retry_after_follows_the_pace_of_the_workers(small: TaskBackoffScheduler) -> None:
    """Ten tasks finished in a minute: room for one more in 6 seconds."""
    store = small._client.store
    start = 1_800_000_000_000

    async def look(seconds: float) -> None:
        store.connection.clock = str(start + int(seconds * 1000))
        await settle_lost(store, "reaper", (await store.lost.look(10, 10))[0])

    await look(0)
    for _ in range(10):
        await small.mark_task_completed(await small.create_task({}))
    await look(60)
    await small.create_tasks([{}] * 5)
    with pytest.raises(QueueFullError) as caught:
        await small.create_task({})
    assert caught.value.retry_after == pytest.approx(6, abs=0.01)


async def test_a_running_task_that_comes_back_is_never_refused(small: TaskBackoffScheduler) -> None:
    """The limit is at the door: retries of what is inside pass."""

    async def fails_once(task: TaskEntity) -> None:
        if task.attempt == 1:
            raise ValueError

    small.set_custom_task_handler(fails_once)
    ids = await small.create_tasks({"n": n} for n in range(5))
    async with small:
        for task_id in ids:
            assert (await small.wait_task(task_id, timeout=20)).status == "completed"


async def test_what_is_there_already_is_told(small: TaskBackoffScheduler) -> None:
    """Nothing of such a call is created; ids that were there before, with equal params, are in the queue."""
    await small.create_tasks([TaskSpec({"n": n}, f"{n}") for n in range(4)])
    items = [TaskSpec({"n": n}, f"{n}") for n in (0, 7, 8, 7, 3)]
    with pytest.raises(QueueFullError, match=r"4 of at most 5 .*; 2 of 6 tasks are in the queue$") as caught:
        await small.create_tasks([*items, TaskSpec({"other": 1}, "1")])
    assert (caught.value.created, caught.value.asked) == (["0", "3"], 6)
    with pytest.raises(QueueFullError) as caught:
        await small.create_task({"n": 7}, "7", delay=5)
        await small.create_task({"n": 8}, "8")
    assert (caught.value.created, caught.value.asked) == ([], None)


async def test_the_parts_before_the_full_one_are_told(server: Server) -> None:
    """More than ENQUEUE_LIMIT tasks are sent in parts; an id with other params is none of those that were created."""
    config = quick_config(server.storage)
    config.task.max_queue_size = ENQUEUE_LIMIT + 5
    scheduler = TaskBackoffScheduler(config)
    await scheduler.create_task({"other": 1}, "3")
    specs = [TaskSpec({}, f"{n}") for n in range(ENQUEUE_LIMIT + 10)]
    with pytest.raises(QueueFullError) as caught:
        await scheduler.create_tasks(specs)
    expected = [f"{n}" for n in range(ENQUEUE_LIMIT) if n != 3]
    assert caught.value.created == expected and caught.value.asked == len(specs)
    assert f"; {len(expected)} of {len(specs)} tasks are in the queue" in str(caught.value)
    assert (await scheduler.get_queue_stats()).pending_count == ENQUEUE_LIMIT
    await scheduler.shutdown()


async def test_the_parts_before_a_fault_of_the_server_are_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory that gets full, or a server that goes away, in the middle of a large call."""
    scheduler = TaskBackoffScheduler(quick_config(server.storage))
    enqueue, parts = Writer.enqueue, list[int]()

    async def fails_the_second_time(store: Writer, tasks: Any, policy: Any = None) -> Any:
        parts.append(len(tasks))
        if len(parts) == 2:
            await anyio.to_thread.run_sync(server.client.config_set, "maxmemory", 1)
        return await enqueue(store, tasks, policy)

    monkeypatch.setattr(Writer, "enqueue", fails_the_second_time)
    try:
        with pytest.raises(StorageFullError, match="the server's memory is full") as caught:
            await scheduler.create_tasks(TaskSpec({}, f"{n}") for n in range(2 * ENQUEUE_LIMIT))
    finally:
        server.client.config_set("maxmemory", 0)
    assert caught.value.created == [f"{n}" for n in range(ENQUEUE_LIMIT)]
    assert parts == [ENQUEUE_LIMIT] * 2
    assert (await scheduler.get_queue_stats()).pending_count == ENQUEUE_LIMIT
    await scheduler.shutdown()
