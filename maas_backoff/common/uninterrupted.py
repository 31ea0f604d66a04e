"""A call that a cancellation of its caller does not interrupt."""

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

import anyio

_T = TypeVar("_T")


async def uninterrupted(coroutine: Coroutine[object, object, _T]) -> _T:
    """Await a coroutine to its end, and only then raise a cancellation of the caller.

    The coroutine runs in a task of its own: asyncio's cancellation ignores anyio's shields.
    """
    task = asyncio.create_task(coroutine)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
