"""The scheduler: the main object of the public API."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self, TypeVar, Unpack

import anyio

from maas_backoff.client.caller import Disconnected, until_gone
from maas_backoff.client.client import QueueClient
from maas_backoff.client.opened import Opened
from maas_backoff.common import forks
from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.uninterrupted import uninterrupted
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.context import current
from maas_backoff.domain.event import TaskEvent
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.health import Health
from maas_backoff.domain.history import History
from maas_backoff.domain.page import Listing, TaskPage
from maas_backoff.domain.spec import Reschedule, TaskOptions, TaskSpec
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.tracing import Tracing
from maas_backoff.domain.validation import new_task_id
from maas_backoff.domain.worker import Worker
from maas_backoff.errors import EventLoopError, HandlerError, InvalidValueError
from maas_backoff.gate.nvml import NvmlProbe
from maas_backoff.gate.sample import Probe
from maas_backoff.worker.executors.base import ExceptionHandler, Executor, Handler, TaskHandler
from maas_backoff.worker.executors.call import check_handler, check_takes, is_coroutine_handler
from maas_backoff.worker.executors.inline import InlineExecutor
from maas_backoff.worker.executors.lifespan import Lifespan
from maas_backoff.worker.executors.process import ProcessExecutor
from maas_backoff.worker.executors.reference import HandlerReference
from maas_backoff.worker.executors.thread import ThreadExecutor
from maas_backoff.worker.parts import Parts
from maas_backoff.worker.service import Service

log: Log = log_for("scheduler")

_H = TypeVar("_H", bound=TaskHandler)
_E = TypeVar("_E", bound=ExceptionHandler)
_L = TypeVar("_L", bound=Lifespan)


class TaskBackoffScheduler:
    """Creates tasks, and runs them if a handler is set.

    The constructor does no I/O. Calls before `start` connect by themselves. Without a handler the scheduler is a
    producer and claims no tasks. The configuration is copied at the first use, and again by `start`.

    Each event loop that uses the scheduler, in any thread, has its own connections. They are closed by `shutdown`, or
    when `asyncio.run` closes the loop. A process after a fork has its own connections, too. The worker belongs to the
    event loop of `start`; `start` and `shutdown` in another event loop raise EventLoopError.

    Every call may raise StorageUnavailableError if the server does not answer within `storage.timeout`. The call may
    then be repeated.
    """

    def __init__(
        self,
        config: TaskBackoffConfig | None = None,
        *,
        gpu_probe: Probe | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`tracing` traces tasks from their creation into their handlers: `maas_backoff.otel.OpenTelemetry()`.

        `gpu_probe` replaces NVML in tests: `maas_backoff.testing.FakeGpuProbe`.
        """
        if tracing is not None and (isinstance(tracing, type) or not isinstance(tracing, Tracing)):
            raise InvalidValueError("tracing", "a maas_backoff.otel.OpenTelemetry(), or None", tracing)
        self.config: TaskBackoffConfig = TaskBackoffConfig() if config is None else config
        self._probe = gpu_probe
        self._tracing = tracing
        self._lifespan: Lifespan | None = None
        self._handler: Handler | None = None
        self._exception_handler: ExceptionHandler | None = None
        self._opened = Opened(lambda: self.config, lambda config, server: QueueClient(config, self._tracing, server))
        self._service: Service | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._mutex = threading.Lock()
        forks.on_fork(self, TaskBackoffScheduler._forked)

    def __repr__(self) -> str:
        state = "running" if self._service is not None and self._service.alive else "stopped"
        return f"<TaskBackoffScheduler of {self.config.task.biz_prefix!r}, {state}>"

    # Handlers

    def set_custom_task_handler(self, handler: _H) -> _H:
        """Set the function that runs tasks, `async def` or `def`; works as a decorator.

        The handler is called with the TaskEntity and, if there is a worker_lifespan, the value that it yields. If the
        handler returns ResultEntity.ok(…) or any JSON value, the task completes. ResultEntity.fail(…) or an
        exception fails the attempt. Retry, Snooze and Discard decide what happens next. If a `def` function returns an
        awaitable, as an `async def` behind a plain decorator does, the event loop awaits it.

        Raises HandlerError, with the remedy, for a handler that cannot be called this way.
        """
        self._check_stopped("handler")
        check_handler("handler", handler, 1, 2)
        if self.config.threadpool.proc_mode == "process":
            HandlerReference.of(handler, defined=False)
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
        if not callable(lifespan):
            raise HandlerError(f"worker_lifespan: expected a function, got {type(lifespan).__name__}")
        check_takes("worker_lifespan", lifespan, 0, 1, one="the GPU that it was given")
        if self.config.threadpool.proc_mode == "process":
            HandlerReference.of(lifespan, defined=False)
        self._lifespan = lifespan
        return lifespan

    def set_custom_task_exception_handler(self, handler: _E) -> _E:
        """Set a function that is called after an attempt that raised, timed out or lost its child process.

        `handler` is called in the worker with the TaskEntity, whose `error` is that of the attempt. It may take as long
        as the attempt. If it returns ResultEntity.ok(…), the task completes with that fallback. ResultEntity.fail(…)
        sets the code and message of the failed attempt. An exception of `handler` is logged and changes nothing.
        """
        self._check_stopped("exception handler")
        check_handler("exception handler", handler, 1)
        self._exception_handler = handler
        return handler

    @property
    def has_handler(self) -> bool:
        """Whether a task handler is set; without a handler, the scheduler is a producer."""
        return self._handler is not None

    def health(self) -> Health:
        """Return whether this process runs tasks as it should, and the reasons if not. Does no I/O."""
        if self._handler is None:
            return Health((f"no task handler is set for {self.config.task.biz_prefix!r}",))
        if self._service is None:
            return Health(("not started",))
        return Health(tuple(self._service.troubles()))

    def _check_stopped(self, what: str) -> None:
        if self._service is not None:
            raise HandlerError(f"{what}: set it before start(), not while the scheduler runs")

    # Start and stop

    async def start(self) -> None:
        """Connect, and start to run tasks if there is a handler. Does nothing if the scheduler is started.

        Installs no signal handlers. Raises ConfigError, HandlerError or StorageError; then nothing runs.
        """
        async with self._opened.lock():
            self._check_home("start", takes=self._handler is not None)
            if self._service is not None and self._service.failure is None:
                return
            await self._opened.refresh()
            try:
                if self._handler is None:
                    await self._client.store.check(worker=False)
                else:
                    self._service = await self._started_service(self._handler)
            except BaseException:
                self._home = None
                await uninterrupted(self._opened.close())
                raise

    async def _started_service(self, handler: Handler) -> Service:
        check_handler("handler", handler, 1 if self._lifespan is None else 2)
        client = self._client
        executor = _executor(client.config, handler, self._lifespan)
        probe = self._probe or NvmlProbe()
        parts = Parts.of(client.config, client.store, executor, self._exception_handler, probe, self._tracing)
        service = Service(parts)
        await service.start()
        return service

    async def shutdown(self) -> None:
        """Drain and stop: running tasks may end within `shutdown_grace`, others are handed back without using a retry.

        Does nothing if the scheduler was not started, or was stopped. Raises the error that ended the worker, if any.
        Raises HandlerError if a handler calls it.
        """
        task = current.get()
        if task is not None and self._service is not None and self._service.runs(task):
            raise HandlerError("shutdown: a handler cannot wait for its own end; call shutdown from your main task")
        self._check_home("shutdown")
        await uninterrupted(self._stop())  # a worker must not be left half stopped; the time of stop() is bounded

    async def _stop(self) -> None:
        async with self._opened.lock():
            try:
                if self._service is not None:
                    await self._service.stop()
            finally:
                self._service = self._home = None
                await self._opened.close()

    def _check_home(self, what: str, *, takes: bool = False) -> None:
        """Raise EventLoopError if the worker runs in another event loop; forget a worker whose loop is closed.

        `takes` makes the running event loop the one of the worker.
        """
        here = asyncio.get_running_loop()
        with self._mutex:
            home = self._home
            if home is not None and home is not here:
                if not home.is_closed():
                    there = f"asyncio.run_coroutine_threadsafe(scheduler.{what}(), loop)"
                    raise EventLoopError(f"{what}: the worker runs in another event loop; call it there, as by {there}")
                self._service = self._home = None
            if takes:
                self._home = here

    def _forked(self) -> None:
        """Reset the state in a child process after a fork: the worker stays in the parent process."""
        forks.inherited.append(self._service)
        self._service = self._home = None
        self._mutex = threading.Lock()

    @property
    def _client(self) -> QueueClient:
        return self._opened.client()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def run_until_stopped(self) -> None:
        """Run as a worker process: start, drain on SIGTERM, SIGINT or SIGHUP, and return after the drain.

        A second signal cancels running attempts and hands back their tasks. A third signal ends the process at once.
        SIGHUP stays ignored if it was ignored before (`nohup`). Raises the error that ended the worker, if any, or
        WorkerEndedError.
        """
        if self._handler is None:
            raise HandlerError("run_until_stopped: there is no task handler to run; set one before")
        with anyio.open_signal_receiver(*_stop_signals()) as signals:
            await self.start()
            async with anyio.create_task_group() as group:
                group.start_soon(self._end_with_service, group.cancel_scope)
                for action in (self._drain, self._cancel_running):
                    number = await anext(signals)
                    log.warning("%s: %s", signal.Signals(number).name, action.__doc__)
                    action()
                os._exit(128 + await anext(signals))
        await self.shutdown()

    async def _end_with_service(self, scope: anyio.CancelScope) -> None:
        if self._service is not None:
            await self._service.wait()
        scope.cancel()

    def _drain(self) -> None:
        """finishing what runs; a second signal cancels it"""  # noqa: D400, D403, D415 - it is logged
        if self._service is not None:
            self._service.close()

    def _cancel_running(self) -> None:
        """cancelling what runs; a third signal ends the process"""  # noqa: D400, D401, D403, D415 - it is logged
        if self._service is not None:
            self._service.cancel_running()

    # Creating tasks

    async def create_task(
        self, task_params: Mapping[str, object], task_id: str | None = None, **options: Unpack[TaskOptions]
    ) -> str:
        """Create a task and return its id.

        `task_params` is a dict of JSON values. `task_id` is an idempotency key. If a task with this id and equal params
        exists, in any state, its id is returned and nothing is created, until the time to live of the finished task
        ends. `options` (TaskOptions) are not compared. Without a `task_id`, an id of 16 characters is made before the
        first send; such ids sort by time.

        Raises TaskConflictError for an id with other params. Raises InvalidValueError, ConfigError or PayloadError
        before anything is sent, and StorageFullError.
        """
        return await self._client.create(task_params, task_id, options)

    async def create_tasks(self, items: Iterable[Mapping[str, object] | TaskSpec]) -> list[str]:
        """Create many tasks and return their ids in order. An item is the params, or a TaskSpec with the options.

        All items are checked before the first is sent; 1,000 are sent at a time. Conflicts are raised at the end: one
        TaskConflictError with `conflicts` and `created`. QueueFullError and other StorageErrors have `created`: the ids
        of this call that are in the queue for certain. If all items have ids, the same call may be repeated.
        """
        return await self._client.create_many(items)

    # Reading tasks

    async def get_task(self, task_id: str) -> TaskEntity | None:
        """Return the task, or None if there is no task with this id (any more)."""
        return await self._client.get(task_id)

    async def wait_task(self, task_id: str, timeout: float | timedelta | None = None) -> TaskEntity:
        """Wait until the task is finished (completed, failed or cancelled), and return it.

        Raises TaskTimeoutError after `timeout` (seconds, or a timedelta; None waits for ever), and TaskNotFoundError.
        """
        return await self._client.wait(task_id, timeout)

    async def watch(self, task_id: str, *, after: str | None = None) -> AsyncGenerator[TaskEvent, None]:
        """Yield the task now, and again whenever its state or progress changes, until it is finished.

        `after` is the id of the last event that was received, for example before a lost connection; this event is not
        yielded again. Quick changes may be joined into one event. Raises TaskNotFoundError, also if the task is deleted
        meanwhile.
        """
        async with aclosing(self._client.watch(task_id, after)) as events:
            async for event in events:
                yield event

    @asynccontextmanager
    async def call(
        self,
        task_params: Mapping[str, object],
        task_id: str | None = None,
        *,
        disconnected: Disconnected | None = None,
        **options: Unpack[TaskOptions],
    ) -> AsyncGenerator[str, None]:
        """Create a task that is cancelled with its caller: `async with scheduler.call(params) as task_id:`.

        If the block ends before the task is finished, by an exception, a return or a cancel, the task is cancelled,
        wherever it runs. This is also true for a task that existed before under the same id.

        `disconnected` is a function that is awaited twice a second, and returns whether the caller has hung up, such as
        `request.is_disconnected`: a web framework does not cancel an endpoint. If it returns True, the block is
        cancelled, and CallerGoneError is raised. Other arguments and errors are those of `create_task`.
        """
        task_id = new_task_id() if task_id is None else task_id
        try:
            await uninterrupted(self.create_task(task_params, task_id, **options))
        except asyncio.CancelledError:  # the task may have been created, and may run
            await uninterrupted(self.cancel_task(task_id, running=True))
            raise
        try:
            if disconnected is None:
                yield task_id
            else:
                async with until_gone(disconnected, task_id):
                    yield task_id
        finally:
            await uninterrupted(self.cancel_task(task_id, running=True))

    async def list_tasks(
        self,
        status: str,
        *,
        limit: int = 100,
        cursor: str | None = None,
        reverse: bool = False,
        waiting_for: str | None = None,
        due_from: datetime | timedelta | None = None,
        brief: bool = False,
    ) -> TaskPage:
        """Return up to `limit` (1..1000) tasks in a state, as `.tasks`; pass `.cursor` to go on, until it is None.

        Pending tasks are sorted by due time, processing tasks by the end of their lease, finished tasks by the time at
        which they expire; `reverse` reverses the order. Three filters are for pending tasks. `waiting_for="gpu"` lists
        due tasks that wait for room on a GPU, `waiting_for="slot"` due tasks that need no GPU. `due_from` lists delayed
        tasks and retries from that moment on (a timedelta: from now). `brief` leaves out params, result and failed
        attempts, at a fraction of the cost. A task that changes its state meanwhile may be missed or listed twice.
        """
        return await self._client.page(status, Listing(limit, cursor, reverse, waiting_for, due_from, brief))

    async def get_queue_stats(self) -> QueueStats:
        """Return the number of tasks in each state, in constant time."""
        return await self._client.store.reader.stats()

    async def explain(self) -> str:
        """Return one sentence: why no task runs, or why tasks wait."""
        return await self._client.store.reader.explain()

    async def get_history(self, minutes: int = 60) -> History:
        """Return the numbers of the last 1 to 120 minutes, with the present minute, and of all time.

        Each settlement counts them, at almost no cost. Minutes are those of the server's clock.
        """
        return await self._client.history(minutes)

    async def get_upcoming(self, step: float | timedelta = 30, steps: int = 20) -> list[int]:
        """Return the number of tasks that become due in each of the next `steps` (1 to 200) steps.

        `step` is the length of a step: seconds or a timedelta, at most a day.
        """
        return await self._client.upcoming(step, steps)

    async def workers(self) -> list[Worker]:
        """Return the live workers of this queue, as of their last heartbeat; at most 1,000."""
        return list(await self._client.store.registry.fleet())

    async def gpus(self) -> list[GpuStatus]:
        """Return the GPUs of all live workers of this queue, with the reservations of all queues."""
        return await self._client.gpus()

    # Changing tasks

    async def cancel_task(self, task_id: str, *, running: bool = False) -> bool:
        """Cancel a pending task at once. With `running`, request the cancellation of a running task, wherever it runs.

        Return True if the task is cancelled or its cancellation was requested; an attempt that completes first wins.
        Return False for a finished or unknown task, and without `running` for a running one.
        """
        return await self._client.operations.cancel(task_id, running=running)

    async def mark_task_processing(self, task_id: str) -> bool:
        """Take a pending task out of the queue, for work elsewhere. It has no lease; no worker runs or reaps it."""
        return await self._client.operations.mark_processing(task_id)

    async def mark_task_completed(self, task_id: str, result: object = None) -> bool:
        """Complete an unfinished task, with any JSON value. A running attempt loses its lease."""
        return await self._client.operations.mark_completed(task_id, result)

    async def mark_task_failed(self, task_id: str, reason: str = "", *, retry: bool = True) -> bool:
        """Record a failed attempt of an unfinished task: it is retried while retries remain, else it fails.

        `retry=False` fails the task at once. A running attempt loses its lease.
        """
        return await self._client.operations.mark_failed(task_id, reason, retry=retry)

    async def update_task_progress(self, task_id: str, progress: float, message: str | None = None) -> bool:
        """Set the progress of a processing task, 0 to 100; in its own handler, only while the attempt has the lease."""
        return await self._client.operations.update_progress(task_id, progress, message)

    async def retry_task(self, task_id: str) -> bool:
        """Make a failed or cancelled task pending again, with no retry used."""
        return await self._client.operations.retry(task_id)

    async def retry_tasks(self, status: str = "failed", *, error: str | None = None) -> int:
        """Retry all tasks that are failed, or cancelled, now; return their number.

        `error` selects tasks with this text in their error, "type: message", in upper or lower case.
        """
        return await self._client.operations.retry_all(status, error)

    async def update_task(self, task_id: str, **options: Unpack[Reschedule]) -> bool:
        """Change when a pending task is due (`delay` or `run_at`), or its `priority`; False if it is not pending."""
        return await self._client.operations.update(task_id, options)

    async def delete_task(self, task_id: str) -> bool:
        """Delete a task, unless it is running."""
        return await self._client.operations.delete(task_id)

    async def purge_tasks(self, status: str) -> int:
        """Delete all tasks that are pending, completed, failed or cancelled now; return their number."""
        return await self._client.operations.purge(status)

    # Pausing the queue

    async def pause(self) -> bool:
        """Stop all claims of the queue until `resume`, from the next claim on; running tasks go on.

        The pause is stored on the server, and outlives all workers. Return False if the queue was paused already.
        """
        return await self._client.operations.pause(on=True)

    async def resume(self) -> bool:
        """Let the workers of the queue claim again. Return False if the queue was not paused."""
        return await self._client.operations.pause(on=False)


def _stop_signals() -> list[signal.Signals]:
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


def _executor(config: TaskBackoffConfig, handler: Handler, lifespan: Lifespan | None) -> Executor:
    limit, threadpool = config.task.max_payload_bytes, config.threadpool
    if threadpool.proc_mode == "process":
        needs_gpu = config.task.policy.demand is not None
        return ProcessExecutor(handler, threadpool, max_payload_bytes=limit, lifespan=lifespan, needs_gpu=needs_gpu)
    if is_coroutine_handler(handler):
        return InlineExecutor(handler, max_payload_bytes=limit, lifespan=lifespan)
    return ThreadExecutor(handler, max_payload_bytes=limit, lifespan=lifespan)
