"""What is set up once in each process that calls the handler: a model that is loaded, a pool that is opened."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from typing import Any

from anyio import to_thread

from maas_backoff.errors import HandlerError

Lifespan = Callable[[], AbstractContextManager[Any] | AbstractAsyncContextManager[Any]]
"""A function that gives a context manager, as @contextmanager and @asynccontextmanager make them."""


def managed(lifespan: Lifespan) -> AbstractContextManager[Any] | AbstractAsyncContextManager[Any]:
    """Return the context manager of a lifespan. Raises HandlerError for anything else."""
    manager = lifespan()
    if isinstance(manager, AbstractContextManager | AbstractAsyncContextManager):
        return manager
    raise HandlerError(
        f"worker_lifespan: expected a context manager (use @contextmanager or @asynccontextmanager), "
        f"got {type(manager).__name__}"
    )


class InThisProcess:
    """A lifespan in the worker's own process; without one, the handler is called with the task alone."""

    def __init__(self, lifespan: Lifespan | None) -> None:
        self._lifespan = lifespan
        self._stack = AsyncExitStack()
        self.values: tuple[Any, ...] = ()
        """What the handler is called with, after the task."""

    async def enter(self) -> None:
        """Enter it; one that is no coroutine in a thread, as it may take minutes. Raises what it raises."""
        if self._lifespan is None:
            return
        manager = managed(self._lifespan)
        if isinstance(manager, AbstractAsyncContextManager):
            self.values = (await self._stack.enter_async_context(manager),)
        else:
            self.values = (await to_thread.run_sync(manager.__enter__),)
            self._stack.push_async_callback(to_thread.run_sync, manager.__exit__, None, None, None)

    async def exit(self) -> None:
        """Leave it."""
        await self._stack.aclose()
