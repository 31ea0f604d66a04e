"""How users' functions are called: what kind they are, what they can be called with, in which asyncio task."""

import asyncio
import functools
import inspect
import math
import sys
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, cast

import anyio
from anyio import to_thread

from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import HandlerError
from maas_backoff.worker.executors.base import ExceptionHandler, Handler

T = TypeVar("T")

_EAGER: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
"""An eager task runs at once until its first wait: a handler that awaits nothing costs no round of the event loop."""


def own_task(call: Coroutine[Any, Any, T], name: str) -> "asyncio.Task[T]":
    """Run a coroutine in an asyncio task of its own, in an empty context of its own; the caller keeps the task.

    `call` must not raise SystemExit or KeyboardInterrupt: asyncio lets both through to the event loop.
    """
    # Not loop.create_task: that takes longer, and knows eager_start since Python 3.14 only.
    return asyncio.Task(call, loop=asyncio.get_running_loop(), name=name, context=Context(), **_EAGER)


def is_coroutine_handler(handler: Handler) -> bool:
    """Whether the handler is `async def`: as a function, a method, a partial of one, or an object's __call__."""
    return _is(inspect.iscoroutinefunction, _without_partials(handler))


def check_handler(what: str, handler: Callable[..., object], *numbers: int) -> None:
    """Raise HandlerError for a function that can be called with none of these numbers of arguments, or that yields."""
    check_no_generator(what, handler)
    check_takes(what, handler, *numbers)


def check_no_generator(what: str, handler: object) -> None:
    """Raise HandlerError for anything but a function that returns its value."""
    if not callable(handler):
        raise HandlerError(f"{what}: expected a function, got {type(handler).__name__}")
    function = inspect.unwrap(cast("Callable[..., object]", _without_partials(handler)))
    if _is(inspect.isgeneratorfunction, function) or _is(inspect.isasyncgenfunction, function):
        raise HandlerError(f"{what}: {_name(handler)} yields, and nobody would take what it yields; return one value")


def check_takes(what: str, function: Callable[..., object], *numbers: int, one: str = "the task alone") -> None:
    """Raise HandlerError for a function that can be called with none of these numbers of arguments.

    `one` says what a single argument is.
    """
    if not any(takes(function, number) for number in numbers):
        wanted = " or ".join(one if number == 1 else _ARGUMENTS[number] for number in numbers)
        raise HandlerError(f"{what}: {_name(function)} cannot be called with {wanted}; change its parameters to that")


_ARGUMENTS = {0: "no argument", 2: "the task and what the worker_lifespan yields"}


def takes(function: Callable[..., object], number: int) -> bool:
    """Return whether a function can be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # of some functions in C, nobody can tell
        return True
    try:
        signature.bind(*[None] * number)
    except TypeError:
        return False
    return True


def _name(function: Callable[..., object]) -> str:
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        return f"{name}{inspect.signature(function)}"
    except (ValueError, TypeError):
        return str(name)


def _without_partials(function: object) -> object:
    while isinstance(function, functools.partial):
        function = cast("functools.partial[object]", function).func
    return function


def _is(kind: Callable[[object], bool], function: object) -> bool:
    return kind(function) or kind(getattr(function, "__call__", None))  # noqa: B004 - the question is not whether it can be called


async def call_here(handler: ExceptionHandler, task: TaskEntity) -> object:
    """Call a function in this process, in a thread if it is not a coroutine function, and return what it returns."""
    if is_coroutine_handler(handler):
        value = handler(task)
    else:
        limiter = anyio.CapacityLimiter(math.inf)
        value = await to_thread.run_sync(handler, task, abandon_on_cancel=True, limiter=limiter)
    return await value if inspect.isawaitable(value) else value
