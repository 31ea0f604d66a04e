"""No code of users ends a loop, a thread or the worker; and a worker that ends unasked says so."""

import asyncio
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

import anyio
import anyio.to_thread
import pytest
from support import eventually

from maas_backoff import (
    EventLoopError,
    HandlerError,
    ResultEntity,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    WorkerEndedError,
)
from maas_backoff.common.guard import log_for
from maas_backoff.worker.executors.lifespan import Lifespan

pytestmark = pytest.mark.anyio


class Raises(logging.Handler):
    """A log server that is away."""

    def __init__(self, error: BaseException, level: int) -> None:
        super().__init__(level)
        self.error = error
        self.records = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.records += 1
        raise self.error


@pytest.mark.parametrize("error", [ConnectionError("away"), SystemExit(1)])
@pytest.mark.parametrize("level", [logging.WARNING, logging.DEBUG])
async def test_a_log_handler_that_raises_costs_its_record_only(
    scheduler: TaskBackoffScheduler, error: BaseException, level: int, capsys: pytest.CaptureFixture[str]
) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        if task.task_params.get("bad"):
            raise ValueError("x")
        return "fine"

    logger, handler = logging.getLogger("maas_backoff"), Raises(error, level)
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        async with scheduler:
            bad = await scheduler.create_task({"bad": True}, max_retry_count=0)
            assert (await scheduler.wait_task(bad, timeout=20)).status == "failed"
            fine = await scheduler.create_task({})
            assert (await scheduler.wait_task(fine, timeout=20)).result == "fine"
            assert scheduler.health().ready
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    assert handler.records
    assert f"a log handler or filter raised {type(error).__name__}; the record is lost" in capsys.readouterr().err


def test_a_record_names_the_line_that_logged(caplog: pytest.LogCaptureFixture) -> None:
    log_for("worker").warning("here: %d", 1)
    record = caplog.records[0]
    assert (record.getMessage(), record.filename) == ("here: 1", "test_guard.py")
    assert record.funcName == "test_a_record_names_the_line_that_logged"


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_a_backoff_callable_may_raise_anything(config: TaskBackoffConfig, error: BaseException) -> None:
    def backoff(_: int) -> float:
        raise error

    config.task.backoff_strategy = backoff
    config.task.max_backoff_interval = 0.01
    config.task.max_retry_count = 1
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        if task.task_params.get("bad"):
            raise ValueError("x")
        return "fine"

    async with scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({"bad": True}), timeout=20)
        assert (task.status, task.attempt) == ("failed", 2)
        assert (await scheduler.wait_task(await scheduler.create_task({}), timeout=20)).result == "fine"


class Awkward(ResultEntity):
    """Raises where it is looked at."""

    @property
    def success(self) -> bool:  # type: ignore[override] - wrong on purpose
        raise SystemExit(1)

    @success.setter
    def success(self, value: bool) -> None: ...


@pytest.mark.parametrize(
    "value",
    [lambda: ResultEntity.fail(code=10**5000, message="x"), lambda: object.__new__(Awkward)],
    ids=["a code of 5000 digits", "an entity that raises"],
)
@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_no_value_that_is_returned_ends_more_than_its_attempt(
    scheduler: TaskBackoffScheduler, value: Callable[[], object], kind: str
) -> None:
    if kind == "async def":

        @scheduler.set_custom_task_handler
        async def handle(task: TaskEntity) -> object:
            return value() if task.task_params.get("bad") else "fine"
    else:

        @scheduler.set_custom_task_handler
        def handle_in_thread(task: TaskEntity) -> object:
            return value() if task.task_params.get("bad") else "fine"

    async with scheduler:
        bad = await scheduler.create_task({"bad": True}, max_retry_count=0)
        assert (await scheduler.wait_task(bad, timeout=20)).status == "failed"
        assert (await scheduler.wait_task(await scheduler.create_task({}), timeout=20)).result == "fine"
        assert scheduler.health().ready


