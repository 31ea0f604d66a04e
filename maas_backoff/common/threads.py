"""Calls of functions that read files of the system, such as /proc: in a thread, as the event loop must not block."""

from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import to_thread

from maas_backoff.common.guard import Log, log_for

log: Log = log_for("worker")

_R = TypeVar("_R")


async def in_thread(read: Callable[[], _R]) -> _R | None:
    """Call a function in a thread. Return None if the system has no thread for it, or an error."""
    try:
        return await to_thread.run_sync(read, limiter=anyio.CapacityLimiter(1))
    except (OSError, RuntimeError, MemoryError) as error:
        log.info("the processes of this machine cannot be looked at: %s", error)
        return None
