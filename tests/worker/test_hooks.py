"""Hooks around each attempt: on the event loop, in threads and in children; their errors lose nothing."""

import asyncio
import contextvars
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import handlers_for_children as children
import pytest

from maas_backoff import (
    HandlerError,
    Retry,
    Snooze,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskStatus,
    current_task,
)
from maas_backoff.testing import SimulatedScheduler
from maas_backoff.worker.executors.hooks import hooked

pytestmark = pytest.mark.anyio

AWAITED = children.notes_its_call_and_awaits
PLAIN = children.notes_its_call
long = pytest.mark.long


@pytest.mark.parametrize(
    ("mode", "handler", "hook"),
    [
        pytest.param("thread", PLAIN, children.notes_each_attempt, id="thread"),
        pytest.param("thread", AWAITED, children.notes_each_attempt, id="loop"),
        pytest.param("thread", AWAITED, children.awaited_around_each_attempt, id="loop, awaited"),
        pytest.param("process", PLAIN, children.notes_each_attempt, id="child"),
        pytest.param("process", AWAITED, children.notes_each_attempt, id="coroutine in a child", marks=long),
        pytest.param("process", AWAITED, children.awaited_around_each_attempt, id="child, awaited", marks=long),
    ],
)
@pytest.mark.blocks
async def test_a_hook_is_around_each_attempt_where_the_handler_runs(
    config: TaskBackoffConfig, tmp_path: Path, mode: Any, handler: Any, hook: Any
) -> None:
    config.threadpool.proc_mode = mode
    scheduler = TaskBackoffScheduler(config)
    assert scheduler.around_attempt(hook) is hook
    scheduler.set_custom_task_handler(handler)
    file = tmp_path / "notes"
    async with scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({"file": str(file)}), timeout=40)
    assert (task.status, task.retry_count, str(task.attempts[0].error)) == (
        TaskStatus.COMPLETED,
        1,
        "ValueError: the first time",
    )
    began = f"begins {task.result}"
    assert file.read_text().splitlines()[0] == began or mode == "process"
    assert file.read_text().splitlines()[1:] == ["handler", "failed: the first time", began, "handler", "ended"]


