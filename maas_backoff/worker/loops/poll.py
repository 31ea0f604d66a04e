"""When to look for tasks: when one is due, at the latest after `interval`. Between that, loops/wake.py."""

import anyio

from maas_backoff.worker.running import Running


async def run(running: Running) -> None:
    """Wake the lanes when the time has come that the last claim, or a settlement, has named."""
    while True:
        await running.sated.wait()
        running.replanned.clear()
        with anyio.move_on_after(running.wake_at - anyio.current_time()):
            await running.replanned.wait()
            continue
        running.wake()
