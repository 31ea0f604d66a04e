"""Ends what the handlers of killed workers have left on this machine."""

import anyio
from anyio import to_thread

from maas_backoff.guard import log_for
from maas_backoff.orphans import end_orphans

log = log_for("worker")

PERIOD = 60.0
"""Seconds between two looks."""


async def run() -> None:
    """Look now and then: another worker of this machine may have been killed."""
    while True:
        await anyio.sleep(PERIOD)
        await look()


async def look() -> None:
    """End what is there. What keeps a worker from looking keeps it from nothing else."""
    try:
        ended = await to_thread.run_sync(end_orphans, limiter=anyio.CapacityLimiter(1))
    except (OSError, RuntimeError, MemoryError) as error:  # no thread can be started, for one
        log.info("could not look for processes of killed workers: %s", error)
        return
    for worker, pids in ended.items():
        log.warning(
            "ended %d processes that handlers of worker process %d had started; it was killed: %s",
            len(pids),
            worker,
            ", ".join(map(str, pids)),
        )
