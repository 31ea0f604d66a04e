"""The poll: look for tasks when a task is due, and after `interval` at the latest. loops/wake.py wakes in between."""

import anyio

from maas_backoff.worker.wake_ups import WakeUps


async def run(wake_ups: WakeUps) -> None:
    """Wake the exchange loops at the time that the last claim or settlement planned."""
    while True:
        await wake_ups.idle.wait()
        wake_ups.replanned.clear()
        with anyio.move_on_after(wake_ups.look_at - anyio.current_time()):
            await wake_ups.replanned.wait()
            continue
        wake_ups.wake()
