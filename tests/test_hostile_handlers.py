"""Whatever a handler does, its task fails, its siblings complete, and the worker lives."""

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import anyio
import anyio.lowlevel
import pytest
from support import Server, eventually

from maas_backoff import (
    Discard,
    HandlerError,
    InvalidValueError,
    ResultEntity,
    Retry,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
)
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.loops import timeouts
from maas_backoff.worker.loops.timeouts import LATE, MOST_DELAY

pytestmark = pytest.mark.anyio


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await anyio.sleep(10)


async def awaits_a_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(10))
    task.cancel()
    await task


async def closes_the_loop() -> None:
    asyncio.get_running_loop().close()


def recurse() -> None:
    recurse()


def raiser(error: BaseException) -> Callable[[], object]:
    def raise_it() -> object:
        raise error

    return raise_it


def raise_(error: BaseException) -> object:
    raise error


class Rude(dict):  # type: ignore[type-arg] - of no matter what
    def items(self) -> object:
        raise RuntimeError("no items")

    keys = values = __iter__ = items


async def _coroutine() -> None: ...


async def _generator() -> object:
    yield 1


MISCHIEF: dict[str, Callable[[], object]] = {
    "SystemExit": raiser(SystemExit(1)),
    "KeyboardInterrupt": raiser(KeyboardInterrupt()),
    "CancelledError": raiser(asyncio.CancelledError()),
    "GeneratorExit": raiser(GeneratorExit()),
    "ExceptionGroup": raiser(ExceptionGroup("two", [ValueError(), KeyError()])),
    "BaseExceptionGroup": raiser(BaseExceptionGroup("two", [ValueError(), KeyboardInterrupt()])),
    "StopIteration": raiser(StopIteration()),
    "StopAsyncIteration": raiser(StopAsyncIteration()),
    "TimeoutError": raiser(TimeoutError()),
    "MemoryError": raiser(MemoryError()),
    "RecursionError": recurse,
    "Hostile": raiser(Hostile()),
    "ten megabytes of text": raiser(ValueError("x" * 10_000_000)),
    "a surrogate": raiser(ValueError("\ud800")),
    "an object": object,
    "a huge result": lambda: "x" * 2_000_000,
    "an async generator": _generator,
    "not a number": lambda: float("nan"),
}
MISCHIEF |= {
    "a failure with an exception for a message": lambda: ResultEntity.fail(500, ValueError("x")),  # type: ignore[arg-type] - wrong on purpose
    "a failure with a code that is none": lambda: ResultEntity.fail(object(), None),  # type: ignore[arg-type] - wrong on purpose
    "discarded with an exception": lambda: raise_(Discard(ValueError("x"))),  # type: ignore[arg-type] - wrong on purpose
    "a retry with a number for a reason": lambda: raise_(Retry(1, reason=5)),  # type: ignore[arg-type] - wrong on purpose
    "a dict that raises": lambda: Rude(a=1),
}
LOOP_MISCHIEF = {
    "cancels itself": cancels_itself,
    "awaits a cancelled task": awaits_a_cancelled_task,
    "closes the loop": closes_the_loop,
}


@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_mischief_fails_its_own_task_only(scheduler: TaskBackoffScheduler, kind: str) -> None:
    if kind == "async def":

        @scheduler.set_custom_task_handler
        async def handler(task: TaskEntity) -> object:
            await anyio.lowlevel.checkpoint()
            name = task.task_params.get("mischief", "")
            if name == "a coroutine":  # what `def` returns is awaited, and what that gives is not
                return _coroutine()
            if name in LOOP_MISCHIEF:
                return await LOOP_MISCHIEF[name]()
            return MISCHIEF[name]() if name else "fine"

        names = [*MISCHIEF, *LOOP_MISCHIEF, "a coroutine"]
    else:

        @scheduler.set_custom_task_handler
        def threaded(task: TaskEntity) -> object:
            name = task.task_params.get("mischief", "")
            return MISCHIEF[name]() if name else "fine"

        names = list(MISCHIEF)

    async with scheduler:
        await scheduler.create_tasks(TaskSpec({"mischief": name}, name, max_retry_count=0) for name in names)
        await scheduler.create_tasks(TaskSpec({}, f"sibling-{n}") for n in range(30))
        for name in names:
            task = await scheduler.wait_task(name, timeout=20)
            assert task.status == "failed", name
            assert task.error is not None
            assert len(task.error.message.encode()) <= 8192
        for n in range(30):
            assert (await scheduler.wait_task(f"sibling-{n}", timeout=20)).result == "fine"


