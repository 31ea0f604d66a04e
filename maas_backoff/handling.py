"""The handlers and the kinds of tasks of a scheduler, each checked when it is set."""

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from maas_backoff.client.part import CallsPart
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.batching import Batching
from maas_backoff.domain.demand import MIB_PER_GIB
from maas_backoff.domain.kind import checked_kind
from maas_backoff.domain.spec import KindOptions
from maas_backoff.errors import HandlerError, InvalidValueError
from maas_backoff.kinds.declaring import DeclaresKinds
from maas_backoff.kinds.declaring_batches import DeclaresBatches
from maas_backoff.kinds.registry import KindRegistry

if TYPE_CHECKING:  # see scheduler.py: the first handler and the first kind import these
    from maas_backoff.client.client import QueueClient
    from maas_backoff.kinds.declaration import Declaration
    from maas_backoff.kinds.kind import TaskFunction, TaskKind
    from maas_backoff.worker.executors.base import ExceptionHandler, Handler, TaskHandler
    from maas_backoff.worker.executors.hooks import AttemptHook
    from maas_backoff.worker.executors.lifespan import Lifespan
    from maas_backoff.worker.handled import HandledKind

_H = TypeVar("_H", bound="TaskHandler")
_E = TypeVar("_E", bound="ExceptionHandler")
_L = TypeVar("_L", bound="Lifespan")
_A = TypeVar("_A", bound="AttemptHook")


