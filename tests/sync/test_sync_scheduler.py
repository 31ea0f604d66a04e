"""Blocking calls: from threads, beside a running event loop, with errors, kinds, blocks, and after `close`."""

import asyncio
import contextvars
import importlib.util
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from support import Server

from maas_backoff import (
    EventLoopError,
    InvalidValueError,
    PayloadError,
    StorageConfig,
    StorageUnavailableError,
    SyncScheduler,
    SyncTaskHandle,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskConflictError,
    TaskEntity,
    TaskFailedError,
    TaskHandle,
    TaskNotFoundError,
    TaskSpec,
    TaskStatus,
    TaskTimeoutError,
    current_task,
)
from maas_backoff.sync.portal import portal

ROOT = Path(__file__).parents[2]


def portal_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "maas-backoff-sync"]


@pytest.fixture
def sync(config: TaskBackoffConfig) -> Iterator[SyncScheduler]:
    with SyncScheduler(config) as scheduler:
        yield scheduler
    assert not portal_threads()


def in_a_thread(call: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as threads:
        threads.submit(call).result(30)


def test_the_files_are_those_that_the_program_writes() -> None:
    spec = importlib.util.spec_from_file_location("sync_calls", ROOT / ".ci/sync_calls.py")
    assert spec is not None and spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    for path, text in program.written().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run `python .ci/sync_calls.py`"


def test_it_has_all_calls_that_need_no_worker_and_no_others() -> None:
    def calls(of: type) -> set[str]:
        return {name for name in dir(of) if not name.startswith("_")}

    from maas_backoff.client.calls import QueueCalls

    assert calls(SyncScheduler) == calls(QueueCalls) | {"kind", "close"}


def test_a_constructor_does_nothing_and_a_wrong_argument_is_refused(config: TaskBackoffConfig) -> None:
    assert repr(SyncScheduler(config)) == "<SyncScheduler of 'test'>"
    SyncScheduler(TaskBackoffScheduler(config)).close()
    SyncScheduler()
    with pytest.raises(InvalidValueError, match="scheduler: expected a TaskBackoffScheduler or a TaskBackoffConfig"):
        SyncScheduler("redis://localhost")  # type: ignore[arg-type] - wrong on purpose
    assert not portal_threads()


def test_the_calls_block_until_they_have_their_result(sync: SyncScheduler) -> None:
    assert sync.create_task({"n": 1}, "one", delay=3600, priority=-5) == "one"
    assert sync.ensure_task({"n": 1}, "one").is_new is False
    ids = sync.create_tasks([{"n": 2}, TaskSpec({"n": 3}, "three", delay=60)])
    assert ids[1] == "three"
    task = sync.get_task("one")
    assert task is not None and (task.task_params, task.priority) == ({"n": 1}, -5)
    assert {task.task_id for task in sync.list_tasks("pending", limit=10).tasks} == {"one", *ids}
    assert sync.get_queue_stats().pending_count == 3
    assert sync.update_task("three", delay=timedelta(hours=1))
    assert sync.mark_task_processing(ids[0]) and sync.update_task_progress(ids[0], 50, "half")
    assert sync.mark_task_completed(ids[0], {"ok": True})
    assert sync.wait_task(ids[0], timeout=10).result == {"ok": True}
    assert sync.cancel_task("three") and sync.retry_task("three") and sync.delete_task("three")
    assert sync.pause() and not sync.pause() and "paused" in sync.explain() and sync.resume()
    assert sync.set_limit("openai", concurrency=4) and sync.limits()[0].name == "openai"
    assert sync.set_weight("acme", 2) and [one.name for one in sync.tenants()] == ["acme"]
    assert sync.purge_tasks("pending") == 1
    assert (sync.workers(), sync.gpus(), len(sync.get_upcoming(steps=2))) == ([], [], 2)


def test_errors_come_with_their_type(sync: SyncScheduler) -> None:
    sync.create_task({"n": 1}, "one", delay=3600)
    with pytest.raises(TaskConflictError):
        sync.create_task({"n": 2}, "one")
    with pytest.raises(TaskTimeoutError):
        sync.wait_task("one", timeout=0.01)
    with pytest.raises(TaskNotFoundError):
        sync.wait_task("none")
    with pytest.raises(PayloadError):
        sync.create_task({"n": object()})
    with pytest.raises(PayloadError, match="tasks: expected dicts of params, or TaskSpecs"):
        sync.create_tasks(5)  # type: ignore[arg-type] - wrong on purpose
    with pytest.raises(InvalidValueError, match="timeout: expected seconds"):
        sync.wait_task("one", timeout=-1)


def test_a_server_that_is_away_is_told() -> None:
    away = StorageConfig(host="127.0.0.1", port=1, timeout=0.2)
    config = TaskBackoffConfig(storage=away, task=TaskConfig(biz_prefix="test"))
    with SyncScheduler(config) as sync, pytest.raises(StorageUnavailableError):
        sync.create_task({})


def test_threads_share_one_event_loop(sync: SyncScheduler) -> None:
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda n: sync.create_task({"n": n}), range(100)))
    assert len(set(ids)) == sync.get_queue_stats().pending_count == 100
    assert len(portal_threads()) == 1


