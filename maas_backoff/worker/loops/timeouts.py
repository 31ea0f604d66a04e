"""The loop of the timeouts: it watches the earliest deadline, so that no attempt needs its own timer."""

import asyncio
import time

import anyio

from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.slots import Slots

LATE = 1.0
"""Seconds. If a deadline is looked at later than this, the process stood still, or its event loop was blocked."""

TURNS = 20
"""Turns of the event loop in which a handler that is ready ends, and its outcome is noted."""


async def run(deadlines: Deadlines, slots: Slots) -> None:
    """Cancel attempts at their deadline."""
    while True:
        deadlines.earlier.clear()
        with anyio.move_on_after(deadlines.next - time.monotonic()):
            await deadlines.earlier.wait()
            continue
        if time.monotonic() - deadlines.next > LATE:
            # A handler may have got its answer meanwhile, perhaps in time: it ends, and is not cancelled.
            for _ in range(TURNS):
                await asyncio.sleep(0)
        deadlines.stop_overdue(slots.attempts.values(), time.monotonic())
