"""The blocking facade of a scheduler, for programs without an event loop of their own."""

from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar, Unpack, overload

from maas_backoff.client.calls import QueueCalls
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.event import TaskEvent
from maas_backoff.domain.spec import TaskOptions
from maas_backoff.domain.stream import LogLine, StreamPart
from maas_backoff.domain.validation import new_task_id
from maas_backoff.errors import InvalidValueError
from maas_backoff.scheduler import TaskBackoffScheduler
from maas_backoff.sync.calls import SyncCalls
from maas_backoff.sync.following import followed
from maas_backoff.sync.portal import portal

if TYPE_CHECKING:  # a program that creates tasks of no kind imports neither
    from maas_backoff.kinds.kind import TaskKind
    from maas_backoff.sync.kinds import SyncKind

P = ParamSpec("P")
R = TypeVar("R")


class SyncScheduler(SyncCalls):
    """The calls of TaskBackoffScheduler for Django, Flask, scripts and notebooks: each blocks until it has its result.

    Any thread may call, also one whose event loop runs, as that of a notebook does. All calls of a process share one
    event loop in a daemon thread, which the first call starts. A process after a fork starts its own. An interrupted
    call, as by Ctrl-C, is cancelled. Calls connect by themselves, and the end of the program closes all connections.

    Runs no tasks: `maas-backoff worker module:scheduler` does.

    Every call may raise StorageUnavailableError if the server does not answer within `storage.timeout`.
    """

    def __init__(self, scheduler: TaskBackoffScheduler | TaskBackoffConfig | None = None) -> None:
        """Take the scheduler whose kinds and tracing are used, or a configuration. Does no I/O.

        Raises InvalidValueError for anything else.
        """
        if scheduler is None or isinstance(scheduler, TaskBackoffConfig):
            scheduler = TaskBackoffScheduler(scheduler)
        if not isinstance(scheduler, TaskBackoffScheduler):
            raise InvalidValueError("scheduler", "a TaskBackoffScheduler or a TaskBackoffConfig", scheduler)
        self._scheduler = scheduler

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._scheduler.config.task.biz_prefix!r}>"

    @property
    def _calls(self) -> QueueCalls:
        return self._scheduler

    def _run(self, call: Callable[[], Coroutine[Any, Any, R]]) -> R:
        return portal.run(self._scheduler, call)

    # Kinds

    @overload
    def kind(self, kind: "TaskKind[P, R]") -> "SyncKind[P, R]": ...
    @overload
    def kind(self, kind: str) -> "SyncKind[..., Any]": ...

    def kind(self, kind: Any) -> Any:
        """Return a kind of the scheduler for blocking calls: `sync.kind(render).create("a cat", steps=20)`.

        `kind` is the decorated function, or the name of a kind. Type checkers know the arguments and the result of a
        function only. Raises InvalidValueError for a kind of another scheduler, or a name that is not declared.
        """
        from maas_backoff.sync.kinds import SyncKind

        own = self._scheduler.kind(getattr(kind, "name", kind))
        if not isinstance(kind, str) and own.declaration is not kind.declaration:
            raise InvalidValueError("kind", "a kind of the scheduler that SyncScheduler was made of", kind)
        return SyncKind(own, self._run, self._scheduler)

    # Blocks

    def watch(self, task_id: str, *, after: str | None = None) -> Generator[TaskEvent, None, None]:
        """Return an iterator: the task now, and again whenever its state or progress changes, until it is finished.

        `after` is the id of the last event that was received; this event is not yielded again. Quick changes may be
        joined into one event. Raises TaskNotFoundError, also if the task is deleted meanwhile.
        """
        return followed(self._scheduler, lambda: self._calls.watch(task_id, after=after))

    def stream(self, task_id: str, *, after: str | None = None) -> Generator[StreamPart, None, None]:
        """Return an iterator: the parts that the task's handler emits with `task.emit`, until the task is finished.

        `after` is the id of the last part that was received. If a later attempt begins the stream anew, a part with
        `restarted` comes first. Raises InvalidValueError for an `after` that is no id of a part, and
        TaskNotFoundError, also if the task is deleted meanwhile.
        """
        return followed(self._scheduler, lambda: self._calls.stream(task_id, after=after))

    def logs(
        self, task_id: str, *, after: str | None = None, last: int | None = None, follow: bool = False
    ) -> Generator[LogLine, None, None]:
        """Return an iterator: the lines that the task's handler has logged with `task.log`, of all attempts.

        `after` is the id of the last line that was received, and `last` (1 to 1,000) leaves out all lines before the
        last ones. With `follow`, it waits for further lines until the task is finished. Errors as for `stream`.
        """
        return followed(self._scheduler, lambda: self._calls.logs(task_id, after=after, last=last, follow=follow))

    @contextmanager
    def call(
        self, task_params: Mapping[str, object], task_id: str | None = None, **options: Unpack[TaskOptions]
    ) -> Generator[str, None, None]:
        """Create a task that is cancelled with its caller: `with sync.call(params) as task_id:`.

        If the block ends before the task is finished, by an exception, a return or Ctrl-C, the task is cancelled,
        wherever it runs. This is also true for a task that existed before under the same id. Arguments and errors are
        those of `create_task`.
        """
        task_id = new_task_id() if task_id is None else task_id
        try:
            self.create_task(task_params, task_id, **options)
        except (KeyboardInterrupt, SystemExit):  # the task may have been created, and may run
            self.cancel_task(task_id, running=True)
            raise
        try:
            yield task_id
        finally:
            self.cancel_task(task_id, running=True)

    # End

    def close(self) -> None:
        """Close the connections. Does nothing if there are none; a later call connects again.

        Calls of other threads that wait raise EventLoopError.
        """
        if portal.uses(self._scheduler):
            try:
                self._run(self._scheduler.disconnect)
            finally:
                portal.leave(self._scheduler)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
