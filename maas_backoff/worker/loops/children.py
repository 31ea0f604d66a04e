"""Keeps child processes ready for tasks. If a child, or a thread, cannot be started, it tries again, ever later."""

import contextlib

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.executors.process import ProcessExecutor
from maas_backoff.worker.executors.thread import ThreadExecutor
from maas_backoff.worker.slots import Slots

REST = 10.0
"""Seconds before a child is replaced that ended although no task had used it: the next one may end as well."""


async def run(executor: ProcessExecutor | ThreadExecutor, slots: Slots, context: WorkerContext) -> None:
    """Start children, one at a time, while one is missing or the last one could not be started."""
    setback = executor.setback
    while True:
        await executor.lacking.wait()
        executor.lacking.clear()
        while not slots.closing and (setback.held or executor.lacks_child):
            if executor.unused_ended():
                await anyio.sleep(REST)
            if setback.held:
                # A claim that sleeps on the server would take more tasks than there are children for.
                with contextlib.suppress(StorageError):
                    await context.store.markers.wake(context.name)
                await anyio.sleep(setback.pause)
            await executor.warm_up()
