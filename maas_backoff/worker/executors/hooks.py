"""The hooks of users around each attempt: context managers in the place where the handler runs."""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, cast

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import HandlerError
from maas_backoff.logs import about
from maas_backoff.worker.executors.base import Handler
from maas_backoff.worker.executors.call import check_takes, is_coroutine_handler

log: Log = log_for("worker")

Manager = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]

AttemptHook = (
    Callable[[TaskEntity], AbstractContextManager[Any]] | Callable[[TaskEntity], AbstractAsyncContextManager[Any]]
)
"""A function that returns a context manager for the task of an attempt, as @contextmanager makes them."""

Entered = list[tuple[str, Manager, TaskEntity]]
"""The managers that were entered, each with the name of its hook and its task."""


_REMEDY = "let the hook yield once, and decorate it with @contextmanager or @asynccontextmanager"


def check_hook(hook: object) -> None:
    """Raise HandlerError for a hook that cannot be called with a task, or that is no context manager yet."""
    if not callable(hook):
        raise HandlerError(f"around_attempt: expected a function, got {type(hook).__name__}")
    if inspect.isgeneratorfunction(hook) or inspect.isasyncgenfunction(hook):
        decorator = "contextmanager" if inspect.isgeneratorfunction(hook) else "asynccontextmanager"
        raise HandlerError(f"around_attempt: {_name(hook)} yields; put @{decorator} below @around_attempt")
    if inspect.iscoroutinefunction(hook):
        raise HandlerError(f"around_attempt: {_name(hook)} is `async def` without a yield; {_REMEDY}")
    check_takes("around_attempt", hook, 1)


def check_fits(hooks: Iterable[AttemptHook], handlers: Iterable[Handler]) -> None:
    """Raise HandlerError for a hook that is awaited around a handler that is not."""
    for hook in hooks:
        if inspect.isasyncgenfunction(inspect.unwrap(hook)):
            for handler in handlers:
                if not is_coroutine_handler(handler):
                    raise HandlerError(_misfit(_name(hook), getattr(handler, "__qualname__", type(handler).__name__)))


def hooked(handler: Handler, hooks: Sequence[AttemptHook]) -> Handler:
    """Return the handler inside of its hooks, the first of them outermost; without hooks, the handler itself.

    If a hook raises before the handler is called, the attempt fails with this error. If a hook raises afterwards, the
    error is logged, and the outcome of the handler is kept. Around the call for a batch, each hook is entered for each
    task.
    """
    if not hooks:
        return handler
    return _around_awaited(handler, hooks) if is_coroutine_handler(handler) else _around_plain(handler, hooks)


def _around_awaited(handler: Handler, hooks: Sequence[AttemptHook]) -> Handler:
    async def call(task: TaskEntity | Sequence[TaskEntity], *values: object) -> object:
        entered: Entered = []
        try:
            for hook in hooks:
                for one in _tasks_of(task):
                    await _enter(hook, one, entered)
            value = await cast("Any", handler(task, *values))
        except BaseException as error:
            await _leave(entered, error)
            raise
        await _leave(entered, None)
        return value

    return call


def _around_plain(handler: Handler, hooks: Sequence[AttemptHook]) -> Handler:
    def call(task: TaskEntity | Sequence[TaskEntity], *values: object) -> object:
        entered: Entered = []
        try:
            for hook in hooks:
                for one in _tasks_of(task):
                    _enter_plain(hook, one, entered)
            value = handler(task, *values)
        except BaseException as error:
            _leave_plain(entered, error)
            raise
        if inspect.isawaitable(value):  # an `async def` behind a plain decorator
            return awaited(value, entered)
        _leave_plain(entered, None)
        return value

    async def awaited(value: Any, entered: Entered) -> object:
        try:
            result = await value
        except BaseException as error:
            _leave_plain(entered, error)
            raise
        _leave_plain(entered, None)
        return result

    return call


def _tasks_of(task: TaskEntity | Sequence[TaskEntity]) -> Sequence[TaskEntity]:
    """Return the task, or those of a batch."""
    return [task] if isinstance(task, TaskEntity) else task


async def _enter(hook: AttemptHook, task: TaskEntity, entered: Entered) -> None:
    name = _name(hook)
    try:
        manager = _manager(hook, name, task)
        if isinstance(manager, AbstractAsyncContextManager):
            await manager.__aenter__()
        else:
            manager.__enter__()
    except BaseException as error:
        _note(error, name)
        raise
    entered.append((name, manager, task))


def _enter_plain(hook: AttemptHook, task: TaskEntity, entered: Entered) -> None:
    name = _name(hook)
    try:
        manager = _plain(_manager(hook, name, task), name)
        manager.__enter__()
    except BaseException as error:
        _note(error, name)
        raise
    entered.append((name, manager, task))


async def _leave(entered: Entered, error: BaseException | None) -> None:
    """Leave the hooks, the last one first. Raises CancelledError, which stops the attempt, and nothing else."""
    cancelled: asyncio.CancelledError | None = None
    for name, manager, task in reversed(entered):
        try:
            if isinstance(manager, AbstractAsyncContextManager):
                await manager.__aexit__(*_about(error))
            else:
                manager.__exit__(*_about(error))
        except asyncio.CancelledError as own:
            if own is not error:
                cancelled = error = own
        except BaseException as own:  # noqa: BLE001 - the outcome of the handler is kept
            if own is not error:
                _tell(name, task, own)
    if cancelled is not None:
        raise cancelled


def _leave_plain(entered: Entered, error: BaseException | None) -> None:
    """Leave the hooks, the last one first. Raises nothing."""
    for name, manager, task in reversed(entered):
        try:
            cast("AbstractContextManager[Any]", manager).__exit__(*_about(error))
        except BaseException as own:  # noqa: BLE001 - the outcome of the handler is kept
            if own is not error:
                _tell(name, task, own)


def _about(error: BaseException | None) -> tuple[Any, Any, Any]:
    return (None, None, None) if error is None else (type(error), error, error.__traceback__)


def _manager(hook: AttemptHook, name: str, task: TaskEntity) -> Manager:
    manager: Manager = hook(task)
    if isinstance(manager, AbstractContextManager | AbstractAsyncContextManager):
        return manager
    kind = type(manager).__name__
    if inspect.iscoroutine(manager):
        manager.close()  # avoids a warning of Python that the coroutine was never awaited
    raise HandlerError(f"around_attempt: {name} returned {kind}, which is no context manager; {_REMEDY}")


def _plain(manager: Manager, name: str) -> AbstractContextManager[Any]:
    if isinstance(manager, AbstractContextManager):
        return manager
    raise HandlerError(_misfit(name, "the handler"))


def _name(hook: object) -> str:
    return str(getattr(hook, "__qualname__", type(hook).__name__))


def _misfit(hook: str, handler: str) -> str:
    return f"around_attempt: {hook} is awaited, and {handler} is not `async def`; use @contextmanager for the hook"


def _note(error: BaseException, name: str) -> None:
    note = f"in the hook {name} of around_attempt, before the handler was called"
    if note not in getattr(error, "__notes__", ()):  # a hook may raise one error again and again
        error.add_note(note)


def _tell(name: str, task: TaskEntity, error: BaseException) -> None:
    extra = about("hook_failed", task.task_id, task.attempt, task.token)
    words = "task %r: the hook %s failed after the handler had ended; the outcome of the handler is kept"
    log.error(words, task.task_id, name, exc_info=error, extra=extra)
