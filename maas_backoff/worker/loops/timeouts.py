"""The loop of the timeouts: it watches the earliest deadline, so that no attempt needs its own timer."""

import asyncio
import time

import anyio

from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.slots import Slots

LATE = 1.0
"""Seconds. If a deadline is looked at later than this, the process stood still, or its event loop was blocked."""

LEAST_TURNS, MOST_TURNS = 1, 20
"""Turns of the event loop in which a handler that is ready ends, and its outcome is noted."""

MOST_DELAY = 0.1
"""Seconds after which a timeout waits for no further turn: each takes long if handlers keep the event loop busy."""


async def run(deadlines: Deadlines, slots: Slots) -> None:
    """Cancel attempts at their deadline."""
    while True:
        deadlines.earlier.clear()
        with anyio.move_on_after(deadlines.next - time.monotonic()):
            await deadlines.earlier.wait()
            continue
        if time.monotonic() - deadlines.next > LATE:
            # A handler may have got its answer meanwhile, perhaps in time: it ends, and is not cancelled.
            until = time.monotonic() + MOST_DELAY
            for turn in range(MOST_TURNS):
                if turn >= LEAST_TURNS and time.monotonic() > until:
                    break
                await asyncio.sleep(0)
        deadlines.stop_overdue(slots.attempts.values(), time.monotonic())
