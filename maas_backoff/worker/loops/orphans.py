"""The loop that ends processes which handlers of killed workers and of ended children left on this machine."""

import asyncio

import anyio
from anyio import to_thread

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.orphans import end_orphans

log: Log = log_for("worker")

PERIOD = 60.0
"""Seconds between two checks, while no child of this worker ends."""

REST = 1.0
"""The least seconds between two checks."""


async def run(soon: asyncio.Event) -> None:
    """Check when `soon` is set because a child has ended, and every PERIOD: another worker may have been killed."""
    while True:
        with anyio.move_on_after(PERIOD):
            await soon.wait()
        soon.clear()
        await check()
        await anyio.sleep(REST)


async def check() -> None:
    """End the left processes. An error of the check is logged, and does not stop the worker."""
    try:
        ended = await to_thread.run_sync(end_orphans, limiter=anyio.CapacityLimiter(1))
    except (OSError, RuntimeError, MemoryError) as error:  # for example, no thread can be started
        log.info("could not look for processes of killed workers: %s", error)
        return
    for origin, pids in ended.items():
        log.warning(
            "ended %d processes that handlers of process %d had started, which has ended: %s",
            len(pids),
            origin,
            ", ".join(map(str, pids)),
        )
