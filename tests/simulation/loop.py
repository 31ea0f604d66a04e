"""An event loop in virtual time, on which several nodes run: a node can die, or stand still, between any two steps."""

import asyncio
import heapq
import sys
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from typing import Any


class NothingLeft(Exception):
    """Raised when no timer is set and nothing is ready: the simulation waits for what can never come."""


class Node:
    """One simulated process. A dead node takes no further step; one that stands still takes them afterwards."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        """Its process id."""
        self.dead = False
        self.still = False
        self.held: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def __repr__(self) -> str:
        return self.name


_RUNNING: ContextVar[Node | None] = ContextVar("_RUNNING", default=None)
"""The node that runs a step. An asyncio task has a copy of the context in which it was made."""


_RESOLUTION = 1e-6
"""Seconds by which a timer may be early."""

_MANY = 100
"""Timers of which those that were cancelled are not kept, if they are more than half."""


def empty_context() -> Context:
    """Return a context that holds nothing but the node that runs."""
    context = Context()
    context.run(_RUNNING.set, _RUNNING.get())
    return context


class _Step(asyncio.TimerHandle):
    """A callback that a node takes: at once, or at a moment.

    The handles of asyncio are made for loops that may be debugged, and log: these take half the time.
    """

    __slots__ = ("node",)

    def __init__(
        self,
        loop: "SimulatedLoop",
        node: Node | None,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> None:
        self.node = node
        self._loop = loop
        self._when = when
        self._callback = callback
        self._args = args
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._scheduled = False
        self._repr = self._source_traceback = None

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._loop.cancelled_timers += self._scheduled
            self._callback = self._args = None


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Runs each step on behalf of a node: that of the asyncio task that steps, else that which has scheduled it.

    Timers that are due at the same moment run in the order of asyncio's own heap.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.node: Node | None = None
        self.kept: list[asyncio.Task[Any]] = []
        """All asyncio tasks: what a dead node leaves is not collected, which would run its `finally`."""
        self.steps = 0
        self.cancelled_timers = 0
        self._timers: list[tuple[float, _Step]] = []
        self._ready: deque[_Step]
        self._stopping: bool
        self.set_task_factory(self._make)

    def time(self) -> float:
        return self.now

    def _write_to_self(self) -> None:
        pass

    def _make(
        self, loop: asyncio.AbstractEventLoop, coro: Any, *, context: Context | None = None, **options: Any
    ) -> asyncio.Task[Any]:
        context = copy_context() if context is None else context
        context.run(_RUNNING.set, self.node)  # the context may be an empty one; the first step asks it for the node
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, context=context, **options)
        task.node = self.node  # type: ignore[attr-defined] - a task of asyncio takes attributes
        self.kept.append(task)
        return task

    def spawn(self, node: Node | None, coro: Any) -> asyncio.Task[Any]:
        """Run a coroutine on a node."""
        before, self.node = self.node, node
        try:
            return self.create_task(coro, context=Context())
        finally:
            self.node = before

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        step = _Step(self, self._node_of(callback), self.now, callback, args, context)
        self._ready.append(step)
        return step

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        step = _Step(self, self._node_of(callback), when, callback, args, context)
        step._scheduled = True
        heapq.heappush(self._timers, (when, step))
        return step

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_exception_handler(self, context: Any) -> None:
        pass

    def _node_of(self, callback: Any) -> Node | None:
        owner = getattr(callback, "__self__", None)
        if not isinstance(owner, asyncio.Task):
            return self.node
        if not hasattr(owner, "node"):  # made without the factory
            # From Python 3.12 on, its first step may have been taken at once. Before, this is its first step.
            owner.node = owner.get_context().get(_RUNNING) if sys.version_info >= (3, 12) else self.node  # type: ignore[attr-defined] - as above
        return owner.node  # type: ignore[attr-defined, no-any-return] - as above

    def _run_once(self) -> None:
        """Take all steps that are ready. If there are none, move the clock to the next timer."""
        self._drop_cancelled_timers()
        timers, ready = self._timers, self._ready
        if not ready and not self._stopping:
            if not timers:
                raise NothingLeft
            self.now += max(0, timers[0][0] - self.now)
        end = self.now + _RESOLUTION
        while timers and timers[0][0] < end:
            _, step = heapq.heappop(timers)
            step._scheduled = False
            ready.append(step)
        for _ in range(len(ready)):
            step = ready.popleft()
            if not step._cancelled:
                self._take(step)

    def _drop_cancelled_timers(self) -> None:
        """Drop those that come next, or all if they are many, as asyncio does."""
        timers = self._timers
        if len(timers) > _MANY and self.cancelled_timers / len(timers) > 0.5:
            for _, step in timers:
                step._scheduled = not step._cancelled
            timers[:] = [timer for timer in timers if timer[1]._scheduled]
            heapq.heapify(timers)
            self.cancelled_timers = 0
        while timers and timers[0][1]._cancelled:
            self.cancelled_timers -= 1
            heapq.heappop(timers)[1]._scheduled = False

    def _take(self, step: _Step) -> None:
        node = step.node
        if node is not None:
            if node.dead:
                return
            if node.still:
                node.held.append((step._callback, step._args))
                return
        self.steps += 1
        context = step._context
        if context.get(_RUNNING) is not node:
            context.run(_RUNNING.set, node)
        before, self.node = self.node, node
        try:
            context.run(step._callback, *step._args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            pass  # asyncio's loop would log that a callback has failed, and go on
        finally:
            self.node = before

    def go_on(self, node: Node) -> None:
        """Let a node go on that stood still."""
        node.still = False
        held, node.held = node.held, []
        before, self.node = self.node, node
        for callback, args in held:
            self.call_soon(callback, *args)
        self.node = before
