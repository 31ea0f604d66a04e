"""Replies that are lost, slow or torn, and connections that break: nothing is lost, nothing is done twice."""

import time
from collections.abc import AsyncIterator, Callable

import anyio
import pytest
from proxy import Command, Proxy, kind
from support import Server, eventually, load_scripts, quick_config

from maas_backoff import StorageUnavailableError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskSpec

pytestmark = pytest.mark.anyio


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[Proxy]:
    load_scripts(server)
    async with Proxy(server.port) as proxy:
        yield proxy


def config_at(proxy: Proxy) -> TaskBackoffConfig:
    config = quick_config(proxy.storage)
    config.storage.timeout = 20
    return config


def every_first(*kinds: str) -> Callable[[Command], bool]:
    """Lose the reply to each command of these kinds once; the same command, sent again, is answered."""
    seen: set[bytes] = set()

    def drops(command: Command) -> bool:
        # A request that is sent with its text instead of its digest, or begins at another time, is the same.
        name = b" ".join(command[2:])
        if kind(command) not in kinds or name in seen:
            return False
        seen.add(name)
        return True

    return drops


class Runs:
    """A handler that counts how often it is called for each task."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.of: dict[str, int] = {}

    async def __call__(self, task: TaskEntity) -> int:
        self.of[task.task_id] = self.of.get(task.task_id, 0) + 1
        await anyio.sleep(self.seconds)
        return int(task.task_params["n"])


def worker_at(proxy: Proxy, runs: Runs, *, lease: float = 3) -> TaskBackoffScheduler:
    config = config_at(proxy)
    config.scheduler.lease = lease
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> int:
        return await runs(task)

    return scheduler


async def check_all_done_once(scheduler: TaskBackoffScheduler, ids: list[str], runs: Runs) -> None:
    done = [await scheduler.wait_task(task_id, timeout=30) for task_id in ids]
    assert [(task.status, task.result, task.attempt) for task in done] == [("completed", n, 1) for n in range(len(ids))]
    assert runs.of == dict.fromkeys(ids, 1)


async def test_each_frame_of_a_worker_loses_its_reply_once(
    any_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Claims are given again, settlements are answered "already": all run once and are settled once."""
    load_scripts(any_server)
    runs = Runs(0.02)
    async with Proxy(any_server.port) as proxy, TaskBackoffScheduler(quick_config(any_server.storage)) as producer:
        ids = await producer.create_tasks({"n": n} for n in range(30))
        proxy.drops = every_first("settle")
        async with worker_at(proxy, runs):
            await check_all_done_once(producer, ids, runs)
        stats = await producer.get_queue_stats()
        assert (stats.completed_count, stats.failed_count, stats.processing_count) == (30, 0, 0)
        assert any_server.client.hget("maas:{test}:meta", "completed") == b"30"
        assert proxy.dropped["settle"] >= 4
        assert "came too late" not in caplog.text


@pytest.mark.long
async def test_heartbeats_and_reaps_that_lose_their_replies_lose_no_lease(server: Server, proxy: Proxy) -> None:
    """Two of three replies are lost: tasks that take longer than their lease run once."""
    runs = Runs(5)
    lost = 0

    def drops(command: Command) -> bool:
        nonlocal lost
        lost += kind(command) in {"renew", "reap"}
        return kind(command) in {"renew", "reap"} and lost % 3 != 0

    async with TaskBackoffScheduler(quick_config(server.storage)) as producer:
        ids = await producer.create_tasks({"n": n} for n in range(5))
        async with worker_at(proxy, runs):
            await eventually(lambda: len(runs.of) == 5, "all run")
            proxy.drops = drops
            await check_all_done_once(producer, ids, runs)
    assert proxy.dropped["renew"] >= 2
    assert proxy.dropped["reap"] >= 2


async def test_each_call_of_a_producer_answers_as_if_its_first_reply_had_not_been_lost(any_server: Server) -> None:
    load_scripts(any_server)
    async with Proxy(any_server.port) as proxy:
        scheduler = TaskBackoffScheduler(config_at(proxy))
        lost = every_first("enqueue", "settle", "get", "list", "stats", "cancel", "progress", "HMGET", "reap", "leave")
        proxy.drops = lambda command: kind(command) != "settle" and lost(command)
        async with scheduler:
            assert await scheduler.create_task({"n": 1}, "x") == "x"
            assert await scheduler.create_tasks([TaskSpec({}, "y"), TaskSpec({}, "z")]) == ["y", "z"]
            assert (await scheduler.get_queue_stats()).pending_count == 3
            assert [task.task_id for task in (await scheduler.list_tasks("pending")).tasks] == ["x", "y", "z"]
            proxy.drops = lost
            assert await scheduler.mark_task_processing("x")
            assert await scheduler.update_task_progress("x", 50)
            assert await scheduler.mark_task_completed("x", "by hand")
            assert await scheduler.mark_task_failed("y", "no", retry=False)
            assert await scheduler.retry_task("y")
            assert await scheduler.cancel_task("z")
            done = await scheduler.wait_task("x", timeout=10)
            assert (done.status, done.result) == ("completed", "by hand")
            again = await scheduler.get_task("y")
            assert again is not None
            assert (again.status, again.retry_count) == ("pending", 0)
        for name in ("enqueue", "settle", "get", "list", "stats", "progress"):
            assert proxy.dropped[name], name


