"""The loop of the timeouts: it watches the earliest deadline, so that no attempt needs its own timer."""

import time

import anyio

from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.slots import Slots


async def run(deadlines: Deadlines, slots: Slots) -> None:
    """Cancel attempts at their deadline."""
    while True:
        deadlines.earlier.clear()
        with anyio.move_on_after(deadlines.next - time.monotonic()):
            await deadlines.earlier.wait()
            continue
        deadlines.stop_overdue(slots.attempts.values(), time.monotonic())
