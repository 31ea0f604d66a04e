"""A thread with its own event loop, for work that must go on while the worker's event loop is blocked."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.threads import in_thread_or_here

log: Log = log_for("worker")


class OwnLoop:
    """Runs one coroutine function in a daemon thread, from `start` until it returns or `stop` is called."""

    def __init__(self, main: Callable[[], Awaitable[None]], name: str, when_failed: str) -> None:
        """`name` is that of the thread. `when_failed` is logged if the coroutine, or its event loop, fails."""
        self._main = main
        self._when_failed = when_failed
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._stopping = threading.Event()
        self._has_ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scope: anyio.CancelScope | None = None

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Cancel the coroutine, and wait for the end of the thread."""
        self._stopping.set()
        loop, scope = self._loop, self._scope
        if loop is not None and scope is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the thread's event loop has just ended
                loop.call_soon_threadsafe(scope.cancel)
        await in_thread_or_here(self._thread.join)

    def _run(self) -> None:
        try:
            asyncio.run(self._cancellable())
        except Exception:
            if self._has_ended:  # at the end of the interpreter, asyncio cannot start the thread that ends its others
                log.debug("the event loop of %s was not closed", self._thread.name, exc_info=True)
            else:
                log.critical("%s", self._when_failed, exc_info=True)

    async def _cancellable(self) -> None:
        with anyio.CancelScope() as self._scope:
            self._loop = asyncio.get_running_loop()
            if not self.stopping:
                await self._main()
        self._has_ended = True
