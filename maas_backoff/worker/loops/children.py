"""The loop that keeps children ready for tasks. If a child or thread cannot start, it tries again, later each time."""

import contextlib

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.executors.process import ProcessExecutor
from maas_backoff.worker.executors.thread import ThreadExecutor
from maas_backoff.worker.slots import Slots

REST = 10.0
"""Seconds before the replacement of a child that ended unused: the next child may end as well."""


async def run(executor: ProcessExecutor | ThreadExecutor, slots: Slots, context: WorkerContext) -> None:
    """Start children, one at a time, while a child is missing or the last one could not be started."""
    setback = executor.setback
    while True:
        await executor.lacking.wait()
        executor.lacking.clear()
        while not slots.closing and (setback.held or executor.lacks_child):
            if executor.unused_ended():
                await anyio.sleep(REST)
            if setback.held:
                # End the claim that sleeps on the server: it would take more tasks than there are children.
                with contextlib.suppress(StorageError):
                    await context.store.markers.wake(context.name)
                await anyio.sleep(setback.pause)
            await executor.warm_up()