async def test_a_busy_event_loop_does_not_put_off_a_timeout_for_many_turns() -> None:
    """It is late already. What has come meanwhile has a turn or two; twenty would take seconds."""
    stopped, turns = asyncio.Event(), 0
    deadlines = Deadlines(by_lease=False)
    deadlines.watch(time.monotonic() - 2 * LATE)
    with mock.patch.object(Deadlines, "stop_overdue", side_effect=lambda *_: stopped.set()):
        slots: Any = SimpleNamespace(attempts={})
        loop = asyncio.create_task(timeouts.run(deadlines, slots))
        while not stopped.is_set():
            turns += 1
            until = time.monotonic() + 1.5 * MOST_DELAY
            while time.monotonic() < until:
                pass
            await asyncio.sleep(0)
        loop.cancel()
    assert turns < 8


async def test_slips_outside_the_result_cost_only_their_task(config: TaskBackoffConfig) -> None:
    """A progress message that is no text, a backoff that gives nonsense, an exception handler that exits."""
    config.task.backoff_strategy = lambda retry: [float("nan"), None, "soon"][retry - 1]  # type: ignore[assignment,return-value] - wrong on purpose
    config.task.max_backoff_interval = 0.01
    scheduler = TaskBackoffScheduler(config)
    refused: list[object] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        for message in ("\ud800", object(), b"x", 5):
            with pytest.raises(InvalidValueError, match="message: expected None, or text"):
                task.update_progress(5, message)  # type: ignore[arg-type] - wrong on purpose
            refused.append(message)
        if task.task_id == "stops":
            await scheduler.shutdown()
        if task.task_id != "fine":
            raise ValueError
        return "fine"

    @scheduler.set_custom_task_exception_handler
    def on_exception(task: TaskEntity) -> object:
        raise KeyboardInterrupt

    async with scheduler:
        await scheduler.create_tasks(TaskSpec({}, name) for name in ("backs off", "stops", "fine"))
        assert (await scheduler.wait_task("fine", timeout=20)).result == "fine"
        tired = await scheduler.wait_task("backs off", timeout=20)
        assert (tired.status, tired.attempt) == ("failed", 4)
        stops = await scheduler.wait_task("stops", timeout=20)
        assert stops.error is not None
        assert stops.error.type == HandlerError.__name__
        assert scheduler.health().ready
    assert len(refused) == 4 * 9


async def test_a_permanent_failure_is_not_retried(scheduler: TaskBackoffScheduler) -> None:
    scheduler.set_custom_task_handler(lambda task: object())
    async with scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}), timeout=20)
    assert (task.attempt, task.error and task.error.type) == (1, "not_serializable")


async def test_the_forms_a_handler_may_have(scheduler: TaskBackoffScheduler) -> None:
    """A method, a partial, a callable object, each `async def` or `def`."""

    class Model:
        async def run(self, task: TaskEntity) -> str:
            return "async method"

        async def __call__(self, task: TaskEntity) -> str:
            return "async object"

        def sync(self, suffix: str, task: TaskEntity) -> str:
            return f"{threading.current_thread() is threading.main_thread()} {suffix}"

    forms: list[tuple[Callable[[TaskEntity], object], str]] = [
        (Model().run, "async method"),
        (functools.partial(Model.run, None), "async method"),  # type: ignore[arg-type] - wrong on purpose
        (Model(), "async object"),
        (functools.partial(Model().sync, "partial"), "False partial"),
    ]
    for number, (handler, result) in enumerate(forms):
        scheduler.set_custom_task_handler(handler)
        async with scheduler:
            assert (await scheduler.wait_task(await scheduler.create_task({"n": number}), timeout=20)).result == result


async def test_timeouts(scheduler: TaskBackoffScheduler) -> None:
    """Ours is told from the handler's own; one that finishes in spite of it has finished."""

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> object:
        match task.task_id:
            case "sleeps":
                await anyio.sleep(60)
            case "own":
                with anyio.fail_after(0.01):
                    await anyio.sleep(60)
            case "turns":
                try:
                    await anyio.sleep(60)
                except BaseException as error:
                    raise ValueError("turned") from error
            case "swallows":
                try:
                    await anyio.sleep(60)
                except BaseException:
                    return "in time"
        return None

    names = ["sleeps", "own", "turns", "swallows"]
    async with scheduler:
        await scheduler.create_tasks(TaskSpec({}, name, exec_timeout=0.1, max_retry_count=0) for name in names)
        done = {name: await scheduler.wait_task(name, timeout=20) for name in names}
    assert str(done["sleeps"].error) == "timeout: stopped after 0.1 s"
    assert done["own"].error is not None
    assert done["own"].error.type == "TimeoutError"
    assert str(done["turns"].error) == "timeout: stopped after 0.1 s"
    assert "ValueError: turned" in done["turns"].attempts[0].traceback
    assert (done["swallows"].status, done["swallows"].result) == ("completed", "in time")