def test_the_items_are_read_in_the_thread_of_the_caller(sync: SyncScheduler) -> None:
    """A cursor of a database belongs to its thread, and an iterator may use one dict for all items."""
    threads = set[threading.Thread]()

    def rows() -> Iterator[dict[str, int]]:
        row = {"n": 0}
        for n in range(3):
            threads.add(threading.current_thread())
            row["n"] = n
            yield row

    found = [sync.get_task(task_id) for task_id in sync.create_tasks(rows())]
    assert [task and task.task_params for task in found] == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert threads == {threading.current_thread()}


@pytest.mark.blocks
@pytest.mark.anyio
async def test_a_thread_whose_event_loop_runs_may_call(sync: SyncScheduler) -> None:
    """In a notebook, each cell runs inside of an event loop."""
    assert asyncio.get_running_loop().is_running()
    task_id = sync.create_task({"n": 1}, delay=3600)
    assert sync.cancel_task(task_id) and sync.wait_task(task_id, 10).status is TaskStatus.CANCELLED


def test_the_event_loop_of_the_calls_does_not_wait_for_itself(sync: SyncScheduler) -> None:
    async def recursion() -> None:
        sync.get_queue_stats()

    with pytest.raises(EventLoopError, match="would wait for itself"):
        portal.run(sync._scheduler, recursion)


def test_after_close_a_call_connects_again(server: Server, config: TaskBackoffConfig) -> None:
    def connections() -> int:
        return sum(one["name"] == "maas-backoff" for one in server.client.client_list())

    sync, other = SyncScheduler(config), SyncScheduler(config)
    for _ in range(2):
        assert sync.get_task("none") is None and other.get_task("none") is None
        (thread,) = portal_threads()
        sync.close()
        sync.close()
        assert thread.is_alive(), "another one uses it"
        other.close()
        assert not thread.is_alive() and not portal_threads() and connections() == 0


def test_a_call_that_waits_ends_when_another_thread_closes(config: TaskBackoffConfig) -> None:
    sync = SyncScheduler(config)
    sync.create_task({}, "one", delay=3600)
    events = sync.watch("one")
    assert next(events).task.status == "pending"
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            next(events)
        except EventLoopError as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not portal._thread or len(_tasks(sync)) < 2:  # the wait, and this look at it
        pass
    portal.leave(sync._scheduler)
    thread.join(10)
    assert [str(error) for error in failed] == ["the scheduler was closed while this call waited"]


def _tasks(sync: SyncScheduler) -> list[Any]:
    async def look() -> list[Any]:
        return [task for task in asyncio.all_tasks() if task.get_name() == "maas-backoff-sync"]

    return portal.run(sync._scheduler, look)


def test_a_loop_that_has_died_is_replaced(sync: SyncScheduler) -> None:
    async def dies() -> None:
        raise SystemExit(1)

    with pytest.raises(SystemExit):
        portal.run(sync._scheduler, dies)
    while portal_threads():
        pass
    assert sync.get_task("none") is None


def test_the_context_of_the_caller_is_that_of_the_call(sync: SyncScheduler) -> None:
    """A tracer finds the span of the request there."""
    span = contextvars.ContextVar("span", default="none")
    span.set("of the request")

    async def look() -> str:
        return span.get()

    assert portal.run(sync._scheduler, look) == "of the request"


def test_a_watch_yields_each_change_to_the_end(sync: SyncScheduler) -> None:
    sync.create_task({}, "one", delay=3600)
    events = sync.watch("one")
    first = next(events)
    sync.cancel_task("one")
    assert [first.task.status, *(event.task.status for event in events)] == ["pending", "cancelled"]
    assert list(sync.watch("one", after=first.id))[-1].task.status == "cancelled"
    for event in sync.watch("one"):
        assert event.task.status == "cancelled"
        break
    with pytest.raises(TaskNotFoundError):
        next(sync.watch("none"))


