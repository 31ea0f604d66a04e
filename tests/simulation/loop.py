"""An event loop in virtual time, on which several nodes run: a node can die, or stand still, between any two steps."""

import asyncio
import selectors
import sys
from collections.abc import Callable
from contextvars import Context, ContextVar
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


class _NoSelector(selectors.SelectSelector):
    """Waits for nothing real: a wait moves the clock."""

    loop: "SimulatedLoop"

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise NothingLeft
        self.loop.now += max(0.0, timeout)
        return []


def empty_context() -> Context:
    """Return a context that holds nothing but the node that runs."""
    context = Context()
    context.run(_RUNNING.set, _RUNNING.get())
    return context


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Runs each step on behalf of a node: that of the asyncio task that steps, else that which has scheduled it."""

    def __init__(self) -> None:
        selector = _NoSelector()
        selector.loop = self
        super().__init__(selector)
        self.now = 1000.0
        self.node: Node | None = None
        self._clock_resolution = 1e-6
        self.kept: list[asyncio.Task[Any]] = []
        """All asyncio tasks: what a dead node leaves is not collected, which would run its `finally`."""
        self.steps = 0
        self.set_task_factory(self._make)
        self.set_exception_handler(lambda _loop, _context: None)

    def time(self) -> float:
        return self.now

    def _write_to_self(self) -> None:
        pass

    def _make(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
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
        return super().call_soon(self._step, self._node_of(callback), callback, args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> asyncio.TimerHandle:
        return super().call_at(when, self._step, self._node_of(callback), callback, args, context=context)

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Context | None = None) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def _node_of(self, callback: Any) -> Node | None:
        owner = getattr(callback, "__self__", None)
        if not isinstance(owner, asyncio.Task):
            return self.node
        if not hasattr(owner, "node"):  # made without the factory
            # From Python 3.12 on, its first step may have been taken at once. Before, this is its first step.
            owner.node = owner.get_context().get(_RUNNING) if sys.version_info >= (3, 12) else self.node  # type: ignore[attr-defined] - as above
        return owner.node  # type: ignore[attr-defined, no-any-return] - as above

    def _step(self, node: Node | None, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        if node is not None:
            if node.dead:
                return
            if node.still:
                node.held.append((callback, args))
                return
        self.steps += 1
        before, self.node = self.node, node
        _RUNNING.set(node)
        try:
            callback(*args)
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
