"""The event loop of blocking calls: one thread in each process, which other threads give coroutines to."""

import asyncio
import atexit
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakSet

import attrs

from maas_backoff.common import forks
from maas_backoff.errors import EventLoopError

R = TypeVar("R")

CANCEL_GRACE = 1.0
"""Seconds that an interrupted caller waits until its coroutine has ended."""

EXIT_GRACE = 2.0
"""Seconds for which the end of the interpreter waits until all connections are closed."""


class Connected(Protocol):
    """A user of the portal: what has connections that belong to the portal's event loop."""

    async def disconnect(self) -> None:
        """Close these connections."""
        ...


class _Call(Generic[R]):
    """One coroutine, and the future for its result in the thread that waits."""

    def __init__(self, coroutine: Coroutine[Any, Any, R]) -> None:
        self.outcome: concurrent.futures.Future[R] = concurrent.futures.Future()
        self._coroutine = coroutine
        self._task: asyncio.Task[R] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._coroutine, name="maas-backoff-sync")
        self._task.add_done_callback(self._ended)

    def cancel(self) -> None:
        if self._task is None:
            self._coroutine.close()
        else:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[R]) -> None:
        if task.cancelled():
            self.outcome.cancel()
        elif (error := task.exception()) is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(task.result())


class _LoopThread:
    """A daemon thread with an event loop. `stop` cancels what runs, and closes the loop."""

    def __init__(self) -> None:
        self._left: Iterable[Connected] = ()
        self._ready: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._stopping = asyncio.Event()
        self._thread = threading.Thread(target=self._main, name="maas-backoff-sync", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # the interpreter ends, or the system has no thread left
            raise EventLoopError(f"blocking calls need a thread, which cannot be started: {error}") from error
        try:
            self._loop = self._ready.result()
        except BaseException:  # Ctrl-C, or an event loop that could not be made
            self._ready.add_done_callback(self._stop_unused)
            raise

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        return self._thread is threading.current_thread()

    def start(self, call: _Call[Any]) -> None:
        """Start a call in the context of the caller: the current task, and the current span of a tracer."""
        self._loop.call_soon_threadsafe(call.start, context=copy_context())

    def soon(self, callback: Callable[[], object]) -> None:
        """Call a function in the event loop, unless the loop is closed: it has then cancelled all calls."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def stop(self, left: Iterable[Connected] = (), timeout: float | None = None) -> None:
        """End the thread, after the users that are left have disconnected; wait for it, `timeout` seconds at most."""
        self._left = left
        self.soon(self._stopping.set)
        self._thread.join(timeout)

    def _stop_unused(self, ready: "concurrent.futures.Future[asyncio.AbstractEventLoop]") -> None:
        if ready.exception() is None:
            ready.result().call_soon_threadsafe(self._stopping.set)

    def _main(self) -> None:
        try:
            Context().run(asyncio.run, self._serve())
        except BaseException as error:  # noqa: BLE001 - the caller of the constructor raises it
            if not self._ready.done():
                self._ready.set_exception(error)

    async def _serve(self) -> None:
        self._ready.set_result(asyncio.get_running_loop())
        await self._stopping.wait()
        for user in self._left:
            with suppress(Exception):  # the program ends; a server that is away keeps no connection
                await user.disconnect()


@attrs.frozen(eq=False)
class Running(Generic[R]):
    """A coroutine that runs in the portal's thread."""

    _thread: _LoopThread
    _call: _Call[R]

    def wait(self) -> R:
        """Wait for the coroutine, and return its result. If this thread is interrupted, cancel the coroutine.

        Raises EventLoopError if the last user leaves the portal meanwhile.
        """
        try:
            return self._call.outcome.result()
        except concurrent.futures.CancelledError:
            raise EventLoopError("the scheduler was closed while this call waited") from None
        except BaseException:
            if not self._call.outcome.done():
                self.cancel()
                concurrent.futures.wait([self._call.outcome], CANCEL_GRACE)
            raise

    def cancel(self) -> None:
        """Cancel the coroutine, from any thread; do not wait for its end."""
        self._thread.soon(self._call.cancel)

    def soon(self, callback: Callable[[], object]) -> None:
        """Call a function in the event loop of the coroutine."""
        self._thread.soon(callback)

    def at_end(self, callback: Callable[[], object]) -> None:
        """Call a function when the coroutine has ended, whatever its result."""
        self._call.outcome.add_done_callback(lambda _: callback())


class Portal:
    """Runs coroutines for other threads. Its thread lives while an object uses the portal.

    A child process after a fork starts a thread of its own. The end of the interpreter closes all connections.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._thread: _LoopThread | None = None
        self._users: WeakSet[Connected] = WeakSet()
        self._is_registered = False
        forks.on_fork(self, Portal._forked)

    def run(self, user: Connected, make: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Run the coroutine that `make` returns, for a user of the portal, and return its result.

        If this thread is interrupted, as by Ctrl-C, the coroutine is cancelled. Raises EventLoopError in the portal's
        own thread, and if the last user leaves meanwhile.
        """
        return self.start(user, make).wait()

    def start(self, user: Connected, make: Callable[[], Coroutine[Any, Any, R]]) -> Running[R]:
        """Start the coroutine that `make` returns, for a user of the portal. Raises EventLoopError as `run` does."""
        thread = self._thread
        if thread is not None and thread.is_current:
            raise EventLoopError("a blocking call in the event loop of blocking calls would wait for itself")
        call = _Call(make())
        try:
            return Running(self._started(user, call), call)
        except BaseException:  # when Ctrl-C comes here, the call may have started, or not
            if self._thread is None:
                call.cancel()
            else:
                self._thread.soon(call.cancel)
            raise

    def uses(self, user: Connected) -> bool:
        """Return whether a user has called `run`, and not left since."""
        return user in self._users

    def leave(self, user: Connected) -> None:
        """Note that a user needs the thread no more; the last one ends it."""
        with self._mutex:
            self._users.discard(user)
            if self._users:
                return
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

    def _started(self, user: Connected, call: _Call[Any]) -> _LoopThread:
        # Under the mutex: the loop starts all calls before it hears of its end, which would leave them unanswered.
        with self._mutex:
            if self._thread is None or not self._thread.is_alive:
                self._thread = _LoopThread()
                self._at_exit()
            self._users.add(user)
            self._thread.start(call)
            return self._thread

    def _at_exit(self) -> None:
        if not self._is_registered:
            self._is_registered = True
            atexit.register(self._stop_at_exit)

    def _stop_at_exit(self) -> None:
        with self._mutex:
            thread, self._thread = self._thread, None
            users = list(self._users)
        if thread is not None:
            thread.stop(users, EXIT_GRACE)

    def _forked(self) -> None:
        """Reset the state in a child process: the thread stays in the parent process."""
        forks.inherited.append((self._thread, self._users))
        self._thread, self._users = None, WeakSet()
        self._mutex = threading.Lock()


portal: Portal = Portal()
"""The portal of this process."""