async def test_hooks_are_nested_and_share_the_context_of_the_handler(scheduler: TaskBackoffScheduler) -> None:
    seen: list[object] = []
    value = contextvars.ContextVar("value", default="none")

    @scheduler.around_attempt
    @contextmanager
    def outer(task: TaskEntity) -> Iterator[None]:
        value.set("of the hook")
        seen.append("outer")
        yield
        seen.append("outer ends")

    @scheduler.around_attempt
    @contextmanager
    def inner(task: TaskEntity) -> Iterator[None]:
        assert current_task() is task
        seen.append(threading.current_thread())
        yield
        seen.append("inner ends")

    @scheduler.task
    def render(prompt: str) -> str:
        seen.append(threading.current_thread())
        return value.get()

    async with scheduler:
        assert await (await render.create("a cat")).result(20) == "of the hook"
    assert seen[1] is seen[2] is not threading.current_thread()
    assert [seen[0], *seen[3:]] == ["outer", "inner ends", "outer ends"]


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_hook_that_fails_first_fails_the_attempt(scheduler: TaskBackoffScheduler, is_async: bool) -> None:
    """Also as a signal of a handler; hooks outside of it are left."""
    seen: list[object] = []
    errors: list[BaseException] = [OSError("no connection"), Retry(after=0), Snooze(after=0), SystemExit(3)]

    @scheduler.around_attempt
    @contextmanager
    def outer(task: TaskEntity) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(type(error))
            raise

    @scheduler.around_attempt
    @contextmanager
    def fails(task: TaskEntity) -> Iterator[None]:
        if task.attempt <= len(errors):
            raise errors[task.attempt - 1]
        yield

    async def awaited(task: TaskEntity) -> int:
        return task.attempt

    def plain(task: TaskEntity) -> int:
        return task.attempt

    scheduler.set_custom_task_handler(awaited if is_async else plain)
    async with scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}), timeout=20)
    assert (task.result, task.retry_count, task.snooze_count) == (5, 3, 1)
    assert seen == [OSError, Retry, Snooze, SystemExit]
    assert "in the hook " in task.attempts[0].traceback and "fails of around_attempt" in task.attempts[0].traceback


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_hook_that_fails_last_or_hides_an_error_changes_no_outcome(
    scheduler: TaskBackoffScheduler, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    @scheduler.around_attempt
    @contextmanager
    def hides(task: TaskEntity) -> Iterator[None]:
        with suppress(ValueError):
            yield

    @scheduler.around_attempt
    @contextmanager
    def fails_last(task: TaskEntity) -> Iterator[None]:
        try:
            yield
        finally:
            raise OSError("no connection to the metrics")

    async def awaited(task: TaskEntity) -> str:
        return plain(task)

    def plain(task: TaskEntity) -> str:
        if task.task_id == "fails":
            raise ValueError("no")
        return "done"

    scheduler.set_custom_task_handler(awaited if is_async else plain)
    async with scheduler:
        await scheduler.create_task({}, "completes")
        await scheduler.create_task({}, "fails", max_retry_count=0)
        done = await scheduler.wait_task("completes", timeout=20)
        failed = await scheduler.wait_task("fails", timeout=20)
    assert (done.result, str(failed.error)) == ("done", "ValueError: no")
    told = [record for record in caplog.records if vars(record).get("event") == "hook_failed"]
    assert {(record.levelno, vars(record)["task_id"]) for record in told} == {
        (logging.ERROR, "completes"),
        (logging.ERROR, "fails"),
    }
    assert "fails_last failed after the handler had ended" in told[0].getMessage()
    assert told[0].exc_info and "no connection to the metrics" in str(told[0].exc_info[1])


async def test_a_timeout_reaches_a_hook_that_is_awaited(scheduler: TaskBackoffScheduler) -> None:
    seen: list[str] = []

    @scheduler.around_attempt
    @asynccontextmanager
    async def around(task: TaskEntity) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            seen.append("cancelled in the handler")  # and hidden, which changes nothing
        if task.task_id == "slow hook":
            await asyncio.sleep(60)

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        if task.task_id == "slow handler":
            await asyncio.sleep(60)

    async with scheduler:
        for name in ("slow handler", "slow hook"):
            await scheduler.create_task({}, name, exec_timeout=0.2, max_retry_count=0)
            task = await scheduler.wait_task(name, timeout=20)
            assert task.error is not None and task.error.type == "timeout"
    assert seen == ["cancelled in the handler"]


async def test_a_coroutine_behind_a_plain_decorator_is_awaited_inside(scheduler: TaskBackoffScheduler) -> None:
    seen: list[str] = []

    def decorated(function: Callable[[TaskEntity], Any]) -> Callable[[TaskEntity], Any]:
        @wraps(function)
        def call(task: TaskEntity) -> Any:
            return function(task)

        return call

    @scheduler.around_attempt
    @contextmanager
    def around(task: TaskEntity) -> Iterator[None]:
        try:
            yield
        finally:
            seen.append("ends")

    @scheduler.set_custom_task_handler
    @decorated
    async def handle(task: TaskEntity) -> str:
        await asyncio.sleep(0)
        seen.append("handler")
        if task.attempt == 1:
            raise ValueError("the first time")
        return "done"

    async with scheduler:
        assert (await scheduler.wait_task(await scheduler.create_task({}), timeout=20)).result == "done"
    assert seen == ["handler", "ends"] * 2


async def test_a_simulated_scheduler_has_the_hooks_of_another_one(config: TaskBackoffConfig) -> None:
    real, seen = TaskBackoffScheduler(config), list[str]()

    @real.around_attempt
    @contextmanager
    def around(task: TaskEntity) -> Iterator[None]:
        seen.append(task.kind)
        yield

    @real.task
    async def render(prompt: str) -> str:
        return prompt

    async with SimulatedScheduler(kinds_of=real) as simulated:
        await render.create("a cat")
        await simulated.drain()
    assert seen == ["render"]


async def test_without_a_hook_the_handler_is_called_itself() -> None:
    assert hooked(children.sleeps, ()) is children.sleeps


# Refusals


def yields(task: TaskEntity) -> Iterator[None]:
    yield


async def yields_awaited(task: TaskEntity) -> AsyncIterator[None]:
    yield


async def never_yields(task: TaskEntity) -> None: ...


@pytest.mark.parametrize(
    ("hook", "why"),
    [
        (never_yields, "never_yields is `async def` without a yield; let the hook yield once"),
        (5, "expected a function, got int"),
        (yields, "yields yields; put @contextmanager below @around_attempt"),
        (yields_awaited, "yields_awaited yields; put @asynccontextmanager below @around_attempt"),
        (contextmanager(lambda: iter([None])), "cannot be called with the task alone"),
    ],
)
async def test_a_hook_that_cannot_be_used_is_refused(scheduler: TaskBackoffScheduler, hook: Any, why: str) -> None:
    with pytest.raises(HandlerError, match="around_attempt: ") as caught:
        scheduler.around_attempt(hook)
    assert why in str(caught.value)


async def test_a_hook_that_no_child_would_find_is_refused(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"

    @contextmanager
    def local(task: TaskEntity) -> Iterator[None]:
        yield

    with pytest.raises(HandlerError, match="exists only inside the function that made it"):
        TaskBackoffScheduler(config).around_attempt(local)


async def test_a_hook_is_not_set_while_the_worker_runs(scheduler: TaskBackoffScheduler) -> None:
    scheduler.set_custom_task_handler(children.reports)
    async with scheduler:
        with pytest.raises(HandlerError, match="around_attempt: set it before start"):
            scheduler.around_attempt(children.notes_each_attempt)


async def test_an_awaited_hook_is_refused_around_a_plain_handler(scheduler: TaskBackoffScheduler) -> None:
    scheduler.around_attempt(children.awaited_around_each_attempt)
    scheduler.set_custom_task_handler(children.reports)
    with pytest.raises(HandlerError, match="awaited_around_each_attempt is awaited, and reports is not `async def`"):
        await scheduler.start()


@pytest.mark.parametrize("returns", ["a manager that is awaited", None])
async def test_a_wrong_manager_fails_the_attempt(scheduler: TaskBackoffScheduler, returns: str | None) -> None:
    def hook(task: TaskEntity) -> Any:
        return returns and children.awaited_around_each_attempt(task)

    scheduler.around_attempt(hook)
    scheduler.set_custom_task_handler(children.reports)
    async with scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({"file": "x"}, max_retry_count=0), timeout=20)
    assert task.error is not None and task.error.type == "HandlerError"
    assert (
        "use @contextmanager for the hook" in task.error.message
        or "returned NoneType, which is no context manager; let the hook yield once" in task.error.message
    )
