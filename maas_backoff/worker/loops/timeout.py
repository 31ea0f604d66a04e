"""Timeouts: one loop watches the earliest deadline, so that no attempt needs a timer of its own."""

import time

import anyio

from maas_backoff.worker.running import Running


async def run(running: Running) -> None:
    """Cancel attempts when their time is over."""
    while True:
        running.earlier.clear()
        with anyio.move_on_after(running.next_deadline - time.monotonic()):
            await running.earlier.wait()
            continue
        running.stop_overdue(time.monotonic())
