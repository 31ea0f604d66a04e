"""Kinds of tasks and their handles, for blocking calls."""

from collections.abc import Callable, Coroutine, Generator, Iterable
from datetime import timedelta
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, Unpack

from maas_backoff.domain.spec import CreateOptions
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.stream import StreamPart
from maas_backoff.domain.task import TaskEntity
from maas_backoff.kinds.handle import TaskHandle
from maas_backoff.kinds.kind import KindSpec, KindWithOptions, TaskKind
from maas_backoff.sync.following import followed
from maas_backoff.sync.items import items_of
from maas_backoff.sync.portal import Connected

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)


class Run(Protocol):
    """Runs a call in the event loop of blocking calls, and returns its result."""

    def __call__(self, call: Callable[[], Coroutine[Any, Any, T]], /) -> T: ...


class SyncTaskHandle(Generic[R_co]):
    """A task of a kind, as TaskHandle: its id, its state, and its result in the type that the function returns."""

    def __init__(self, handle: TaskHandle[R_co], run: Run, user: Connected) -> None:
        """`user` has the connections that an iterator uses."""
        self._handle = handle
        self._run = run
        self._user = user

    def __repr__(self) -> str:
        return f"<SyncTaskHandle of {self.task_id!r}>"

    @property
    def task_id(self) -> str:
        """The id of the task."""
        return self._handle.task_id

    def result(self, timeout: float | timedelta | None = None) -> R_co:
        """Wait until the task is finished, and return what the function returned. Raises as TaskHandle.result does.

        `timeout` is in seconds, or a timedelta; None waits for ever, 0 looks once.
        """
        return self._run(lambda: self._handle.result(timeout))

    def stream(self, *, after: str | None = None) -> Generator[StreamPart, None, None]:
        """Return an iterator: the parts that the function emits with `task.emit`, as `SyncScheduler.stream` does."""
        return followed(self._user, lambda: self._handle.stream(after=after))

    def cancel(self, *, running: bool = False) -> bool:
        """Cancel the task while it is pending, and with `running` also while it runs, as `cancel_task` does."""
        return self._run(lambda: self._handle.cancel(running=running))

    def status(self) -> TaskStatus:
        """Return the state of the task. Raises TaskNotFoundError."""
        return self._run(self._handle.status)

    def task(self) -> TaskEntity:
        """Return the task as it is now, with its params and result as JSON. Raises TaskNotFoundError."""
        return self._run(self._handle.task)


class SyncKindWithOptions(Generic[P, R]):
    """Creates tasks of a kind, each with the same options."""

    def __init__(self, kind: KindWithOptions[P, R], run: Run, user: Connected) -> None:
        self._creates = kind
        self._run = run
        self._user = user

    def create(self, *args: P.args, **kwargs: P.kwargs) -> SyncTaskHandle[R]:
        """Create a task with these arguments, and return its handle. Raises as `TaskKind.create` does."""
        return self._handle_of(self._run(lambda: self._creates.create(*args, **kwargs)))

    def spec(self, *args: P.args, **kwargs: P.kwargs) -> KindSpec[P, R]:
        """Return one task for `create_many`. Raises InvalidValueError and PayloadError as `create` does."""
        return self._creates.spec(*args, **kwargs)

    def _handle_of(self, handle: TaskHandle[R]) -> SyncTaskHandle[R]:
        return SyncTaskHandle(handle, self._run, self._user)


class SyncKind(SyncKindWithOptions[P, R]):
    """A kind of tasks: `P` are the parameters of its tasks, `R` is the type of their result."""

    def __init__(self, kind: TaskKind[P, R], run: Run, user: Connected) -> None:
        super().__init__(kind, run, user)
        self._kind = kind

    def __repr__(self) -> str:
        return repr(self._kind)

    @property
    def name(self) -> str:
        """The name of the kind, which stands in each of its tasks."""
        return self._kind.name

    def options(self, **options: Unpack[CreateOptions]) -> SyncKindWithOptions[P, R]:
        """Return this kind with options, as `TaskKind.options` does: `.options(priority=-5).create("a cat")`."""
        return SyncKindWithOptions(self._kind.options(**options), self._run, self._user)

    def create_many(self, specs: Iterable[KindSpec[P, R]]) -> list[SyncTaskHandle[R]]:
        """Create many tasks, as `create_tasks` does: `.create_many([kind.spec("a cat"), …])`."""
        handles = self._run(lambda: self._kind.create_many(items_of(specs)))
        return list(map(self._handle_of, handles))

    def handle(self, task_id: str) -> SyncTaskHandle[R]:
        """Return the handle of a task of this kind that was created before, perhaps by another process."""
        return self._handle_of(self._kind.handle(task_id))
