"""Attempts whose asyncio task other code has cancelled before it began: they are handed back."""

from collections.abc import Callable

import anyio


async def run(sweep: Callable[[], None], lease: float) -> None:
    """Look for such attempts every third of a lease: nothing else would ever tell of them."""
    while True:
        await anyio.sleep(lease / 3)
        sweep()
