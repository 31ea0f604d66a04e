"""The declaration of a kind: its name, its function, its policy and its lifespan."""

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import attrs

from maas_backoff.config import TaskConfig, ThreadPoolConfig
from maas_backoff.domain.batching import Batching
from maas_backoff.domain.signals import Misfit
from maas_backoff.domain.spec import KindOptions
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.validation import own_name, rename
from maas_backoff.errors import ConfigError, HandlerError, InvalidValueError, PayloadError
from maas_backoff.kinds.signature import Signature
from maas_backoff.worker.executors.base import Handler
from maas_backoff.worker.executors.call import is_coroutine_handler
from maas_backoff.worker.executors.lifespan import Lifespan

_OPTIONS = frozenset(KindOptions.__annotations__)


def checked_options(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a kind, durations in seconds. Raises ConfigError and InvalidValueError."""
    for name, value in options.items():
        if name not in _OPTIONS:
            raise InvalidValueError(name, "one of the options " + ", ".join(sorted(_OPTIONS)), value)
    own = dict(options)
    strategy = own.get("backoff_strategy")
    if callable(strategy):
        raise ConfigError("backoff_strategy", "a name: a callable is set for the whole queue", strategy)
    timeout = {} if "exec_timeout" not in own else {"exec_timeout": own.pop("exec_timeout")}
    try:
        config, threadpool = attrs.evolve(TaskConfig(), **own), ThreadPoolConfig(**timeout)
    except ConfigError as error:
        rename(error, own_name(error.option, options.keys()))
        raise
    return {name: getattr(config, name) for name in own} | dict.fromkeys(timeout, threadpool.exec_timeout)


@attrs.frozen(slots=False)
class Declaration:
    """A kind of tasks, as a program declares it. The annotations are resolved as soon as their names are defined."""

    name: str
    function: Callable[..., Any]
    options: Mapping[str, Any]
    """Options of TaskConfig, and `exec_timeout`, for the tasks of this kind."""
    lifespan: Lifespan | None = None
    batching: Batching | None = None
    """The way its tasks run in batches; None: each runs alone."""

    @cached_property
    def signature(self) -> Signature:
        """The parameters and the result. Raises HandlerError if they cannot be stored as JSON."""
        try:
            return self._signature()
        except NameError as error:
            raise HandlerError(
                f"kind {self.name!r}: an annotation has the unknown name {error.name!r}; define it in the module, "
                "and import it not only for type checkers"
            ) from None

    def check(self) -> None:
        """Raise HandlerError for a function that cannot be used.

        An annotation may have a name that is defined later.
        """
        with suppress(NameError):
            self.__dict__["signature"] = self._signature()

    def check_resolved(self) -> None:
        """Raise HandlerError for a function that cannot be used, also for an unknown name."""
        self.signature  # noqa: B018 - resolves the annotations

    def _signature(self) -> Signature:
        return Signature.of(self.name, self.function, has_value=self.lifespan is not None)

    @cached_property
    def handler(self) -> Handler:
        """The handler that executors call: with the task, and the value of the lifespan if there is one."""
        return _handler_of(self)

    def cost_of(self, _: Sequence[object], /) -> float | None:
        """Return what a new task with these arguments costs; None: what its options say."""
        return None

    def arguments(self, task: TaskEntity, values: Sequence[object]) -> tuple[list[object], dict[str, object]]:
        """Return the arguments for the function. Raises Misfit for params that do not fit its parameters."""
        signature = self.signature
        try:
            args, kwargs = signature.arguments_of(task.task_params)
        except PayloadError as error:
            raise Misfit("bad_arguments", str(error)) from None
        return [*((task,) if signature.takes_task else ()), *values, *args], kwargs

    def stored(self, result: object) -> object:
        """Return the JSON value of a result. Raises Misfit for a value of another type."""
        try:
            return self.signature.result.dump(result, "result")
        except PayloadError as error:
            raise Misfit("not_serializable", str(error)) from None


def named_as(handler: Handler, function: Callable[..., Any]) -> Handler:
    """Give a handler the names of a kind's function, by which a child process finds the kind: see HandlerReference."""
    handler.__module__, handler.__qualname__ = function.__module__, function.__qualname__
    return handler


def _handler_of(kind: Declaration) -> Handler:
    function = kind.function

    async def call(task: TaskEntity, *values: object) -> object:
        args, kwargs = kind.arguments(task, values)
        return kind.stored(await function(*args, **kwargs))

    def call_plain(task: TaskEntity, *values: object) -> object:
        args, kwargs = kind.arguments(task, values)
        result = function(*args, **kwargs)
        return awaited(result) if inspect.isawaitable(result) else kind.stored(result)

    async def awaited(result: Awaitable[object]) -> object:
        return kind.stored(await result)

    return named_as(call if is_coroutine_handler(function) else call_plain, function)
