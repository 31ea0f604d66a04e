"""Calls of functions that block, such as reads of /proc: in a thread, as the event loop must not block."""

from collections.abc import Callable
from typing import TypeVar

import anyio

from maas_backoff.common.guard import Log, log_for

log: Log = log_for("worker")

_R = TypeVar("_R")


async def in_thread(read: Callable[[], _R]) -> _R | None:
    """Call a function in a thread. Return None if the system has no thread for it, or an error."""
    try:
        return await anyio.to_thread.run_sync(read, limiter=anyio.CapacityLimiter(1))
    except (OSError, RuntimeError, MemoryError) as error:
        log.info("the processes of this machine cannot be looked at: %s", error)
        return None


async def in_thread_or_here(call: Callable[[], _R]) -> _R:
    """Call a function in a thread, to its end. At the end of the interpreter, which starts no thread, call it here.

    Raises what the function raises.
    """
    begun = False

    def run() -> _R:
        nonlocal begun
        begun = True
        return call()

    try:
        limiter = anyio.CapacityLimiter(1)  # handlers may have taken all threads
        return await anyio.to_thread.run_sync(run, limiter=limiter)
    except RuntimeError:
        if begun:
            raise
        return call()
