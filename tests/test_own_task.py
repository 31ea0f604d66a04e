"""Each call of users' code has an asyncio task and a context of its own: nothing goes over to the next one."""

import asyncio
import contextvars
import functools
import threading
from collections.abc import Awaitable, Callable

import anyio
import pytest
from support import eventually

from maas_backoff import HandlerError, ResultEntity, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, current_task

pytestmark = pytest.mark.anyio

tenant = contextvars.ContextVar("tenant", default="nobody")


def mine() -> "asyncio.Task[object]":
    task = asyncio.current_task()
    assert task is not None
    return task


async def late_timer() -> None:
    asyncio.get_running_loop().call_later(0.05, mine().cancel)


async def cancel_at_the_end() -> None:
    mine().cancel()


async def watchdog() -> None:
    handler = mine()

    async def watch() -> None:
        await asyncio.sleep(0.05)
        handler.cancel()

    background.add(asyncio.create_task(watch()))


async def swallowed_then_group() -> None:
    """Python 3.13 cancels the task once more when the group fails."""
    mine().cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.sleep(1)

    async def fails() -> None:
        raise ValueError("x")

    async with asyncio.TaskGroup() as group:
        group.create_task(fails())
        await asyncio.sleep(1)


background: set["asyncio.Task[None]"] = set()


@pytest.mark.parametrize("leaves", [late_timer, cancel_at_the_end, watchdog, swallowed_then_group])
async def test_a_cancel_that_a_handler_leaves_behind_meets_no_other_task(
    config: TaskBackoffConfig, leaves: Callable[[], Awaitable[None]]
) -> None:
    config.threadpool.concurrency = 1
    config.task.max_retry_count = 0
    scheduler = TaskBackoffScheduler(config)
    cancelled = asyncio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        if task.task_params.get("bad"):
            mine().add_done_callback(lambda _: cancelled.set())
            await leaves()
        return "fine"

    async with scheduler:
        assert (await scheduler.wait_task(await scheduler.create_task({"bad": True}), timeout=20)).status.finished
        await cancelled.wait()
        ids = await scheduler.create_tasks({"n": n} for n in range(20))
        for task_id in ids:
            assert (await scheduler.wait_task(task_id, timeout=20)).status == "completed"
        assert scheduler.health().ready


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_context_variables_are_those_of_one_call(scheduler: TaskBackoffScheduler, kind: str) -> None:
    seen: list[tuple[str, str | None]] = []

    def body(task: TaskEntity) -> None:
        current = current_task()
        seen.append((tenant.get(), current and current.task_id))
        tenant.set(task.task_id)
        raise ValueError("for the exception handler")

    if kind == "async def":

        @scheduler.set_custom_task_handler
        async def handle(task: TaskEntity) -> None:
            body(task)

        @scheduler.set_custom_task_exception_handler
        async def on_exception(task: TaskEntity) -> None:
            with pytest.raises(ValueError, match="for"):
                body(task)
    else:

        @scheduler.set_custom_task_handler
        def handle_in_thread(task: TaskEntity) -> None:
            body(task)

    tenant.set("whoever started the worker")
    scheduler.config.task.max_retry_count = 1
    async with scheduler:
        for task_id in ("a", "b"):
            await scheduler.create_task({}, task_id)
            await scheduler.wait_task(task_id, timeout=20)
    calls = 4 if kind == "async def" else 2
    assert seen == [("nobody", task_id) for task_id in ("a", "b") for _ in range(calls)]


async def test_asyncio_tasks_are_those_of_one_call(scheduler: TaskBackoffScheduler) -> None:
    """Libraries keep things by current_task(), such as a session: another task does not meet them."""
    tasks: list[object] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        tasks.append(mine())

    async with scheduler:
        for _ in range(5):
            await scheduler.wait_task(await scheduler.create_task({}), timeout=20)
    assert len(set(map(id, tasks))) == 5


async def test_a_handler_that_cancels_every_asyncio_task_loses_none_of_the_queue(config: TaskBackoffConfig) -> None:
    """Attempts that are cancelled before they have begun come back; the worker says what ended it, if that did."""
    config.threadpool.concurrency = 5
    scheduler = TaskBackoffScheduler(config)
    attempts = {"maas-backoff-attempt"}

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        if task.task_params.get("bad") and task.attempt == 1:
            for one in asyncio.all_tasks():
                if one.get_name() in attempts:
                    one.cancel()
            await anyio.sleep(10)
        return "fine"

    ids = await scheduler.create_tasks([{"bad": True}, *({"n": n} for n in range(4))])
    async with scheduler:
        for task_id in ids:
            assert (await scheduler.wait_task(task_id, timeout=30)).result == "fine"


async def test_an_exception_handler_may_await_a_cancelled_task(config: TaskBackoffConfig) -> None:
    config.task.max_retry_count = 0
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        if task.task_params.get("bad"):
            raise ValueError("x")
        return "fine"

    @scheduler.set_custom_task_exception_handler
    async def on_exception(task: TaskEntity) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(10))
        inner.cancel()
        await inner

    async with scheduler:
        assert (await scheduler.wait_task(await scheduler.create_task({"bad": True}), timeout=20)).status == "failed"
        assert (await scheduler.wait_task(await scheduler.create_task({}), timeout=20)).result == "fine"