@pytest.mark.parametrize("of_batch", [False, True])
async def test_an_answer_that_came_while_the_event_loop_was_blocked_comes_before_the_timeout(
    scheduler: TaskBackoffScheduler, of_batch: bool
) -> None:
    """As after a process has stood still: what the handler waits for, and its timeout, are both over."""
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.sleep(0.1)

    @scheduler.task(exec_timeout=0.5, max_retry_count=0)
    async def alone(number: int) -> int:
        await wait()
        return number

    @scheduler.batch(max_size=2, exec_timeout=0.5, max_retry_count=0)
    async def together(numbers: list[int]) -> list[int]:
        await wait()
        return numbers

    async with scheduler:
        handle = await (together if of_batch else alone).create(1)
        await begun.wait()
        time.sleep(0.5 + 1.2 * timeouts.LATE)  # noqa: ASYNC251 - it is to block the event loop
        assert await handle.result(timeout=20) == 1


async def test_a_thread_past_its_timeout_keeps_its_slot(config: TaskBackoffConfig) -> None:
    """The attempt is settled at the timeout; the slot is free when the thread has really ended."""
    config.threadpool.concurrency = 1
    scheduler = TaskBackoffScheduler(config)
    release, entered = threading.Event(), threading.Event()

    @scheduler.set_custom_task_handler
    def handler(task: TaskEntity) -> None:
        if task.task_id == "stuck":
            entered.set()
            release.wait(30)

    async with scheduler:
        await scheduler.create_task({}, "stuck", exec_timeout=0.1, max_retry_count=0)
        assert str((await scheduler.wait_task("stuck", timeout=20)).error) == "timeout: stopped after 0.1 s"
        await scheduler.create_task({}, "next")
        with pytest.raises(TimeoutError):
            await scheduler.wait_task("next", timeout=0.3)
        release.set()
        assert (await scheduler.wait_task("next", timeout=20)).status == "completed"
    await scheduler.shutdown()


@pytest.mark.long
@pytest.mark.blocks
async def test_a_handler_that_blocks_the_loop_for_three_leases_runs_once(
    config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """The heartbeat is in a thread of its own, and names the culprit; the reaper of another worker finds nothing."""
    runs: list[str] = []
    blocker = TaskBackoffScheduler(config)

    @blocker.set_custom_task_handler
    async def blocks(task: TaskEntity) -> str:
        runs.append("blocker")
        elsewhere.start()
        time.sleep(3 * config.scheduler.lease)  # noqa: ASYNC251 - that is what it does
        return "done"

    other = TaskBackoffScheduler(config)
    other.set_custom_task_handler(lambda task: runs.append("other"))
    other_stops = threading.Event()

    def work_elsewhere() -> None:
        async def main() -> None:
            async with other:
                await anyio.to_thread.run_sync(other_stops.wait)

        anyio.run(main)

    elsewhere = threading.Thread(target=work_elsewhere)
    await blocker.create_task({}, "x")
    async with blocker:
        assert (await blocker.wait_task("x", timeout=20)).result == "done"
    other_stops.set()
    await anyio.to_thread.run_sync(elsewhere.join)
    assert runs == ["blocker"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any(
        "event loop has been blocked" in text and "'x'" in text and "time.sleep(3" in text for text in warnings
    ), warnings
    await blocker.shutdown()


@pytest.mark.blocks
async def test_a_lost_task_comes_back_although_handlers_block_the_loop(
    config: TaskBackoffConfig, server: Server
) -> None:
    """The reaper lives in the heartbeat's thread. In the loop, it took each block for a standstill of the server."""
    config.threadpool.concurrency = 1
    store = QueueStore.of(config)
    await store.writer.enqueue([NewTask("lost", "{}", 0, 0, config.task.policy, "")])
    await store.exchange.send(
        BatchRequest((), 1, may_claim_suspect=False, request_id="1", exchange=0), "a worker that is killed"
    )
    await store.aclose()
    scheduler = TaskBackoffScheduler(config)
    stopping = threading.Event()

    @scheduler.set_custom_task_handler
    async def blocks(task: TaskEntity) -> None:
        if task.task_id != "lost":
            time.sleep(0.6 * config.scheduler.lease)  # noqa: ASYNC251 - that is what it does

    def work() -> None:
        async def main() -> None:
            async with scheduler:
                await anyio.to_thread.run_sync(stopping.wait)

        anyio.run(main)

    producer = TaskBackoffScheduler(config)
    await producer.create_tasks({"n": n} for n in range(100))
    worker = threading.Thread(target=work)
    worker.start()
    try:
        await eventually(lambda: lost(producer), "it is found to be lost", seconds=30)
        assert (await producer.get_queue_stats()).pending_count
    finally:
        await producer.purge_tasks("pending")
        stopping.set()
        await anyio.to_thread.run_sync(worker.join)
        await producer.shutdown()


async def lost(producer: TaskBackoffScheduler) -> bool:
    task = await producer.get_task("lost")
    return task is not None and task.lost_count == 1
