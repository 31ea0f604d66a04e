"""A scheduler in more than one event loop: one for each call, thread or test; and what cannot work in another loop."""

import asyncio
import gc
import importlib
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Server, quick_config
from topology import Authority, Node

from maas_backoff import (
    EventLoopError,
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskNotFoundError,
    ThreadPoolConfig,
)


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """Have what was left open give its warnings, which are errors, in the test that left it."""
    yield
    gc.collect()


async def handle(task: TaskEntity) -> object:
    return task.task_params.get("n")


async def whole_way(scheduler: TaskBackoffScheduler, name: str) -> None:
    """Use all kinds of connections of a client."""
    assert await scheduler.create_task({}, name, delay=3600) == name
    wait = asyncio.create_task(scheduler.wait_task(name, 20))
    await asyncio.sleep(0)
    await scheduler.cancel_task(name)
    assert (await wait).status == "cancelled"


def connections(server: Server) -> int:
    return sum(one["name"] == "maas-backoff" for one in server.client.client_list())


def in_a_loop_that_is_closed(coroutine: Coroutine[Any, Any, object]) -> None:
    """Close the loop, and nothing in it: no task is cancelled, no generator closed."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(coroutine)
    loop.close()


# A loop for each call


def test_each_call_may_have_a_loop_of_its_own(config: TaskBackoffConfig, server: Server) -> None:
    """The connections end with the loop."""
    scheduler = TaskBackoffScheduler(config)
    for n in range(5):
        asyncio.run(whole_way(scheduler, f"t{n}"))
        assert not connections(server)


def test_loops_that_are_closed_with_connections_open_leave_no_warning(
    config: TaskBackoffConfig, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = TaskBackoffScheduler(config)
    for n in range(5):
        in_a_loop_that_is_closed(whole_way(scheduler, f"t{n}"))
        gc.collect()
        assert connections(server) <= 3  # those of one loop
    asyncio.run(whole_way(scheduler, "last"))
    assert not connections(server)
    assert not caplog.records


def test_so_do_loops_with_connections_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    node = Node("redis-7.0", tmp_path, tls=authority)
    try:
        storage = StorageConfig(host="127.0.0.1", port=node.port, tls=True, tls_ca=str(authority.ca))
        scheduler = TaskBackoffScheduler(quick_config(storage))
        for n in range(3):
            in_a_loop_that_is_closed(whole_way(scheduler, f"t{n}"))
        asyncio.run(whole_way(scheduler, "last"))
    finally:
        node.stop()


def test_a_call_at_import_leaves_the_loop_of_the_service_alone(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handle)
    asyncio.run(scheduler.get_queue_stats())

    async def serve(n: int) -> None:
        async with scheduler:
            assert (await scheduler.wait_task(await scheduler.create_task({"n": n}), 20)).result == n

    for n in range(2):
        asyncio.run(serve(n))


def test_a_loop_that_is_closed_goes_away(config: TaskBackoffConfig) -> None:
    """Also if calls of the scheduler have waited for each other there."""
    scheduler = TaskBackoffScheduler(config)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def meet() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await asyncio.gather(*(scheduler.shutdown() for _ in range(3)))

    for _ in range(4):
        asyncio.run(meet())
    gc.collect()
    assert sum(loop() is not None for loop in loops) <= 1  # the last one


def test_first_waits_that_meet_share_a_subscription() -> None:
    """Also while the embedded server starts."""
    scheduler = TaskBackoffScheduler(quick_config(StorageConfig(type="embedded")))

    async def meet() -> None:
        waits = await asyncio.gather(*(scheduler.wait_task(name, 20) for name in "ab"), return_exceptions=True)
        assert {type(one) for one in waits} == {TaskNotFoundError}
        assert [one.get_name() for one in asyncio.all_tasks()].count("maas-backoff-waiters") == 1
        await scheduler.shutdown()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(meet())


def test_a_private_embedded_server_is_the_same_for_all_loops() -> None:
    scheduler = TaskBackoffScheduler(quick_config(StorageConfig(type="embedded")))
    asyncio.run(scheduler.create_task({}, "x", delay=3600))

    async def last() -> None:
        assert await scheduler.get_task("x") is not None
        await scheduler.shutdown()

    asyncio.run(last())


def test_the_configuration_is_copied_on_first_use_and_by_start(config: TaskBackoffConfig) -> None:
    """Not by each loop: a service that assigns an option later would get it at some time or other."""
    scheduler = TaskBackoffScheduler(config)
    asyncio.run(scheduler.create_task({}, "first"))
    scheduler.config.task.max_retry_count = 99
    asyncio.run(scheduler.create_task({}, "second"))

    async def started() -> list[int]:
        async with scheduler:
            await scheduler.create_task({}, "third")
            tasks = [await scheduler.get_task(name) for name in ("first", "second", "third")]
            return [task.max_retry_count for task in tasks if task is not None]

    first, second, third = asyncio.run(started())
    assert (first, third) == (second, 99) and first != 99


# A loop for each thread


def in_threads(number: int, run: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def guarded(n: int) -> None:
        try:
            run(n)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(n,)) for n in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_each_thread_may_have_a_loop_of_its_own(config: TaskBackoffConfig, server: Server) -> None:
    """They run at the same time, and none waits for what belongs to another loop."""
    scheduler = TaskBackoffScheduler(config)
    barrier = threading.Barrier(4)

    async def use(n: int) -> None:
        for m in range(10):
            barrier.wait(20)
            async with asyncio.TaskGroup() as group:
                for k in range(3):
                    group.create_task(whole_way(scheduler, f"t{n}-{m}-{k}"))

    in_threads(4, lambda n: asyncio.run(use(n)))
    assert not connections(server)


def test_a_worker_is_used_from_other_threads(config: TaskBackoffConfig) -> None:
    """Calls work over connections of the thread's own loop; what is the worker's says where it has to be called."""
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handle)

    async def elsewhere(n: int) -> None:
        for m in range(5):
            assert (await scheduler.wait_task(await scheduler.create_task({"n": m}), 20)).result == m
        events = [event async for event in scheduler.watch(await scheduler.create_task({}))]
        assert events[-1].task.status == "completed"
        with pytest.raises(EventLoopError, match=r"^start: the worker runs in another event loop; call it there, as"):
            await scheduler.start()
        with pytest.raises(EventLoopError, match=r"^shutdown: the worker runs in another event loop; call it there"):
            await scheduler.shutdown()
        assert scheduler.health().ready

    async def serve() -> None:
        async with scheduler:
            await scheduler.start()  # a second time, in its own loop: nothing
            await asyncio.to_thread(in_threads, 3, lambda n: asyncio.run(elsewhere(n)))
            assert (await scheduler.wait_task(await scheduler.create_task({"n": 9}), 20)).result == 9
        assert not scheduler.health().ready

    asyncio.run(serve())


def test_two_threads_that_start_the_worker_at_once_start_one(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handle)
    barrier = threading.Barrier(2)
    ways: list[str] = []

    async def start() -> None:
        barrier.wait(20)
        try:
            await scheduler.start()
        except EventLoopError:
            ways.append("refused")
            barrier.wait(20)
            return
        ways.append("started")
        barrier.wait(20)
        await scheduler.shutdown()

    in_threads(2, lambda _: asyncio.run(start()))
    assert sorted(ways) == ["refused", "started"]


def test_a_worker_whose_loop_has_ended_can_be_started_in_another(config: TaskBackoffConfig) -> None:
    """asyncio.run cancels what a service has left running, the worker as well."""
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handle)
    asyncio.run(scheduler.start())

    async def serve() -> None:
        async with scheduler:
            assert (await scheduler.wait_task(await scheduler.create_task({"n": 1}), 20)).result == 1

    asyncio.run(serve())


@pytest.mark.parametrize("mode", ["inline", "thread"])
def test_a_handler_creates_tasks_in_a_loop_of_its_own(config: TaskBackoffConfig, mode: str) -> None:
    """In a thread of its own where the handler is a coroutine: asyncio has one loop for a thread."""
    scheduler = TaskBackoffScheduler(config)

    def enqueue(task: TaskEntity) -> str:
        return asyncio.run(scheduler.create_task({}, f"{task.task_id}-child", delay=3600))

    async def enqueue_in_thread(task: TaskEntity) -> str:
        return await asyncio.to_thread(enqueue, task)

    scheduler.set_custom_task_handler(enqueue if mode == "thread" else enqueue_in_thread)

    async def serve() -> None:
        async with scheduler:
            for n in range(5):
                task = await scheduler.wait_task(await scheduler.create_task({}, f"t{n}"), 20)
                assert task.result == f"t{n}-child"

    asyncio.run(serve())


def test_a_handler_in_a_child_process_creates_tasks_in_loops_of_its_own(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAAS_BACKOFF_TEST_URL", f"redis://127.0.0.1:{server.port}/0")
    sys.modules.pop("enqueuing", None)
    scheduler: TaskBackoffScheduler = importlib.import_module("enqueuing").scheduler

    async def serve() -> None:
        async with scheduler:
            for n in range(3):
                task = await scheduler.wait_task(await scheduler.create_task({}, f"t{n}"), 40)
                assert task.result == [f"t{n}-0", f"t{n}-1"], task.error

    asyncio.run(serve())


# None


def test_without_an_event_loop_it_says_so(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    with pytest.raises(EventLoopError, match=r"^no event loop of asyncio is running here: await this in one"):
        scheduler.create_task({}).send(None)


def test_an_iteration_may_be_begun_outside_of_a_loop(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    asyncio.run(scheduler.create_task({}, "x", delay=3600))
    events = scheduler.watch("x")

    async def first() -> str:
        try:
            return (await anext(events)).task.status
        finally:
            await events.aclose()

    assert asyncio.run(first()) == "pending"


def test_threads_of_a_pool_may_end_before_their_loops_are_closed(config: TaskBackoffConfig) -> None:
    """A loop that a thread leaves behind, neither running nor closed, keeps its connections, and harms no other."""
    config.threadpool = ThreadPoolConfig(concurrency=1)
    scheduler = TaskBackoffScheduler(config)
    loops = [asyncio.new_event_loop() for _ in range(3)]
    in_threads(3, lambda n: loops[n].run_until_complete(whole_way(scheduler, f"a{n}")) or None)
    asyncio.run(whole_way(scheduler, "b"))
    in_threads(3, lambda n: loops[n].run_until_complete(whole_way(scheduler, f"c{n}")) or None)
    for loop in loops:
        loop.run_until_complete(scheduler.shutdown())
        loop.close()
