"""The sweep: hand back attempts whose asyncio task was cancelled by other code before it began."""

from collections.abc import Callable

import anyio


async def run(sweep: Callable[[], None], lease: float) -> None:
    """Call `sweep` every third of a lease. Nothing else finds such attempts."""
    while True:
        await anyio.sleep(lease / 3)
        sweep()
