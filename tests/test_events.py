"""The log tells each event of a task once, and nothing that is in it."""

import asyncio
import logging
import re

import anyio
import pytest
from support import eventually

from maas_backoff import Discard, Retry, Snooze, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskSpec, logs
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.loops.reap import settle_lost

pytestmark = pytest.mark.anyio

SECRET = "what nobody may read"


def told(caplog: pytest.LogCaptureFixture, task_id: str | None = None) -> list[tuple[str, str, int]]:
    """The events of a task, or of the queue: name, level, attempt; by attempts, as two exchange loops tell of them."""
    events = [
        (record.event, record.levelname, getattr(record, "attempt", 0))
        for record in list(caplog.records)
        if hasattr(record, "event") and getattr(record, "task_id", None) == task_id
    ]
    return sorted(events, key=lambda event: event[2])


async def test_each_transition_is_one_record(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "maas_backoff")
    began = {name: anyio.Event() for name in ("slow", "robbed")}

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> dict[str, object]:
        match task.task_id, task.attempt:
            case ("slow" | "robbed", _):
                began[task.task_id].set()
                await anyio.sleep_forever()
            case "fails", 1:
                raise ConnectionError
            case "fails", 2:
                raise Retry(after=0)
            case "fails", 3:
                raise Snooze(after=0)
            case "hopeless", _:
                raise Discard
        return task.task_params

    params = {"secret": SECRET}
    hand = TaskBackoffScheduler(config)
    await hand.create_tasks([TaskSpec(params, name, delay=3600) for name in ("moved", "marked", "failing", "taken")])
    await hand.create_task(params, "moved")  # it is there
    assert await hand.pause() and not await hand.pause()
    assert await hand.resume() and not await hand.resume()
    assert await hand.update_task("moved", priority=5)
    assert await hand.cancel_task("moved") and not await hand.cancel_task("moved")
    assert await hand.retry_task("moved") and not await hand.retry_task("moved")
    assert await hand.delete_task("moved") and not await hand.delete_task("moved")
    assert await hand.mark_task_processing("taken") and await hand.cancel_task("taken", running=True)
    assert await hand.retry_tasks("cancelled") == 1 and await hand.delete_task("taken")
    assert await hand.mark_task_failed("failing", "no") and await hand.mark_task_failed("failing", retry=False)
    assert await hand.mark_task_completed("marked", params)
    assert await hand.purge_tasks("completed") == 1
    async with scheduler:
        await hand.create_tasks([TaskSpec(params, name) for name in ("fails", "hopeless", "slow", "robbed")])
        for event in began.values():
            await event.wait()
        assert await hand.cancel_task("slow", running=True)
        assert await hand.mark_task_completed("robbed", SECRET)
        await scheduler.wait_task("fails", 20)
        await eventually(lambda: len(told(caplog, "fails")) == 9, "the last answer is there")
        await eventually(lambda: len(told(caplog, "slow")) == 4, "it is stopped")
        await eventually(lambda: len(told(caplog, "robbed")) == 4, "so is this one")
    await hand.shutdown()

    assert told(caplog) == [(name, "INFO", 0) for name in ("paused", "resumed", "requeued", "purged")]
    assert [name for name, _, _ in told(caplog, "moved")] == ["created", "moved", "cancelled", "requeued", "deleted"]
    assert [name for name, _, _ in told(caplog, "taken")] == ["created", "taken", "cancelled", "requeued", "deleted"]
    assert told(caplog, "failing") == [("created", "DEBUG", 0), ("retried", "INFO", 0), ("failed", "INFO", 0)]
    assert told(caplog, "marked") == [("created", "DEBUG", 0), ("completed", "INFO", 0)]
    assert told(caplog, "fails") == [
        ("created", "DEBUG", 0),
        ("started", "DEBUG", 1),
        ("retried", "WARNING", 1),
        ("started", "DEBUG", 2),
        ("retried", "INFO", 2),
        ("started", "DEBUG", 3),
        ("released", "DEBUG", 3),
        ("started", "DEBUG", 4),
        ("completed", "DEBUG", 4),
    ]
    assert told(caplog, "hopeless")[1:] == [("started", "DEBUG", 1), ("failed", "ERROR", 1)]
    assert told(caplog, "slow")[1:] == [
        ("started", "DEBUG", 1),
        ("cancel_requested", "INFO", 1),
        ("cancelled", "DEBUG", 1),
    ]
    assert told(caplog, "robbed")[1:] == [
        ("started", "DEBUG", 1),
        ("completed", "INFO", 1),
        ("too_late", "WARNING", 1),
    ]
    seen = {record.event for record in caplog.records if hasattr(record, "event")}
    of_their_own = {"lost", "left", "cut_off", "ignores_cancel", "quieted", "gpu_quarantined", "hook_failed"}
    assert seen | of_their_own == _documented(), "those have tests of their own"
    assert not any(SECRET in f"{record.getMessage()} {vars(record)}" for record in caplog.records)


