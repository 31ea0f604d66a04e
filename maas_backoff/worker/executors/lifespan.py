"""The worker_lifespan: set up once in each process that calls the handler, as a model or a pool."""

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, suppress
from contextvars import Context
from typing import Any, cast

import anyio
from anyio import to_thread

from maas_backoff.domain.gpu import GpuAssignment
from maas_backoff.errors import HandlerError
from maas_backoff.worker.executors.call import takes

Manager = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]

Lifespan = Callable[[], Manager] | Callable[[GpuAssignment | None], Manager]
"""A function that gives a context manager, as @contextmanager and @asynccontextmanager make them.

One with a parameter is given the part of a GPU that its child process may use; None where there is none.
"""


@contextmanager
def _no_exit() -> Generator[None]:
    """Turn SystemExit and KeyboardInterrupt into HandlerError: asyncio would end the event loop by them."""
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as error:
        raise HandlerError(f"worker_lifespan: it raised {type(error).__name__}") from error


def managed(lifespan: Lifespan, gpu: GpuAssignment | None = None) -> Manager:
    """Return the context manager of a lifespan. Raises HandlerError for anything else."""
    with _no_exit():
        manager: Manager = cast("Callable[..., Manager]", lifespan)(*(() if takes(lifespan, 0) else (gpu,)))
    if isinstance(manager, AbstractContextManager | AbstractAsyncContextManager):
        return manager
    raise HandlerError(
        f"worker_lifespan: expected a context manager (use @contextmanager or @asynccontextmanager), "
        f"got {type(manager).__name__}"
    )


class InOneTask:
    """A context manager that one asyncio task of its own enters and leaves; one that is not async, in one thread.

    A task group or a cancel scope around the `yield` can be left only by the task that entered it, and a context
    variable can be reset only in the context where it was set.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._loop = asyncio.get_running_loop()
        self._value: asyncio.Future[Any] = self._loop.create_future()
        self._leave = asyncio.Event()
        self._leave_thread = threading.Event()
        self._holder: asyncio.Task[None] | None = None

    @property
    def left(self) -> bool:
        """Whether the manager has ended: it was left, or it ended by itself."""
        return self._holder is not None and self._holder.done()

    async def enter(self) -> Any:
        """Enter the manager and return what it yields. Raises what it raises. If cancelled, leaves it first."""
        self._holder = self._loop.create_task(self._hold(), name="maas-backoff-lifespan", context=Context())
        try:
            await asyncio.wait([self._holder, self._value], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._leave.set()
            self._leave_thread.set()
            self._holder.cancel()
            await self._ended(self._holder)
            raise
        if self._value.done():
            return self._value.result()
        self._value.cancel()
        return _raise_end_of(self._holder)

    async def watch(self, until: asyncio.Future[None] | None = None) -> None:
        """Wait until a future is done. Raises HandlerError if the manager ends before, although nobody has left it."""
        assert self._holder is not None
        ends = [self._holder] if until is None else [self._holder, until]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if self._holder.done() and not self._leave.is_set():
            cause = None if self._holder.cancelled() else self._holder.exception()
            raise HandlerError("worker_lifespan: it ended by itself, before the worker") from cause

    async def exit(self) -> None:
        """Leave the manager. Raises what it raises then. Do nothing if it has ended by itself: `watch` has raised."""
        holder = self._holder
        if holder is None or holder.done():
            return
        self._leave.set()
        self._leave_thread.set()
        await self._ended(holder)
        _raise_end_of(holder)

    async def _hold(self) -> None:
        with _no_exit():
            await self._hold_open()

    async def _hold_open(self) -> None:
        if isinstance(self._manager, AbstractAsyncContextManager):
            async with self._manager as value:
                self._entered(value)
                await self._leave.wait()
        else:
            # A limiter of its own: the thread waits here for as long as the worker runs.
            await to_thread.run_sync(self._hold_in_thread, self._manager, limiter=anyio.CapacityLimiter(1))

    def _hold_in_thread(self, manager: AbstractContextManager[Any]) -> None:
        with manager as value:
            self._loop.call_soon_threadsafe(self._entered, value)
            self._leave_thread.wait()

    def _entered(self, value: object) -> None:
        if not self._value.done():
            self._value.set_result(value)

    @staticmethod
    async def _ended(holder: asyncio.Task[None]) -> None:
        """Wait until it has ended, whatever is cancelled meanwhile."""
        while not holder.done():
            # The shield holds off anyio's cancellation, `suppress` that of task.cancel().
            with suppress(asyncio.CancelledError), anyio.CancelScope(shield=True):
                await asyncio.wait([holder])


def _raise_end_of(holder: asyncio.Task[None]) -> None:
    if holder.cancelled():
        raise HandlerError("worker_lifespan: it was cancelled by its own code")
    holder.result()


class InThisProcess:
    """A lifespan in the worker's own process; without one, the handler is called with the task alone.

    Several executors may share it: it is entered once, and left once.
    """

    def __init__(self, lifespan: Lifespan | None) -> None:
        self._lifespan = lifespan
        self._held: InOneTask | None = None
        self.values: tuple[Any, ...] = ()
        """The handler's arguments after the task."""

    async def enter(self) -> None:
        """Enter it; one that is no coroutine in a thread, as it may take minutes. Raises what it raises."""
        if self._lifespan is not None and self._held is None:
            self._held = InOneTask(managed(self._lifespan))
            self.values = (await self._held.enter(),)

    async def watch(self) -> None:
        """Wait for ever; raise HandlerError if the lifespan ends by itself."""
        if self._held is None:
            await anyio.sleep_forever()
        else:
            await self._held.watch()

    async def exit(self) -> None:
        """Leave it."""
        if self._held is not None:
            await self._held.exit()
