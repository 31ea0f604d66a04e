"""A queue that has `max_queue_size` unfinished tasks refuses new ones, and says when to come back."""

from collections.abc import AsyncIterator

import anyio
import pytest
from support import Server, quick_config

from maas_backoff import QueueFullError, TaskBackoffScheduler, TaskEntity
from maas_backoff.loops.reap import settle_lost
from maas_backoff.store.redis import ENQUEUE_LIMIT

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
    store = small._tasks.store
    start = 1_800_000_000_000

    async def look(seconds: float) -> None:
        store.clock = str(start + int(seconds * 1000))
        await settle_lost(store, "reaper", await store.reap(10, 10))

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
