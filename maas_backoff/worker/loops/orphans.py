"""Ends what the handlers of killed workers, and of ended children, have left on this machine."""

import asyncio

import anyio
from anyio import to_thread

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.orphans import end_orphans

log: Log = log_for("worker")

PERIOD = 60.0
"""Seconds between two looks, while no child of this worker ends."""

REST = 1.0
"""Seconds between two looks, at least."""


async def run(soon: asyncio.Event) -> None:
    """Look when `soon` is set, as a child has ended; and now and then: another worker may have been killed."""
    while True:
        with anyio.move_on_after(PERIOD):
            await soon.wait()
        soon.clear()
        await look()
        await anyio.sleep(REST)


async def look() -> None:
    """End what is there. What keeps a worker from looking keeps it from nothing else."""
    try:
        ended = await to_thread.run_sync(end_orphans, limiter=anyio.CapacityLimiter(1))
    except (OSError, RuntimeError, MemoryError) as error:  # no thread can be started, for one
        log.info("could not look for processes of killed workers: %s", error)
        return
    for origin, pids in ended.items():
        log.warning(
            "ended %d processes that handlers of process %d had started, which has ended: %s",
            len(pids),
            origin,
            ", ".join(map(str, pids)),
        )
