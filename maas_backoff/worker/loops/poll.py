"""When to look for tasks: when one is due, at the latest after `interval`. Between that, loops/wake.py."""

import anyio

from maas_backoff.worker.wake_ups import WakeUps


async def run(wake_ups: WakeUps) -> None:
    """Wake the exchange loops when the time has come that the last claim, or a settlement, has named."""
    while True:
        await wake_ups.idle.wait()
        wake_ups.replanned.clear()
        with anyio.move_on_after(wake_ups.look_at - anyio.current_time()):
            await wake_ups.replanned.wait()
            continue
        wake_ups.wake()