async def test_a_delete_whose_reply_was_lost_is_done(server: Server, proxy: Proxy) -> None:
    """Sent again it is answered as the first time: there was such a task."""
    async with TaskBackoffScheduler(config_at(proxy)) as scheduler:
        await scheduler.create_task({}, "x")
        proxy.drops = every_first("delete")
        assert await scheduler.delete_task("x")
        assert proxy.dropped["delete"] == 1
        assert await scheduler.get_task("x") is None


async def test_a_cancel_of_a_running_task_survives_a_lost_reply(server: Server, proxy: Proxy) -> None:
    runs = Runs(60)
    proxy.drops = every_first("cancel", "settle")
    async with worker_at(proxy, runs) as scheduler:
        task_id = await scheduler.create_task({"n": 0})
        await eventually(lambda: runs.of, "it runs")
        assert await scheduler.cancel_task(task_id, running=True)
        assert (await scheduler.wait_task(task_id, timeout=20)).status == "cancelled"
    assert proxy.dropped["cancel"] == 1


async def test_connections_that_are_reset_cost_nothing(server: Server, proxy: Proxy) -> None:
    """RST of all, every 50 ms: everything runs once, and connections do not pile up."""
    runs = Runs(0.01)
    async with TaskBackoffScheduler(quick_config(server.storage)) as producer:
        ids = await producer.create_tasks({"n": n} for n in range(200))
        most = 0
        # A machine that is busy for a moment gets nothing through between two resets.
        async with worker_at(proxy, runs, lease=60):
            deadline = time.monotonic() + 20
            while len(runs.of) < 200 and time.monotonic() < deadline:
                proxy.reset_all()
                await anyio.sleep(0.05)
                most = max(most, await anyio.to_thread.run_sync(lambda: len(server.client.client_list())))
            await check_all_done_once(producer, ids, runs)
    # Lanes, wake-up, heartbeat, reaper, producer, waiters; the same again while the server closes the old ones.
    assert most <= 40


async def test_one_byte_at_a_time_is_enough(server: Server, proxy: Proxy) -> None:
    runs = Runs()
    proxy.bytewise = True
    async with worker_at(proxy, runs) as scheduler:
        ids = [await scheduler.create_task({"n": n}) for n in range(5)]
        await check_all_done_once(scheduler, ids, runs)


@pytest.mark.long
async def test_a_slow_network_is_only_slow(server: Server, proxy: Proxy) -> None:
    """Half a second for each answer: tasks longer than their lease keep it, and run once."""
    runs = Runs(8)
    proxy.delay = 0.5
    # In three seconds a heartbeat has room for few answers of this kind; attempts stop when their lease is over.
    async with worker_at(proxy, runs, lease=6) as scheduler:
        ids = await scheduler.create_tasks({"n": n} for n in range(5))
        await check_all_done_once(scheduler, ids, runs)


@pytest.mark.long
async def test_a_network_that_swallows_everything_is_noticed_and_left_behind(server: Server, proxy: Proxy) -> None:
    """A caller's deadline holds, and the worker works again when the network does, and says in between that it cannot.

    What ran through the hole is settled once: the lease is longer than the hole.
    """
    runs = Runs(1)
    config = config_at(proxy)
    config.storage.timeout = 1
    impatient = TaskBackoffScheduler(config)
    scheduler = worker_at(proxy, runs)
    scheduler.config.scheduler.lease = 20
    async with TaskBackoffScheduler(quick_config(server.storage)) as producer, impatient, scheduler:
        ids = await producer.create_tasks({"n": n} for n in range(3))
        await eventually(lambda: len(runs.of) == 3, "all run")
        proxy.blackhole = True
        began = time.monotonic()
        with pytest.raises(StorageUnavailableError):
            await impatient.create_task({"n": 9})
        assert time.monotonic() - began < 7
        await eventually(lambda: not scheduler.health().ready, "it says that the leases are not renewed")
        proxy.blackhole = False
        began = time.monotonic()
        await check_all_done_once(producer, ids, runs)
        assert time.monotonic() - began < 20
        await eventually(lambda: scheduler.health().ready, "it is well again")