@pytest.mark.long
async def test_an_attempt_left_behind_is_told(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """By the drain of a worker whose handler swallows its cancel."""
    config.scheduler.shutdown_grace = 0
    began, go_on = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        began.set()
        with anyio.CancelScope(shield=True):
            await go_on.wait()

    await scheduler.start()
    await scheduler.create_task({}, "x")
    await began.wait()
    async with anyio.create_task_group() as group:
        group.start_soon(scheduler.shutdown)
        await eventually(lambda: len(told(caplog, "x")) == 2, "it is left behind")
        go_on.set()
    assert told(caplog, "x") == [("ignores_cancel", "WARNING", 1), ("left", "WARNING", 1)]


async def test_an_attempt_that_ignores_its_cancel_is_told_once(
    scheduler: TaskBackoffScheduler, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With where its coroutine stands, also if its lease is lost later. One that ends in time is not told."""
    monkeypatch.setattr("maas_backoff.worker.attempt.PATIENCE", 0.2)
    ended = False

    async def wait_for_ever() -> None:
        while not ended:
            try:
                await asyncio.sleep(10)
            except BaseException:
                continue

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        await (anyio.sleep(10) if task.task_id == "obeys" else wait_for_ever())

    async with scheduler:
        for name in ("obeys", "ignores"):
            await scheduler.create_task({"secret": SECRET}, name, exec_timeout=0.1, max_retry_count=0)
        await scheduler.wait_task("obeys", 20)
        try:
            await eventually(lambda: ("ignores_cancel", "WARNING", 1) in told(caplog, "ignores"), "it goes on")
        finally:
            ended = True
    (record,) = [one for one in caplog.records if getattr(one, "event", "") == "ignores_cancel"]
    line = wait_for_ever.__code__.co_firstlineno + 3
    expected = f"ignores its cancel (timeout), and goes on at test_events.py:{line} in wait_for_ever; its slot"
    assert record.levelname == "WARNING" and expected in record.getMessage() and SECRET not in f"{vars(record)}"


async def test_a_lost_attempt_is_told(config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture) -> None:
    """By the worker that finds it; one whose end was asked for before is told to be cancelled."""
    now = 1_800_000_000_000
    store = QueueStore.of(config)
    store.connection.clock = f"{now}"
    policy = config.task.policy
    await store.writer.enqueue([NewTask(task_id, "{}", 0, 0, policy, "") for task_id in ("x", "y")])
    await store.exchange.send(BatchRequest((), 2, may_claim_suspect=False, request_id="1", exchange=0), "worker")
    await store.writer.enqueue([NewTask("z", "{}", 0, 0, policy, '{"max_lost":1}')])
    await store.exchange.send(
        BatchRequest((), 1, may_claim_suspect=False, request_id="1", exchange=0), "another worker"
    )
    await store.writer.request_cancel("y")
    for _ in range(2):  # the first one finds that nobody has looked for long
        store.connection.clock = f"{float(store.connection.clock) + 60_000}"
        lost = (await store.lost.look(gap=61, grace=0))[0]
    await settle_lost(store, "reaper", lost)
    await store.aclose()
    assert told(caplog, "x") == told(caplog, "y") == [("lost", "WARNING", 1)]
    assert told(caplog, "z") == [("lost", "ERROR", 1)]
    assert sorted(record.getMessage() for record in caplog.records) == [
        "task 'x' lost its worker; now pending",
        "task 'y' lost its worker; now cancelled",
        "task 'z' lost its worker; now failed",
    ]


def _documented() -> set[str]:
    """The names in the table of logs.py."""
    rows = re.findall(r"^(\w+)(?:, (\w+))? +(?:DEBUG|INFO|WARNING|ERROR) ", logs.__doc__ or "", re.MULTILINE)
    return {name for row in rows for name in row if name}
