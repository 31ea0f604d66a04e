"""No handler begins later than the last renewal of its lease allows, in any mode."""

import threading
import time

import anyio
import pytest
from support import Server, eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.worker.attempt import Attempt

pytestmark = pytest.mark.anyio


def attempts_of(scheduler: TaskBackoffScheduler) -> list[Attempt]:
    assert scheduler._service is not None
    return list(scheduler._service.parts.slots.attempts.values())


async def test_the_moment_until_which_a_lease_holds_follows_the_renewals(
    scheduler: TaskBackoffScheduler, server: Server, config: TaskBackoffConfig
) -> None:
    """Each heartbeat moves it; while the server does not answer it stays where it is."""
    ends = anyio.Event()

    @scheduler.set_custom_task_handler
    async def waits(task: TaskEntity) -> None:
        await ends.wait()

    async with scheduler:
        await scheduler.create_task({}, "x")
        await eventually(lambda: attempts_of(scheduler), "it was claimed")
        (attempt,) = attempts_of(scheduler)
        at_the_claim = attempt.lease.until
        lease = config.scheduler.lease
        assert at_the_claim <= time.monotonic() + lease
        assert attempt.start_before == pytest.approx(at_the_claim - lease / 10)
        await eventually(lambda: attempt.lease.until > at_the_claim, "a heartbeat has moved it")
        assert attempt.lease.until <= time.monotonic() + lease
        server.pause()
        try:
            stopped_at = time.monotonic()
            await anyio.sleep(lease / 2)  # longer than a heartbeat's pause: none is answered now
            assert attempt.lease.until <= stopped_at + lease
        finally:
            server.go_on()
        await eventually(lambda: attempt.lease.until > stopped_at + lease, "it moves again")
        ends.set()


async def test_an_attempt_is_stopped_when_its_lease_must_be_over_and_not_when_the_link_returns(
    scheduler: TaskBackoffScheduler, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody else took the task meanwhile: it comes back at once, with no loss and no retry counted."""
    began, stopped = anyio.Event(), list[float]()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        began.set()
        if task.attempt == 1:
            try:
                await anyio.sleep(60)
            finally:
                stopped.append(time.monotonic())
        return "again"

    async with scheduler:
        await scheduler.create_task({}, "x")
        await began.wait()
        (attempt,) = attempts_of(scheduler)
        server.pause()
        try:
            await eventually(lambda: stopped, "it was stopped while the server does not answer")
            assert stopped[0] >= attempt.lease.until
        finally:
            server.go_on()
        task = await scheduler.wait_task("x", timeout=30)
    # A claim whose answer came after the pause is too late as well, and is handed back.
    assert task.attempt >= 2
    assert (task.result, task.retry_count, task.lost_count) == ("again", 0, 0)
    told = [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "cut_off"]
    assert told == ["task 'x': attempt 1 is stopped: its lease could not be renewed"]


async def test_a_thread_that_outlasts_its_lease_may_still_complete_its_task(
    scheduler: TaskBackoffScheduler, server: Server, config: TaskBackoffConfig
) -> None:
    """It cannot be stopped, so it is not given up either."""
    began, release = threading.Event(), threading.Event()

    @scheduler.set_custom_task_handler
    def handle(task: TaskEntity) -> int:
        began.set()
        release.wait(30)
        return task.attempt

    async with scheduler:
        await scheduler.create_task({}, "x")
        await eventually(began.is_set, "it has begun")
        (attempt,) = attempts_of(scheduler)
        server.pause()
        try:
            await eventually(lambda: time.monotonic() > attempt.lease.until + 0.2, "its lease is over")
        finally:
            server.go_on()
            release.set()
        assert (await scheduler.wait_task("x", timeout=30)).result == 1