async def test_an_outcome_that_cannot_be_sent_keeps_no_other_from_being_settled(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A settlement that cannot be written down fails its own task; nothing that is known of leads here."""
    from maas_backoff.store import batch

    fields = batch.settlement_fields

    def picky(settlement: object, *rest: object) -> list[str]:
        found = fields(settlement, *rest)  # type: ignore[arg-type] - passed on as it came
        if '"bad"' in found:
            raise ValueError("cannot be written")
        return found

    monkeypatch.setattr(batch, "settlement_fields", picky)

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        return str(task.task_params["gives"])

    async with scheduler:
        ids = await scheduler.create_tasks({"gives": gives} for gives in ("bad", "fine", "fine"))
        tasks = [await scheduler.wait_task(task_id, timeout=20) for task_id in ids]
    assert [task.status for task in tasks] == ["failed", "completed", "completed"]
    assert str(tasks[0].error) == "unknown_outcome: the outcome cannot be sent: ValueError"


@pytest.mark.parametrize("victim", ["maas-backoff", "maas-backoff exchange 0", "maas-backoff poll"])
async def test_a_worker_that_ends_unasked_is_critical_and_not_ready(
    config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture, victim: str
) -> None:
    """Its host task, or one of its loops, is cancelled by other code."""
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(lambda task: None)
    await scheduler.start()
    cancelled = [one.cancel() for one in asyncio.all_tasks() if one.get_name() == victim]
    assert cancelled
    said = "the worker stopped unexpectedly: other code of this process cancelled an asyncio task of the worker"
    await eventually(lambda: said in "".join(scheduler.health().reasons), "it has ended, and says how")
    assert [record.levelname for record in caplog.records if "has died" in record.getMessage()] == ["CRITICAL"]
    with pytest.raises(WorkerEndedError, match="cancelled an asyncio task of the worker"):
        await scheduler.shutdown()
    async with scheduler:
        assert scheduler.health().ready


async def test_run_until_stopped_in_another_event_loop_leaves_the_worker_alone(scheduler: TaskBackoffScheduler) -> None:
    """Its start is refused, and that is all."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None: ...

    is_ready, is_done = threading.Event(), threading.Event()

    async def run() -> None:
        async with scheduler:
            is_ready.set()
            await anyio.to_thread.run_sync(is_done.wait)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, lambda: asyncio.run(run()))
        await anyio.to_thread.run_sync(is_ready.wait)
        try:
            with anyio.fail_after(10), pytest.raises(EventLoopError, match="start: the worker runs in another"):
                await scheduler.run_until_stopped()
            assert scheduler.health().ready
        finally:
            is_done.set()


async def test_run_until_stopped_raises_what_ended_the_worker(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        for one in asyncio.all_tasks():
            if one.get_name() == "maas-backoff":
                one.cancel()

    await scheduler.create_task({})
    with pytest.raises(WorkerEndedError, match="other code"):
        await scheduler.run_until_stopped()


def test_a_closed_stderr_is_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, handler = logging.getLogger("maas_backoff"), Raises(ConnectionError("away"), logging.WARNING)
    logger.addHandler(handler)
    monkeypatch.setattr(sys, "stderr", None)
    try:
        log_for("worker").warning("nobody hears this")
    finally:
        logger.removeHandler(handler)
    assert handler.records == 1


@asynccontextmanager
async def ends_at_its_start() -> AsyncIterator[None]:
    sys.exit(1)
    yield


@contextmanager
def ends_in_a_thread() -> Iterator[None]:
    raise KeyboardInterrupt
    yield


def ends_when_it_is_called() -> AbstractContextManager[None]:
    sys.exit(1)


@asynccontextmanager
async def ends_at_its_end() -> AsyncIterator[None]:
    yield
    sys.exit(1)


@pytest.mark.parametrize(
    ("lifespan", "starts"),
    [(ends_at_its_start, False), (ends_in_a_thread, False), (ends_when_it_is_called, False), (ends_at_its_end, True)],
)
async def test_a_lifespan_that_exits_ends_no_event_loop(
    config: TaskBackoffConfig, lifespan: Lifespan, starts: bool
) -> None:
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_worker_lifespan(lifespan)
    scheduler.set_custom_task_handler(lambda task, value: None)
    if starts:
        await scheduler.start()
    with pytest.raises(HandlerError, match=r"worker_lifespan: it raised (SystemExit|KeyboardInterrupt)"):
        await (scheduler.shutdown() if starts else scheduler.start())
