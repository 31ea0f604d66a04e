"""The drain of a worker: claim nothing more, let attempts end, cancel those that do not, settle."""

import asyncio
import contextlib

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.outcome import CancelReason
from maas_backoff.errors import StorageError
from maas_backoff.worker.parts import Parts

log: Log = log_for("worker")

SETTLE_GRACE = 5.0
"""Seconds that the last settlements may take at a shutdown, after the handlers have ended."""


async def drain(parts: Parts, cancel_running: asyncio.Event) -> None:
    """End the attempts of a worker within `shutdown_grace`, or when `cancel_running` is set; hand back the others.

    It is worse to lose a task than to run it twice: an attempt that cannot be settled in time is left to its lease.
    """
    slots = parts.slots
    slots.close()
    with anyio.move_on_after(SETTLE_GRACE), contextlib.suppress(StorageError):
        await parts.context.store.markers.wake(parts.context.name)  # the claim that sleeps on the server ends
    with anyio.move_on_after(parts.config.scheduler.shutdown_grace):
        async with anyio.create_task_group() as group:
            group.start_soon(_cancel_when_set, cancel_running, group.cancel_scope)
            await slots.empty.wait()
            group.cancel_scope.cancel()
    if parts.executor.stoppable:
        slots.cancel(list(slots.attempts), CancelReason.SHUTDOWN)
    if parts.executor.stoppable or slots.unsettled:
        with anyio.move_on_after(SETTLE_GRACE):
            await slots.empty.wait()
    for attempt in slots.attempts.values():
        log.warning("task %r is left to its lease at shutdown", attempt.task.task_id, extra=attempt.about("left"))


async def _cancel_when_set(event: asyncio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
