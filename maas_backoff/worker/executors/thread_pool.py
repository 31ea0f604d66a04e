"""The threads that call a plain handler: each takes one call after the other."""

import asyncio
import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from functools import partial
from queue import Empty, SimpleQueue

import anyio
import attrs
from anyio import to_thread

from maas_backoff.common.forks import end_if_forked
from maas_backoff.domain.outcome import Unstarted
from maas_backoff.domain.task import TaskEntity
from maas_backoff.worker.executors.base import BatchOutcome, Call
from maas_backoff.worker.executors.call import own_task
from maas_backoff.worker.setback import THREAD, Setback


class ThreadPool:
    """Runs calls in threads, as many as there are calls at once.

    The threads are anyio's, so that `anyio.from_thread` works in a handler; but each is asked for once and then takes
    one call after the other, and those that end together are delivered together. To ask for one for each call takes ten
    times as long.
    """

    lacks_child = False

    def __init__(self) -> None:
        self.setback: Setback = Setback(lambda: self._serving - self._left_behind, kind=THREAD)
        self.lacking: asyncio.Event = asyncio.Event()
        """Set when a thread could not be started."""
        self._calls: SimpleQueue[ThreadCall | None] = SimpleQueue()
        self._ended: deque[ThreadCall] = deque()
        self._delivery_due = False
        self._running = 0
        self._left_behind = 0
        self._threads: set[asyncio.Task[None]] = set()
        self._serving = 0

    def start(self) -> None:
        """Get ready, on the worker's event loop. The slots are the limit, not anyio's default of 40 threads."""
        self._loop = asyncio.get_running_loop()
        self._limiter = anyio.CapacityLimiter(math.inf)

    def begin(self, call: Call, run: "Run") -> "ThreadCall":
        """Have a thread run a call, and return the call, whose outcome is to be awaited. `run` must not raise."""
        mine = ThreadCall(call, run, copy_context(), self._loop.create_future())
        self._running += 1
        if self._running > len(self._threads):
            self._start_thread()
        call.started()
        self._calls.put(mine)
        return mine

    def leave_behind(self, call: "ThreadCall") -> None:
        """Leave a call that was cancelled to its thread, which nothing can stop."""
        if call.outcome.cancelled():  # else the thread had ended the call in the moment of the cancel
            self._left_behind += 1
        call.call.lingers(call.ended)

    def unused_ended(self) -> bool:
        """Return False: a thread ends with the worker only."""
        return False

    async def warm_up(self) -> None:
        """Start a thread that no call has asked for, and note in `setback` what came of it."""
        began = self._loop.create_future()
        thread = self._start_thread(began)
        await asyncio.wait((thread, began), return_when=asyncio.FIRST_COMPLETED)

    async def aclose(self) -> None:
        """Let the threads end; one whose handler does not end is left behind."""
        for _ in self._threads:
            self._calls.put(None)
        if self._threads and not self._running:
            await asyncio.wait(self._threads)
        for thread in self._threads:
            thread.cancel()
        self._threads.clear()

    # Threads

    def _start_thread(self, began: "asyncio.Future[None] | None" = None) -> "asyncio.Task[None]":
        """Start a thread. `began`, if this is a try without a task, is set when the thread runs."""
        serve = partial(self._serve, time.monotonic(), began)
        serving = to_thread.run_sync(serve, abandon_on_cancel=True, limiter=self._limiter)
        thread = own_task(serving, "maas-backoff-thread")
        self._threads.add(thread)
        thread.add_done_callback(partial(self._ended_thread, is_try=began is not None))
        return thread

    def _began(self, asked_at: float, began: "asyncio.Future[None] | None") -> None:
        self._serving += 1
        self.setback.worked(asked_at)
        if began is not None and not began.done():
            began.set_result(None)

    def _ended_thread(self, thread: "asyncio.Task[None]", *, is_try: bool) -> None:
        """Note that a thread could not be started; a call that waits for one goes back unharmed."""
        self._threads.discard(thread)
        if thread.cancelled() or (error := thread.exception()) is None:
            return
        self.setback.failed(f"{type(error).__name__}: {error}", probe=is_try)
        self.lacking.set()
        with contextlib.suppress(Empty):
            if self._running > len(self._threads) and (call := self._calls.get_nowait()) is not None:
                self._end(call, Unstarted())

    def _serve(self, asked_at: float, began: "asyncio.Future[None] | None") -> None:
        """Run in a thread: call after call."""
        pid = os.getpid()
        self._loop.call_soon_threadsafe(self._began, asked_at, began)
        while (call := self._calls.get()) is not None:
            call.result = call.context.run(call.run, call.call.task) if call.may_begin else Unstarted()
            end_if_forked(pid)
            # In this order: _deliver finds the call, or is called again.
            self._ended.append(call)
            if not self._delivery_due:
                self._delivery_due = True
                with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits
                    self._loop.call_soon_threadsafe(self._deliver)

    # The ends of calls

    def _deliver(self) -> None:
        self._delivery_due = False
        while self._ended:
            call = self._ended.popleft()
            assert call.result is not None
            self._end(call, call.result)

    def _end(self, call: "ThreadCall", result: "BatchOutcome | Rest") -> None:
        self._running -= 1
        call.ended.set()
        if call.outcome.cancelled():
            self._left_behind -= 1
        else:
            call.outcome.set_result(result)


@attrs.define(eq=False)
class ThreadCall:
    """A call in a thread."""

    call: Call
    run: "Run"
    context: Context
    outcome: "asyncio.Future[BatchOutcome | Rest]"
    ended: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when the thread has ended the call, also one that was cancelled."""
    result: "BatchOutcome | Rest | None" = None

    @property
    def may_begin(self) -> bool:
        """Whether the attempt is neither over nor late, as after a stop of the process. Read in the thread."""
        return not self.outcome.done() and time.monotonic() < self.call.start_before


@attrs.frozen
class Rest:
    """The rest of a call, which the event loop does."""

    awaitable: Awaitable[object]


Run = Callable[[TaskEntity], BatchOutcome | Rest]
"""Calls a handler in a thread."""