def test_a_call_block_cancels_its_task(sync: SyncScheduler) -> None:
    with pytest.raises(ZeroDivisionError), sync.call({"n": 1}, delay=3600) as task_id:
        raise ZeroDivisionError
    task = sync.get_task(task_id)
    assert task is not None and task.status is TaskStatus.CANCELLED


# With a worker


@pytest.mark.anyio
async def test_a_stream_and_a_log_are_iterators(config: TaskBackoffConfig) -> None:
    async with TaskBackoffScheduler(config) as scheduler:

        @scheduler.set_custom_task_handler
        async def says(task: TaskEntity) -> None:
            task.log("begins")
            for word in ({"word": 1}, {"word": 2}):
                task.emit(word)

        def read() -> tuple[list[object], list[object], list[str]]:
            with SyncScheduler(config) as sync:
                task_id = sync.create_task({})
                parts = list(sync.stream(task_id))
                later = [part.data for part in sync.stream(task_id, after=parts[0].id)]
                with pytest.raises(InvalidValueError):
                    next(sync.stream(task_id, after="x"))
                return [part.data for part in parts], later, [line.text for line in sync.logs(task_id, follow=True)]

        await scheduler.start()
        found = await anyio.to_thread.run_sync(read)
        assert found == ([{"word": 1}, {"word": 2}], [{"word": 2}], ["begins"])


@pytest.fixture
async def worker(config: TaskBackoffConfig) -> AsyncIterator[TaskBackoffScheduler]:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.task
    def double(n: int, *, times: int = 2) -> int:
        if n < 0:
            raise ValueError("negative")
        task = current_task()
        assert task is not None
        sync.update_task_progress(task.task_id, 50, "from a blocking call of the handler")
        return n * times

    @scheduler.task
    async def plain(task: TaskEntity) -> str:
        task.emit({"word": 1})
        return task.task_id

    sync = SyncScheduler(scheduler)
    scheduler.double, scheduler.plain = double, plain  # type: ignore[attr-defined] - for the tests alone
    async with scheduler:
        yield scheduler
    await anyio.to_thread.run_sync(sync.close)


@pytest.mark.anyio
async def test_kinds_create_tasks_and_give_typed_results(worker: Any) -> None:
    sync = SyncScheduler(worker)

    def calls() -> None:
        double = sync.kind(worker.double)
        handle = double.create(4, times=3)
        assert handle.result(timeout=20) == 12
        assert handle.status() is TaskStatus.COMPLETED and handle.task().progress_message == (
            "from a blocking call of the handler"
        )
        handles = double.create_many(double.spec(n) for n in range(3))
        assert [one.result(timedelta(seconds=20)) for one in handles] == [0, 2, 4]
        assert double.handle(handle.task_id).result() == 12
        named = double.options(task_id="named", delay=3600).create(1)
        assert (named.task_id, named.cancel()) == ("named", True)
        with pytest.raises(TaskFailedError):
            named.result()
        emits = sync.kind("plain").create()
        assert [part.data for part in emits.stream()] == [{"word": 1}] and emits.result(20)
        assert repr(double) == "<kind 'double'>" and double.name == "double"
        assert repr(named) == "<SyncTaskHandle of 'named'>"
        with pytest.raises(PayloadError):
            double.create("4")  # type: ignore[arg-type] - wrong on purpose

    await anyio.to_thread.run_sync(in_a_thread, calls)
    assert worker.health().ready, "the worker of another event loop goes on"
    await anyio.to_thread.run_sync(sync.close)
    assert worker.health().ready


def test_a_handle_has_all_calls_of_the_one_that_is_awaited() -> None:
    assert {name for name in vars(TaskHandle) if name[0] != "_"} <= set(dir(SyncTaskHandle))


def test_a_kind_of_another_scheduler_is_refused(config: TaskBackoffConfig) -> None:
    one, other = TaskBackoffScheduler(config), TaskBackoffScheduler(config)

    @one.task
    def render(prompt: str) -> str:
        return prompt

    with pytest.raises(InvalidValueError, match="expected the name of a declared kind"):
        SyncScheduler(config).kind(render)

    @other.task(name="render")
    def second(prompt: str) -> str:
        return prompt

    with pytest.raises(InvalidValueError, match="a kind of the scheduler that SyncScheduler was made of"):
        SyncScheduler(other).kind(render)


@pytest.mark.anyio
async def test_a_worker_is_not_disconnected(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(lambda task: None)
    async with scheduler:
        with pytest.raises(EventLoopError, match="disconnect: the worker runs in this event loop"):
            await scheduler.disconnect()
