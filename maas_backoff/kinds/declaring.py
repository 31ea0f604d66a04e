"""The decorator that declares a kind of tasks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, Unpack, overload

from maas_backoff.domain.gpu import GpuAssignment
from maas_backoff.domain.spec import KindOptions
from maas_backoff.domain.task import TaskEntity

if TYPE_CHECKING:
    # A program that declares no kind imports neither: see scheduler.py.
    from maas_backoff.kinds.kind import TaskFunction
    from maas_backoff.worker.executors.lifespan import Lifespan

P = ParamSpec("P")
R = TypeVar("R")
Y = TypeVar("Y")

KindLifespan = (
    Callable[[], AbstractContextManager[Y]]
    | Callable[[], AbstractAsyncContextManager[Y]]
    | Callable[[GpuAssignment | None], AbstractContextManager[Y]]
    | Callable[[GpuAssignment | None], AbstractAsyncContextManager[Y]]
)
"""A function that returns a context manager, which yields the value for the function of the kind."""


class DeclareKind(Protocol):
    """A decorator for a function with parameters of its own, perhaps after the task."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskEntity, P], Coroutine[Any, Any, R]], /
    ) -> "TaskFunction[Concatenate[TaskEntity, P], Coroutine[Any, Any, R], P, R]": ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskEntity, P], R], /
    ) -> "TaskFunction[Concatenate[TaskEntity, P], R, P, R]": ...
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> "TaskFunction[P, Coroutine[Any, Any, R], P, R]": ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> "TaskFunction[P, R, P, R]": ...


class DeclareKindWithValue(Protocol, Generic[Y]):
    """A decorator for a function that takes the value of a lifespan, perhaps after the task, before its parameters."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskEntity, Y, P], Coroutine[Any, Any, R]], /
    ) -> "TaskFunction[Concatenate[TaskEntity, Y, P], Coroutine[Any, Any, R], P, R]": ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[TaskEntity, Y, P], R], /
    ) -> "TaskFunction[Concatenate[TaskEntity, Y, P], R, P, R]": ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Y, P], Coroutine[Any, Any, R]], /
    ) -> "TaskFunction[Concatenate[Y, P], Coroutine[Any, Any, R], P, R]": ...
    @overload
    def __call__(self, function: Callable[Concatenate[Y, P], R], /) -> "TaskFunction[Concatenate[Y, P], R, P, R]": ...


class DeclaresKinds(ABC):
    """The part of TaskBackoffScheduler that declares kinds."""

    @abstractmethod
    def _declare(
        self, function: Callable[..., Any], name: str | None, lifespan: "Lifespan | None", options: KindOptions
    ) -> "TaskFunction[..., Any, ..., Any]": ...

    @overload
    def task(
        self, function: Callable[Concatenate[TaskEntity, P], Coroutine[Any, Any, R]], /
    ) -> "TaskFunction[Concatenate[TaskEntity, P], Coroutine[Any, Any, R], P, R]": ...
    @overload
    def task(
        self, function: Callable[Concatenate[TaskEntity, P], R], /
    ) -> "TaskFunction[Concatenate[TaskEntity, P], R, P, R]": ...
    @overload
    def task(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> "TaskFunction[P, Coroutine[Any, Any, R], P, R]": ...
    @overload
    def task(self, function: Callable[P, R], /) -> "TaskFunction[P, R, P, R]": ...
    @overload
    def task(
        self, /, *, name: str | None = None, lifespan: None = None, **options: Unpack[KindOptions]
    ) -> DeclareKind: ...
    @overload
    def task(
        self, /, *, name: str | None = None, lifespan: KindLifespan[Y], **options: Unpack[KindOptions]
    ) -> DeclareKindWithValue[Y]: ...

    def task(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        lifespan: "Lifespan | None" = None,
        **options: Unpack[KindOptions],
    ) -> Any:
        """Declare a kind of tasks: a decorator for an `async def` or `def` function with parameters of its own.

        `await render.create("a cat", steps=20)` creates a task of the kind `render`, and returns its TaskHandle. The
        scheduler runs the tasks of its kinds. Workers without the kind leave its tasks to others.

        `name` is the name of the kind; None: that of the function. `options` (KindOptions) are the policy of the kind's
        tasks, and their `exec_timeout`. A function whose first parameter is annotated `TaskEntity` is called with the
        task there. `lifespan` is a function that returns a context manager, as for `set_worker_lifespan`. The yielded
        value comes before the parameters of the task, after the TaskEntity. Kinds with the same lifespan share a value.

        Raises HandlerError, with the remedy, for a function whose parameters or result cannot be stored as JSON, and
        for a name that another kind has. Raises ConfigError for a wrong option.
        """
        if function is not None:
            return self._declare(function, name, lifespan, options)
        return partial(self._declare, name=name, lifespan=lifespan, options=options)