class SetsHandlers(CallsPart, DeclaresKinds, DeclaresBatches):
    """The part of TaskBackoffScheduler that takes the functions of users."""

    def __init__(self, config: TaskBackoffConfig) -> None:
        self.config: TaskBackoffConfig = config
        self._handler: Handler | None = None
        self._lifespan: Lifespan | None = None
        self._exception_handler: ExceptionHandler | None = None
        self._hooks: list[AttemptHook] = []
        self._kinds = KindRegistry(lambda: self._client)

    @property
    @abstractmethod
    def _is_started(self) -> bool:
        """Whether a worker runs here."""
        ...

    def set_custom_task_handler(self, handler: _H) -> _H:
        """Set the function that runs tasks, `async def` or `def`; works as a decorator.

        The handler is called with the TaskEntity and, if there is a worker_lifespan, the value that it yields. If the
        handler returns ResultEntity.ok(…) or any JSON value, the task completes. ResultEntity.fail(…) or an
        exception fails the attempt. Retry, Snooze and Discard decide what happens next. If a `def` function returns an
        awaitable, as an `async def` behind a plain decorator does, the event loop awaits it.

        Raises HandlerError, with the remedy, for a handler that cannot be called this way.
        """
        self._check_stopped("handler")
        from maas_backoff.worker.handlers import check_task_handler

        check_task_handler(handler, self.config)
        self._handler = handler
        return handler

    def set_worker_lifespan(self, lifespan: _L) -> _L:
        """Set the start-up of each process that calls the handler, such as loading a model; works as a decorator.

        `lifespan` is a function that returns a context manager (@contextmanager, or @asynccontextmanager). The yielded
        value is the second argument of the handler. A `lifespan` with a parameter is called with the GpuAssignment of
        its child process, or None without a GPU.

        In process mode every child, which sees only its own GPU, enters the lifespan; otherwise the worker does. One
        asyncio task enters and leaves it, so it may have a task group around its `yield`. The task group runs on
        between tasks; in a child, only a handler that is not `async def` blocks it. A lifespan that ends by itself ends
        the worker, or its child.

        The lifespan does not count in `exec_timeout`. `start` waits until the first one is entered. If tasks need a GPU
        and none has room at the start, the first task that gets a GPU waits instead. Raises HandlerError like
        `set_custom_task_handler`.
        """
        self._check_stopped("worker_lifespan")
        from maas_backoff.worker.handlers import check_lifespan

        check_lifespan("worker_lifespan", lifespan, self.config)
        self._lifespan = lifespan
        return lifespan

    def around_attempt(self, hook: _A) -> _A:
        """Add a hook around each attempt of this scheduler's handler and kinds; works as a decorator.

        `hook` is a function from the TaskEntity to a context manager: @contextmanager, or @asynccontextmanager if all
        handlers are `async def`. It is entered where the handler runs, on the event loop, in a thread or in a child
        process, within `exec_timeout`. The first hook is the outermost. An error of the handler is raised at its
        `yield`.

        If a hook raises before its `yield`, the handler is not called, and the attempt fails with this error. If it
        raises after its `yield`, the error is logged. A hook cannot change the outcome of the handler. Raises
        HandlerError, with the remedy, for a hook that cannot be used.
        """
        self._check_stopped("around_attempt")
        from maas_backoff.worker.handlers import check_attempt_hook

        check_attempt_hook(hook, self.config)
        self._hooks.append(hook)
        return hook

    def set_custom_task_exception_handler(self, handler: _E) -> _E:
        """Set a function that is called after an attempt that raised, timed out or lost its child process.

        `handler` is called in the worker with the TaskEntity, whose `error` is that of the attempt. It may take as long
        as the attempt. If it returns ResultEntity.ok(…), the task completes with that fallback. ResultEntity.fail(…)
        sets the code and message of the failed attempt. An exception of `handler` is logged and changes nothing.
        """
        self._check_stopped("exception handler")
        from maas_backoff.worker.handlers import check_exception_handler

        check_exception_handler(handler)
        self._exception_handler = handler
        return handler

    def _declare(
        self, function: Callable[..., Any], name: str | None, lifespan: "Lifespan | None", options: KindOptions
    ) -> "TaskFunction[..., Any, ..., Any]":
        from maas_backoff.kinds.declaration import Declaration, checked_options

        name = self._checked_kind(function, name, lifespan)
        return self._add_kind(Declaration(name, function, checked_options(options), lifespan))

    def _declare_batch(
        self,
        function: Callable[..., Any],
        batching: Batching,
        cost_of: Callable[[Any], float] | None,
        name: str | None,
        lifespan: "Lifespan | None",
        options: KindOptions,
    ) -> "TaskFunction[..., Any, ..., Any]":
        from maas_backoff.kinds.batches import BatchDeclaration
        from maas_backoff.kinds.declaration import checked_options

        if cost_of is not None and not callable(cost_of):
            raise InvalidValueError("cost_of", "a function of an item, or None", cost_of)
        name = self._checked_kind(function, name, lifespan)
        own = dict(checked_options(options))
        if batching.gpu_memory_per_task:
            # The demand that is stored with a task is that of a batch of this task alone.
            own["min_gpu_memory_gb"] = own.get("min_gpu_memory_gb", 0) + batching.gpu_memory_per_task / MIB_PER_GIB
        return self._add_kind(BatchDeclaration(name, function, own, lifespan, batching, cost_of))

    def _checked_kind(self, function: Callable[..., Any], name: str | None, lifespan: "Lifespan | None") -> str:
        """Return the name of a kind. Raises HandlerError for a function or a lifespan that cannot be used."""
        from maas_backoff.worker.handlers import check_kind_function, check_lifespan

        name = checked_kind(getattr(function, "__name__", None) if name is None else name)
        self._check_stopped(f"kind {name!r}")
        check_kind_function(f"kind {name!r}", function, self.config)
        if lifespan is not None:
            check_lifespan(f"lifespan of kind {name!r}", lifespan, self.config)
        return name

    def _add_kind(self, declaration: "Declaration") -> "TaskFunction[..., Any, ..., Any]":
        from maas_backoff.kinds.kind import TaskFunction

        kind = TaskFunction[..., Any, ..., Any](declaration, self._kinds)
        self._kinds.add(kind.declaration)
        return kind

    @property
    def has_handler(self) -> bool:
        """Whether a task handler is set or a kind is declared; without both, the scheduler is a producer."""
        return self._handler is not None or len(self._kinds) > 0

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the kinds of tasks that this scheduler runs; "" is that of `set_custom_task_handler`."""
        return (*(("",) if self._handler is not None else ()), *self._kinds.names)

    def kind(self, name: str) -> "TaskKind[..., Any]":
        """Return the declared kind with this name, for a program that has the name as text.

        Type checkers do not know its arguments and its result. Raises InvalidValueError if there is no such kind.
        """
        declaration = self._kinds.get(name) if isinstance(name, str) else None
        if declaration is None:
            declared = ", ".join(self._kinds.names) or "there is none"
            raise InvalidValueError("kind", f"the name of a declared kind ({declared})", name)
        from maas_backoff.kinds.kind import TaskKind

        return TaskKind(declaration, self._kinds)

    def _check_stopped(self, what: str) -> None:
        if self._is_started:
            raise HandlerError(f"{what}: set it before start(), not while the scheduler runs")

    def _handled(self, client: "QueueClient") -> "list[HandledKind]":
        """Return the kinds that the worker runs. Raises HandlerError for a function that cannot be used."""
        from maas_backoff.worker.handled import HandledKind
        from maas_backoff.worker.handlers import handled_task_handler

        handled: list[HandledKind] = []
        if self._handler is not None:
            handled.append(handled_task_handler(self._handler, self._lifespan, self._hooks, client.config))
        elif self._lifespan is not None:
            raise HandlerError(
                "worker_lifespan: its value is for the task handler; a kind has a `lifespan=` of its own"
            )
        for kind in self._kinds:
            kind.check_resolved()
            demand, timeout = client.policy_of(kind.options).demand, kind.options.get("exec_timeout")
            hooks = tuple(self._hooks)
            handled.append(HandledKind(kind.name, kind.handler, kind.lifespan, demand, timeout, hooks, kind.batching))
        return handled
