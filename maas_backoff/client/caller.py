"""A caller that may hang up, and what is done for it meanwhile."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from maas_backoff.errors import CallerGoneError

Disconnected = Callable[[], Awaitable[bool]]
"""Tells whether the caller has hung up: `request.is_disconnected` of Starlette and FastAPI."""

PERIOD = 0.5
"""Seconds between two questions: they are cheap, and a web framework is not to be held to an answer that comes late."""


@asynccontextmanager
async def until_gone(disconnected: Disconnected, task_id: str) -> AsyncGenerator[None, None]:
    """Run the block until its end, or until the caller has hung up: then cancel it, and raise CallerGoneError.

    Raises what `disconnected` raises.
    """
    # No task group: it would wrap what the block raises, an HTTPException say, in an exception group.
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


async def _watch(disconnected: Disconnected, scope: anyio.CancelScope) -> None:
    try:
        while not await disconnected():  # noqa: ASYNC110 - there is only this question, and no event
            await anyio.sleep(PERIOD)
    except Exception:
        scope.cancel()
        raise
    scope.cancel()
