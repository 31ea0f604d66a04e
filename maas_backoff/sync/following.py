"""An async iterator that another thread follows."""

import asyncio
import queue
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing
from typing import TypeVar

from maas_backoff.sync.portal import Connected, portal

T = TypeVar("T")


def followed(user: Connected, make: Callable[[], AsyncGenerator[T, None]]) -> Generator[T, None, None]:
    """Yield what an async generator yields. It goes on when the next value is wanted, and ends with this generator.

    One asyncio task has the generator from its begin to its end: when the event loop ends, it ends the task.
    """
    values: queue.SimpleQueue[T | None] = queue.SimpleQueue()
    wanted = asyncio.Event()

    async def follow() -> None:
        async with aclosing(make()) as generator:
            async for value in generator:
                values.put(value)
                await wanted.wait()
                wanted.clear()

    running = portal.start(user, follow)
    running.at_end(lambda: values.put(None))
    try:
        while (value := values.get()) is not None:
            yield value
            running.soon(wanted.set)
        running.wait()
    finally:
        running.cancel()
