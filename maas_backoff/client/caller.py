"""A block that is cancelled when its caller hangs up."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from maas_backoff.errors import CallerGoneError

Disconnected = Callable[[], Awaitable[bool]]
"""Returns whether the caller has hung up, for example `request.is_disconnected` of Starlette and FastAPI."""

PERIOD = 0.5
"""Seconds between two calls of `disconnected`, which are cheap."""


@asynccontextmanager
async def until_gone(disconnected: Disconnected, task_id: str) -> AsyncGenerator[None, None]:
    """Run the block. If the caller hangs up, cancel the block and raise CallerGoneError.

    Raises the errors of `disconnected`, too.
    """
    # No task group: it would wrap an error of the block, such as an HTTPException, in an exception group.
    scope = anyio.CancelScope()
    watch = asyncio.create_task(_watch(disconnected, scope), name="maas-backoff-caller")
    try:
        with scope:
            yield
    finally:
        watch.cancel()
        await asyncio.wait([watch])
        error = None if watch.cancelled() else watch.exception()
    if error is not None:
        raise error
    if scope.cancelled_caught:
        raise CallerGoneError(task_id)


async def _watch(disconnected: Disconnected, scope: "anyio.CancelScope") -> None:
    try:
        while not await disconnected():  # noqa: ASYNC110 - web frameworks have no event for it
            await anyio.sleep(PERIOD)
    except Exception:
        scope.cancel()
        raise
    scope.cancel()
