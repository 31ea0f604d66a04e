"""The drain of a worker: claim nothing more, let attempts end, cancel the attempts that go on, settle all."""

import asyncio
import contextlib

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.outcome import CancelReason
from maas_backoff.errors import StorageError
from maas_backoff.worker.parts import Parts

log: Log = log_for("worker")

SETTLE_GRACE = 5.0
"""The most seconds of a shutdown for the last settlements, after the handlers have ended."""


async def drain(parts: Parts, cancel_running: asyncio.Event) -> None:
    """Wait for the attempts of a worker until `shutdown_grace` is over or `cancel_running` is set.

    Then cancel the attempts that still run, but no threads, and hand back their tasks.

    An attempt that cannot be settled in time is left to its lease: a task may run twice, but must not be lost.
    """
    slots = parts.slots
    slots.close()
    with anyio.move_on_after(SETTLE_GRACE), contextlib.suppress(StorageError):
        await parts.context.store.markers.wake(parts.context.name)  # this ends the claim that sleeps on the server
    with anyio.move_on_after(parts.config.scheduler.shutdown_grace):
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_set, cancel_running, group.cancel_scope)
            await slots.empty.wait()
            group.cancel_scope.cancel()
    if parts.executor.stoppable:
        running = [token for token, one in slots.attempts.items() if parts.executor.stops(one.task.kind)]
        slots.attempts.cancel(running, CancelReason.SHUTDOWN)
    if parts.executor.stoppable or slots.unsettled:
        with anyio.move_on_after(SETTLE_GRACE):
            await slots.empty.wait()
    for attempt in slots.attempts.values():
        log.warning("task %r is left to its lease at shutdown", attempt.task.task_id, extra=attempt.about("left"))


async def _cancel_when_set(event: asyncio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
