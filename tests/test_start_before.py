"""No handler begins later than the last renewal of its lease allows, in any mode."""

import time

import anyio
import pytest
from support import Server, eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.leased import Attempt

pytestmark = pytest.mark.anyio


def attempts_of(scheduler: TaskBackoffScheduler) -> list[Attempt]:
    assert scheduler._service is not None
    return list(scheduler._service.running.attempts.values())


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
        at_the_claim = attempt.lease_until
        lease = config.scheduler.lease
        assert at_the_claim <= time.monotonic() + lease
        assert attempt.start_before == pytest.approx(at_the_claim - lease / 10)
        await eventually(lambda: attempt.lease_until > at_the_claim, "a heartbeat has moved it")
        assert attempt.lease_until <= time.monotonic() + lease
        server.pause()
        try:
            stopped_at = time.monotonic()
            await anyio.sleep(lease / 2)  # longer than a heartbeat's pause: none is answered now
            assert attempt.lease_until <= stopped_at + lease
        finally:
            server.go_on()
        await eventually(lambda: attempt.lease_until > stopped_at + lease, "it moves again")
        ends.set()
