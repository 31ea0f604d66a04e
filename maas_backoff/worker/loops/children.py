"""The loop that keeps children ready for tasks. If a child or thread cannot start, it tries again, later each time."""

import contextlib

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.executors.base import Starting
from maas_backoff.worker.slots import Slots

REST = 10.0
"""Seconds before the replacement of a child that ended unused: the next child may end as well."""


async def run(children: Starting, slots: Slots, context: WorkerContext) -> None:
    """Start children, one at a time, while a child is missing or the last one could not be started."""
    setback = children.setback
    while True:
        await children.lacking.wait()
        children.lacking.clear()
        while not slots.closing and (setback.held or children.lacks_child):
            if children.unused_ended():
                await anyio.sleep(REST)
            if setback.held:
                # End the claim that sleeps on the server: it would take more tasks than there are children.
                with contextlib.suppress(StorageError):
                    await context.store.markers.wake(context.name)
                await anyio.sleep(setback.pause)
            await children.warm_up()
