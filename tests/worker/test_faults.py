"""A worker goes on when its own parts, or the functions of its user, do not behave."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from support import Server, eventually

from maas_backoff import ResultEntity, TaskBackoffScheduler, TaskEntity
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.connect import Client
from maas_backoff.store.registry import Registry
from maas_backoff.worker import service
from maas_backoff.worker.loops import heartbeat, reap
from maas_backoff.worker.loops.reap import Reaper

pytestmark = pytest.mark.anyio


async def test_the_heartbeat_goes_on_after_any_error_and_logs_the_first_one(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All leases depend on the heartbeat, also after a fault of the library itself."""
    scheduler.config.scheduler.lease = 6
    calls, renew, renewed = list[str](), Registry.renew, anyio.Event()

    async def failing(self: Registry, *arguments: Any) -> Any:
        calls.append("renew")
        if len(calls) <= 2:
            raise RuntimeError("a fault of the test")
        return await renew(self, *arguments)

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> int:
        await renewed.wait()
        return task.attempt

    monkeypatch.setattr(Registry, "renew", failing)
    async with scheduler:
        await scheduler.create_task({}, "x")
        await eventually(lambda: len(calls) > 3, "it is renewed again", 20)
        renewed.set()
        task = await scheduler.wait_task("x", 20)
    assert (task.result, task.lost_count) == (1, 0)
    said = [one.getMessage() for one in caplog.records if one.exc_info]
    assert said == ["a heartbeat failed; the next ones that fail are not logged"]


async def test_the_leases_of_many_tasks_are_renewed_in_several_calls(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server answers others between them: the tasks of batches may be 1,000 for each slot."""
    monkeypatch.setattr(heartbeat, "AT_ONCE", 2)
    scheduler.config.scheduler.lease = 3
    renew, renewed, stopped, may_end = Registry.renew, Counter[str](), list[str](), anyio.Event()

    async def counting(self: Registry, client: Client, name: str, info: str, leases: Sequence[tuple[str, int]]) -> Any:
        assert len(leases) <= 2
        reply = await renew(self, client, name, info, leases)
        renewed.update(task_id for task_id, _ in leases)
        return reply

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> int:
        try:
            await may_end.wait()
        except anyio.get_cancelled_exc_class():
            stopped.append(task.task_id)
            raise
        return task.attempt

    monkeypatch.setattr(Registry, "renew", counting)
    async with scheduler:
        ids = await scheduler.create_tasks({} for _ in range(5))
        await eventually(lambda: all(renewed[one] > 4 for one in ids), "each lease would be over", 20)
        assert await scheduler.mark_task_completed(ids[-1], "elsewhere")
        await eventually(lambda: stopped == ids[-1:], "its lease is lost", 20)
        may_end.set()
        tasks = [await scheduler.wait_task(one, 20) for one in ids[:-1]]
    assert [(task.result, task.lost_count) for task in tasks] == [(1, 0)] * 4


async def test_more_lost_tasks_than_one_look_takes_are_looked_for_at_once(
    scheduler: TaskBackoffScheduler, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not wait for the next look, a quarter of a lease later."""
    monkeypatch.setattr(reap, "LIMIT", 3)
    store, looks = scheduler._client.store, 0
    await scheduler.create_tasks({"n": n} for n in range(8))
    request = BatchRequest((), 8, may_claim_suspect=False, request_id="1", exchange=0)
    assert len((await store.exchange.send(request, "dead")).claimed) == 8
    assert await store.registry.expire("dead") == 8
    client = store.connection.server.new_client(connections=1, timeout=10)
    reaper = Reaper(store, "w", lease=300)
    try:
        while reaper.due <= anyio.current_time():
            looks += 1
            await reaper.look(client, within=10)
    finally:
        await client.aclose()
    assert looks == 3
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.processing_count) == (8, 0)


async def test_an_exception_handler_that_takes_too_long_is_stopped_and_the_failure_counts(
    scheduler: TaskBackoffScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        raise ValueError("the handler's")

    @scheduler.set_custom_task_exception_handler
    async def on_exception(task: TaskEntity) -> ResultEntity:
        await anyio.sleep_forever()
        return ResultEntity.ok("never")

    async with scheduler:
        await scheduler.create_task({}, "x", max_retry_count=0, exec_timeout=0.2)
        task = await scheduler.wait_task("x", 20)
    assert (task.status, str(task.error)) == ("failed", "ValueError: the handler's")
    assert "the exception handler took longer than 0.2 s for task 'x'" in caplog.text


async def test_a_worker_whose_handler_ignores_every_cancel_is_left_behind(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`shutdown` returns. The task is left to its lease: it may still run, so nothing of it is settled."""
    scheduler.config.scheduler.shutdown_grace = 0.1
    monkeypatch.setattr(service, "SETTLE_GRACE", 0.0)
    begun, may_end = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        begun.set()
        while not may_end.is_set():
            try:
                await may_end.wait()
            except BaseException:
                continue

    await scheduler.start()
    await scheduler.create_task({}, "x")
    await begun.wait()
    worker = scheduler._service
    assert worker is not None
    await worker.stop()
    assert "a handler ignores its cancellation; the worker is left behind" in caplog.text
    assert [one.levelno for one in caplog.records if "left behind" in one.getMessage()] == [logging.CRITICAL]
    task = await scheduler.get_task("x")
    assert task is not None and task.status == "processing"
    may_end.set()
    await worker.wait()
