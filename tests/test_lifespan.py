"""A worker_lifespan is entered and left in one task, and what it starts in the background runs as long as it lives."""

import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path

import anyio
import handlers_for_children as handlers
import psutil
import pytest
from support import eventually

from maas_backoff import HandlerError, TaskBackoffScheduler, TaskEntity

pytestmark = [pytest.mark.anyio, pytest.mark.blocks]

request: ContextVar[str] = ContextVar("request", default="none")


class Background:
    """A lifespan with a task group around its `yield`."""

    def __init__(self) -> None:
        self.ticks = 0
        self.events: list[str] = []
        self.fails = anyio.Event()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator["Background"]:
        self.events.append(f"entered, request {request.get()}")
        async with anyio.create_task_group() as group:
            group.start_soon(self._tick)
            group.start_soon(self._fail)
            with anyio.CancelScope():
                yield self
            group.cancel_scope.cancel()
        self.events.append("left")

    async def _tick(self) -> None:
        while True:
            self.ticks += 1
            await anyio.sleep(0.01)

    async def _fail(self) -> None:
        await self.fails.wait()
        raise ConnectionError("the pool is broken")


async def handle(task: TaskEntity, background: Background) -> int:
    return background.ticks


def handle_in_thread(task: TaskEntity, background: Background) -> int:
    return background.ticks


@pytest.mark.parametrize("handler", [handle, handle_in_thread])
async def test_a_task_group_around_the_yield(scheduler: TaskBackoffScheduler, handler: object) -> None:
    """It is left by the task that has entered it, and the caller of start() is not to be seen in it."""
    background = Background()
    scheduler.set_custom_task_handler(handler)  # type: ignore[type-var] - one of two functions
    scheduler.set_worker_lifespan(background.lifespan)
    request.set("of a user")
    async with scheduler:
        first = (await scheduler.wait_task(await scheduler.create_task({}), 20)).result
        await eventually(lambda: background.ticks > first, "it runs between tasks")
        assert scheduler.health().ready
    assert background.events == ["entered, request none", "left"]


async def test_a_lifespan_that_ends_by_itself_ends_the_worker(
    scheduler: TaskBackoffScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    """The value that its handlers need is gone: the worker is not ready, logs the cause, and shutdown raises it."""
    background = Background()
    scheduler.set_custom_task_handler(handle)
    scheduler.set_worker_lifespan(background.lifespan)
    await scheduler.start()
    background.fails.set()
    await eventually(lambda: not scheduler.health().ready, "it is not ready")
    with pytest.raises(HandlerError, match="worker_lifespan: it ended by itself"):
        await scheduler.shutdown()
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert record.exc_text is not None and "the pool is broken" in record.exc_text


async def test_a_lifespan_that_fails_keeps_the_worker_from_starting(scheduler: TaskBackoffScheduler) -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise FileNotFoundError("model.bin")
        yield

    scheduler.set_custom_task_handler(handle)
    scheduler.set_worker_lifespan(broken)
    with pytest.raises(FileNotFoundError, match=r"model\.bin"):
        await scheduler.start()


async def test_a_start_that_is_cancelled_leaves_what_it_has_entered(scheduler: TaskBackoffScheduler) -> None:
    events: list[str] = []
    entering = anyio.Event()

    @asynccontextmanager
    async def slow() -> AsyncIterator[None]:
        try:
            entering.set()
            await anyio.sleep(60)
            yield
        finally:
            events.append("left")

    scheduler.set_custom_task_handler(handle)
    scheduler.set_worker_lifespan(slow)
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.start)
        await entering.wait()
        group.cancel_scope.cancel()
    assert events == ["left"]


async def test_a_plain_lifespan_has_one_thread_and_one_context(scheduler: TaskBackoffScheduler) -> None:
    """A context variable can be reset where it was set only; other things belong to their thread."""
    threads: list[int] = []

    @contextmanager
    def lifespan() -> Iterator[Background]:
        token = request.set("mine")
        threads.append(threading.get_ident())
        yield Background()
        threads.append(threading.get_ident())
        request.reset(token)

    scheduler.set_custom_task_handler(handle)
    scheduler.set_worker_lifespan(lifespan)
    async with scheduler:
        assert (await scheduler.wait_task(await scheduler.create_task({}), 20)).result == 0
    assert len(threads) == 2
    assert threads[0] == threads[1]


@pytest.mark.parametrize("handler", [handlers.ticks, handlers.ticks_on_a_loop])
async def test_in_a_child(scheduler: TaskBackoffScheduler, handler: object, tmp_path: Path) -> None:
    """The background runs while no task does; a plain handler may run a loop of its own; it is left in one task."""
    scheduler.config.threadpool.proc_mode = "process"
    scheduler.config.threadpool.concurrency = 1
    scheduler.set_custom_task_handler(handler)  # type: ignore[type-var] - one of two functions
    scheduler.set_worker_lifespan(handlers.ticking)
    left = tmp_path / "left"

    async def ticks() -> int:
        task = await scheduler.wait_task(await scheduler.create_task({"file": str(left)}), 20)
        assert task.error is None, task.error
        result: int = task.result
        return result

    async with scheduler:
        first = await ticks()
        await anyio.sleep(0.1)  # what the background has between two tasks
        assert await ticks() > first + 2
    assert left.read_text() == "left"


async def test_a_lifespan_that_ends_by_itself_ends_its_child(scheduler: TaskBackoffScheduler) -> None:
    """The next task gets another child, with a lifespan of its own."""
    scheduler.config.threadpool.proc_mode = "process"
    scheduler.config.threadpool.concurrency = 1
    scheduler.set_custom_task_handler(handlers.breaks)
    scheduler.set_worker_lifespan(handlers.ticking)
    async with scheduler:
        pids: set[int] = set()
        for _ in range(3):
            pid = (await scheduler.wait_task(await scheduler.create_task({}), 20)).result
            await eventually(lambda pid=pid: not psutil.pid_exists(pid), "it has ended")
            pids.add(pid)
        assert len(pids) == 3
        assert scheduler.health().ready


async def test_a_lifespan_that_leaves_its_folder_costs_no_task(scheduler: TaskBackoffScheduler) -> None:
    """Each call after the first begins where the child was started."""
    scheduler.config.threadpool.proc_mode = "process"
    scheduler.config.threadpool.concurrency = 1
    scheduler.set_custom_task_handler(handlers.where)
    scheduler.set_worker_lifespan(handlers.in_a_folder_that_goes)
    async with scheduler:
        found = [(await scheduler.wait_task(await scheduler.create_task({}), 20)).result for _ in range(2)]
    assert found == ["nowhere", str(Path.cwd())]