async def test_an_exception_handler_takes_its_time_after_a_handler_that_awaits_nothing(
    scheduler: TaskBackoffScheduler,
) -> None:
    """An eager task has ended before its attempt knows of it: that is no attempt which was cancelled unbegun."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        raise ValueError("x")

    @scheduler.set_custom_task_exception_handler
    async def on_exception(task: TaskEntity) -> ResultEntity:
        await anyio.sleep(scheduler.config.scheduler.lease / 2)  # the sweep is every third of a lease
        return ResultEntity.ok("fallback")

    async with scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}, max_retry_count=0), timeout=20)
    assert (task.status, task.result) == ("completed", "fallback")


# How a call is cancelled


async def test_a_shielded_part_ends_before_the_timeout_is_felt(scheduler: TaskBackoffScheduler) -> None:
    parts: list[str] = []
    release = threading.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        if task.task_id == "thread":
            await anyio.to_thread.run_sync(release.wait)
        else:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)
        parts.append(task.task_id)
        try:
            await anyio.sleep(60)
        finally:
            parts.append(f"{task.task_id} stopped")

    async with scheduler:
        for task_id in ("scope", "thread"):
            await scheduler.create_task({}, task_id, exec_timeout=0.1, max_retry_count=0)
        assert str((await scheduler.wait_task("scope", timeout=20)).error) == "timeout: stopped after 0.1 s"
        release.set()
        assert str((await scheduler.wait_task("thread", timeout=20)).error) == "timeout: stopped after 0.1 s"
    assert parts == ["scope", "scope stopped", "thread", "thread stopped"]


async def test_a_handler_that_swallows_its_cancel_is_stopped_at_its_next_wait(scheduler: TaskBackoffScheduler) -> None:
    swallowed: list[int] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        for n in range(5):
            try:
                await anyio.sleep(60)
            except BaseException:
                swallowed.append(n)
        await anyio.sleep(60)

    async with scheduler:
        task_id = await scheduler.create_task({}, exec_timeout=0.1, max_retry_count=0)
        assert str((await scheduler.wait_task(task_id, timeout=20)).error) == "timeout: stopped after 0.1 s"
    assert swallowed == [0, 1, 2, 3, 4]


# Forms of handlers


def plainly_decorated(function: Callable[[TaskEntity], object]) -> Callable[[TaskEntity], object]:
    @functools.wraps(function)
    def wrapper(task: TaskEntity) -> object:
        return function(task)

    return wrapper


async def test_async_def_behind_a_plain_decorator_is_awaited_and_can_be_stopped(
    scheduler: TaskBackoffScheduler,
) -> None:
    @scheduler.set_custom_task_handler
    @plainly_decorated
    async def handle(task: TaskEntity) -> bool:
        await anyio.sleep(task.task_params.get("seconds", 0))
        return threading.current_thread() is threading.main_thread()

    @scheduler.set_custom_task_exception_handler
    @plainly_decorated
    async def on_exception(task: TaskEntity) -> None:
        told.append(str(task.error))

    told: list[str] = []
    async with scheduler:
        assert (await scheduler.wait_task(await scheduler.create_task({}), timeout=20)).result is True
        late = await scheduler.create_task({"seconds": 60}, exec_timeout=0.1, max_retry_count=0)
        assert (await scheduler.wait_task(late, timeout=20)).status == "failed"
        await eventually(lambda: told == ["timeout: stopped after 0.1 s"], "the exception handler was awaited")


async def alone(task: TaskEntity) -> None: ...


async def with_model(task: TaskEntity, model: object) -> None: ...


def with_default(task: TaskEntity, model: object = None) -> None: ...


async def nothing() -> None: ...


def add(x: int, y: int, z: int) -> int:
    return x + y + z


async def streams(task: TaskEntity) -> object:
    yield 1


@pytest.mark.parametrize("handler", [nothing, add, streams])
async def test_a_handler_that_can_never_be_called_is_refused_when_it_is_set(
    scheduler: TaskBackoffScheduler, handler: Callable[..., object]
) -> None:
    with pytest.raises(HandlerError, match=rf"handler: {handler.__name__}"):
        scheduler.set_custom_task_handler(handler)
    with pytest.raises(HandlerError, match=rf"exception handler: {handler.__name__}"):
        scheduler.set_custom_task_exception_handler(handler)
    assert not scheduler.has_handler


@pytest.mark.parametrize(
    ("handler", "lifespan", "good"),
    [
        (alone, False, True),
        (alone, True, False),
        (with_model, False, False),
        (with_model, True, True),
        (with_default, False, True),
        (with_default, True, True),
    ],
)
async def test_a_handler_takes_what_the_lifespan_yields_or_is_refused_at_the_start(
    scheduler: TaskBackoffScheduler, handler: Callable[..., object], lifespan: bool, good: bool
) -> None:
    from contextlib import contextmanager

    @contextmanager
    def loads() -> object:
        yield "model"

    scheduler.set_custom_task_handler(handler)
    if lifespan:
        scheduler.set_worker_lifespan(loads)  # type: ignore[arg-type] - what contextmanager gives is a function of no arguments
    if good:
        async with scheduler:
            task = await scheduler.wait_task(await scheduler.create_task({}), timeout=20)
            assert task.status == "completed"
    else:
        with pytest.raises(HandlerError, match="cannot be called with the task"):
            await scheduler.start()


def test_a_lifespan_with_parameters_is_refused(config: TaskBackoffConfig) -> None:
    with pytest.raises(HandlerError, match="worker_lifespan: add"):
        TaskBackoffScheduler(config).set_worker_lifespan(add)  # type: ignore[type-var] - wrong on purpose
