"""The decorator that declares a kind whose tasks run in batches."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, Unpack, overload

from maas_backoff.domain.batching import Batching
from maas_backoff.domain.spec import KindOptions
from maas_backoff.domain.task import TaskEntity
from maas_backoff.kinds.declaring import KindLifespan

if TYPE_CHECKING:
    # As in declaring.py.
    from maas_backoff.kinds.kind import TaskFunction
    from maas_backoff.worker.executors.lifespan import Lifespan

T = TypeVar("T")
R = TypeVar("R")
Y = TypeVar("Y")


class DeclareBatch(Protocol):
    """A decorator for a function that takes the items of several tasks, perhaps after the tasks."""

    @overload
    def __call__(
        self, function: Callable[[list[TaskEntity], list[T]], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> "TaskFunction[[list[TaskEntity], list[T]], Coroutine[Any, Any, Sequence[R | Exception]], [T], R]": ...
    @overload
    def __call__(
        self, function: Callable[[list[TaskEntity], list[T]], Sequence[R | Exception]], /
    ) -> "TaskFunction[[list[TaskEntity], list[T]], Sequence[R | Exception], [T], R]": ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> "TaskFunction[[list[T]], Coroutine[Any, Any, Sequence[R | Exception]], [T], R]": ...
    @overload
    def __call__(
        self, function: Callable[[list[T]], Sequence[R | Exception]], /
    ) -> "TaskFunction[[list[T]], Sequence[R | Exception], [T], R]": ...


class DeclareBatchWithValue(Protocol, Generic[Y]):
    """A decorator for a function that takes the value of a lifespan, perhaps after the tasks, before the items."""

    @overload
    def __call__(
        self, function: Callable[[list[TaskEntity], Y, list[T]], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> "TaskFunction[[list[TaskEntity], Y, list[T]], Coroutine[Any, Any, Sequence[R | Exception]], [T], R]": ...
    @overload
    def __call__(
        self, function: Callable[[list[TaskEntity], Y, list[T]], Sequence[R | Exception]], /
    ) -> "TaskFunction[[list[TaskEntity], Y, list[T]], Sequence[R | Exception], [T], R]": ...
    @overload
    def __call__(
        self, function: Callable[[Y, list[T]], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> "TaskFunction[[Y, list[T]], Coroutine[Any, Any, Sequence[R | Exception]], [T], R]": ...
    @overload
    def __call__(
        self, function: Callable[[Y, list[T]], Sequence[R | Exception]], /
    ) -> "TaskFunction[[Y, list[T]], Sequence[R | Exception], [T], R]": ...


class DeclaresBatches(ABC):
    """The part of TaskBackoffScheduler that declares kinds whose tasks run in batches."""

    @abstractmethod
    def _declare_batch(
        self,
        function: Callable[..., Any],
        batching: Batching,
        cost_of: Callable[[Any], float] | None,
        name: str | None,
        lifespan: "Lifespan | None",
        options: KindOptions,
    ) -> "TaskFunction[..., Any, ..., Any]": ...

    @overload
    def batch(
        self, function: Callable[[list[TaskEntity], list[T]], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> "TaskFunction[[list[TaskEntity], list[T]], Coroutine[Any, Any, Sequence[R | Exception]], [T], R]": ...
    @overload
    def batch(
        self, function: Callable[[list[TaskEntity], list[T]], Sequence[R | Exception]], /
    ) -> "TaskFunction[[list[TaskEntity], list[T]], Sequence[R | Exception], [T], R]": ...
    @overload
    def batch(
        self, function: Callable[[list[T]], Coroutine[Any, Any, Sequence[R | Exception]]], /
    ) -> "TaskFunction[[list[T]], Coroutine[Any, Any, Sequence[R | Exception]], [T], R]": ...
    @overload
    def batch(
        self, function: Callable[[list[T]], Sequence[R | Exception]], /
    ) -> "TaskFunction[[list[T]], Sequence[R | Exception], [T], R]": ...
    @overload
    def batch(
        self,
        /,
        *,
        max_size: int = 32,
        max_wait: float | timedelta = 0.02,
        max_cost: float | None = None,
        cost_of: Callable[[Any], float] | None = None,
        adaptive: bool = False,
        gpu_memory_per_task_gb: float = 0,
        name: str | None = None,
        lifespan: None = None,
        **options: Unpack[KindOptions],
    ) -> DeclareBatch: ...
    @overload
    def batch(
        self,
        /,
        *,
        max_size: int = 32,
        max_wait: float | timedelta = 0.02,
        max_cost: float | None = None,
        cost_of: Callable[[Any], float] | None = None,
        adaptive: bool = False,
        gpu_memory_per_task_gb: float = 0,
        name: str | None = None,
        lifespan: KindLifespan[Y],
        **options: Unpack[KindOptions],
    ) -> DeclareBatchWithValue[Y]: ...

    def batch(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        max_size: int = 32,
        max_wait: float | timedelta = 0.02,
        max_cost: float | None = None,
        cost_of: Callable[[Any], float] | None = None,
        adaptive: bool = False,
        gpu_memory_per_task_gb: float = 0,
        name: str | None = None,
        lifespan: "Lifespan | None" = None,
        **options: Unpack[KindOptions],
    ) -> Any:
        """Declare a kind whose tasks run in batches: a decorator for `async def` or `def` with a list of items.

        `await embed.create("a text")` creates one task, with one item. The function `embed(texts: list[str])` is called
        for several tasks at once. It returns a list with one outcome for each item, in the same order: a result, or an
        exception, which is then that of this task alone. If the function raises, or its process ends, nothing shows
        which task is to blame. The tasks then come back in halves, without using a retry; a task that fails alone uses
        one, and stays alone if others of its kind succeed. Retry, Snooze, RateLimited and Discard, if raised, are meant
        for all tasks of the batch.

        A batch has `max_size` tasks at most (32 by default, at most 1,000). It starts as soon as it is full, or when
        its oldest task has been due for `max_wait` seconds (or a timedelta; 0.02 by default). The costs of its tasks
        add up to `max_cost` at most, unless it has one task only. `cost_of` returns the cost of a task by its item.
        Without it, the cost is that of the option `cost`. With `adaptive`, a batch waits only while the worker could
        not run each task alone.

        On a GPU, a batch of n tasks needs `min_gpu_memory_gb` and n times `gpu_memory_per_task_gb` (GiB, 0 by default).
        If no device has room for so many tasks, the batch is smaller.

        `name`, `lifespan` and `options` are those of `task`. Without any option, `@scheduler.batch` is enough.
        `exec_timeout` is that of a whole batch. A first parameter `tasks: list[TaskEntity]` gets the tasks of the
        items. Raises HandlerError as `task` does, and InvalidValueError for a wrong option.
        """
        batching = Batching.checked(
            max_size, max_wait, max_cost, adaptive=adaptive, gpu_memory_per_task_gb=gpu_memory_per_task_gb
        )
        declare = partial(
            self._declare_batch, batching=batching, cost_of=cost_of, name=name, lifespan=lifespan, options=options
        )
        return declare if function is None else declare(function)
