"""Tasks that are in no index are found, and put back where they belong, in whatever state they are."""

from collections.abc import AsyncIterator

import pytest
from support import Server, eventually, quick_config

from maas_backoff import TaskBackoffScheduler, TaskEntity
from maas_backoff.commands.doctor import examine
from maas_backoff.store.orphans import Search, find_orphans
from maas_backoff.store.queue_store import QueueStore

pytestmark = pytest.mark.anyio

PREFIX = "maas:{test}:"
INDEXES = ("ready", "suspects", "scheduled", "leases", "external", "completed", "failed", "cancelled", "gpu:1024:0")


@pytest.fixture
async def store(any_server: Server) -> AsyncIterator[QueueStore]:
    store = QueueStore.of(quick_config(any_server.storage))
    yield store
    await store.aclose()


def lose(server: Server) -> dict[str, list[bytes]]:
    """Take all tasks out of all indexes; where they were."""
    were = {name: sorted(server.client.zrange(PREFIX + name, 0, -1)) for name in INDEXES}
    server.client.delete(*(PREFIX + name for name in INDEXES))
    return {name: ids for name, ids in were.items() if ids}


async def put_one_in_each_state(scheduler: TaskBackoffScheduler, server: Server) -> None:
    for name in ("ready", "lost", "external", "completed", "failed", "cancelled"):
        await scheduler.create_task({}, name)
    await scheduler.create_task({}, "scheduled", delay=60)
    await scheduler.create_task({}, "gpu", min_gpu_memory_gb=1)
    await scheduler.mark_task_processing("external")
    await scheduler.mark_task_completed("completed", 1)
    await scheduler.mark_task_failed("failed", "no", retry=False)
    await scheduler.cancel_task("cancelled")
    server.client.hset(PREFIX + "t:lost", "k", "0 1 0 1")
    server.client.zrem(PREFIX + "ready", "lost")
    server.client.zadd(PREFIX + "suspects", {"lost": 1})


async def test_each_comes_back_to_the_index_of_its_state(any_server: Server, store: QueueStore) -> None:
    """A task that is found without a repair stays as it is; one that is put back is listed again, and found no more."""
    config = quick_config(any_server.storage)
    async with TaskBackoffScheduler(config) as scheduler:
        await put_one_in_each_state(scheduler, any_server)
        assert await find_orphans(store.connection, repair=True) == Search(8, 0, complete=True)
        were = lose(any_server)
        assert await find_orphans(store.connection, repair=False) == Search(8, 8, complete=True)
        assert lose(any_server) == {}
        assert await find_orphans(store.connection, repair=True) == Search(8, 8, complete=True)
        assert await find_orphans(store.connection, repair=True) == Search(8, 0, complete=True)
        assert lose(any_server) == were
        assert any_server.client.ttl(PREFIX + "t:completed") > 500
        assert any_server.client.ttl(PREFIX + "t:ready") == -1


async def test_what_ran_when_it_was_lost_runs_again_and_what_waited_runs(server: Server) -> None:
    """A task that was claimed and got no lease; one that was created and is in no index; its worker is woken."""
    config = quick_config(server.storage)
    scheduler = TaskBackoffScheduler(config)
    runs: list[str] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        runs.append(task.task_id)
        if task.task_id == "claimed" and task.attempt == 2:
            assert task.lost_count == 1

    await scheduler.create_task({}, "claimed")
    await scheduler.create_task({}, "created")
    server.client.hset(PREFIX + "t:claimed", mapping={"s": "processing", "t": "7", "n": "1", "y": "1 gone"})
    lose(server)
    async with scheduler:
        await eventually(scheduler.workers, "the worker is there")
        assert runs == []
        store = QueueStore.of(config)
        words = [str(word) for word in await examine(store)]
        wrong = "wrong    queue: 2 tasks are in no index, so no worker finds them: run maas-backoff doctor --repair"
        assert wrong in words
        words = [str(word) for word in await examine(store, repair=True)]
        assert "ok       queue: 2 tasks that were in no index were put back" in words
        await store.aclose()
        for task_id in ("claimed", "created"):
            assert (await scheduler.wait_task(task_id, 20)).status == "completed"
    assert sorted(runs) == ["claimed", "created"]


async def test_a_search_has_an_end_and_says_so(server: Server) -> None:
    config = quick_config(server.storage)
    store = QueueStore.of(config)
    async with TaskBackoffScheduler(config) as scheduler:
        await scheduler.create_tasks({"n": n} for n in range(3000))
        found = await find_orphans(store.connection, repair=False, keys=500)
        assert not found.complete and found.tasks < 3000
        words = [str(word) for word in await examine(store, keys=500)]
        assert any("tasks were looked at; --keys 5000 looks at more" in word for word in words)
    await store.aclose()


async def test_without_the_right_to_scan_the_doctor_says_so(server: Server) -> None:
    rights = ["on", ">secret", "allkeys", "allchannels", "+@all", "-scan"]
    server.client.execute_command("ACL", "SETUSER", "app", "reset", *rights)
    config = quick_config(server.storage)
    config.storage.username, config.storage.password = "app", "secret"
    store = QueueStore.of(config)
    try:
        words = [str(word) for word in await examine(store)]
        assert any("grant ACL SETUSER <user> +scan" in word for word in words)
    finally:
        await store.aclose()
        server.client.execute_command("ACL", "DELUSER", "app")
