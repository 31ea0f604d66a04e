"""What kind of function a handler is."""

import functools
import inspect
import math
from collections.abc import Awaitable
from typing import cast

import anyio
from anyio import to_thread

from maas_backoff.domain.task import TaskEntity
from maas_backoff.executors.base import ExceptionHandler, Handler


def is_coroutine_handler(handler: Handler) -> bool:
    """Whether the handler is `async def`: as a function, a method, a partial of one, or an object's __call__."""
    function: object = handler
    while isinstance(function, functools.partial):
        function = cast("functools.partial[object]", function).func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - the question is not whether it can be called


async def call_here(handler: ExceptionHandler, task: TaskEntity) -> object:
    """Call a function in this process, in a thread if it is not a coroutine function, and return what it returns."""
    if is_coroutine_handler(handler):
        return await cast(Awaitable[object], handler(task))
    limiter = anyio.CapacityLimiter(math.inf)
    return await to_thread.run_sync(handler, task, abandon_on_cancel=True, limiter=limiter)
