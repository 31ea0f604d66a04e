"""The one object that users hold."""

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
from maas_backoff.worker.executors.base import ExceptionHandler, Executor, Handler
from maas_backoff.worker.executors.call import check_handler, check_takes, is_coroutine_handler
from maas_backoff.worker.executors.inline import InlineExecutor
from maas_backoff.worker.executors.lifespan import Lifespan
from maas_backoff.worker.executors.process import ProcessExecutor
from maas_backoff.worker.executors.reference import HandlerReference
from maas_backoff.worker.executors.thread import ThreadExecutor
from maas_backoff.worker.parts import Parts
from maas_backoff.worker.service import Service

log: Log = log_for("scheduler")

_H = TypeVar("_H", bound=Handler)
_E = TypeVar("_E", bound=ExceptionHandler)
_L = TypeVar("_L", bound=Lifespan)


class TaskBackoffScheduler:
    """Creates tasks, and runs them where a handler is set.

    Building one does no I/O. Calls before `start` connect on their own; without a handler the scheduler is a producer
    and claims nothing. The configuration is copied when it is first used, and again by `start`.

    Each event loop that uses the scheduler, in any thread, has connections of its own, which end with the loop: by
    `shutdown`, or when `asyncio.run` ends it. So do processes after a fork. The worker belongs to the event loop of
    `start`; `start` and `shutdown` in another one raise EventLoopError.

    Every call may raise StorageUnavailableError when the server does not answer within `storage.timeout`, and may then
    be repeated.
    """

    def __init__(
        self,
        config: TaskBackoffConfig | None = None,
        *,
        gpu_probe: Probe | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`tracing` follows tasks from their creation into their handlers: `maas_backoff.otel.OpenTelemetry()`.

        `gpu_probe` takes the place of NVML, in tests: `maas_backoff.testing.FakeGpuProbe`.
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

        It is called with the TaskEntity, and with what the worker_lifespan yields where there is one. Returning
        ResultEntity.ok(…) or any JSON value completes the task; ResultEntity.fail(…) or an exception fails the
        attempt; Retry, Snooze and Discard say what shall happen. What a plain function returns is awaited on the event
        loop if it can be: `async def` behind a plain decorator.
        Raises HandlerError for what cannot be called this way, with the remedy.
        """
        self._check_stopped("handler")
        check_handler("handler", handler, 1, 2)
        if self.config.threadpool.proc_mode == "process":
            HandlerReference.of(handler, defined=False)
        self._handler = handler
        return handler

    def set_worker_lifespan(self, lifespan: _L) -> _L:
        """Set what each process that calls the handler does once, before its first task; works as a decorator.

        `lifespan` is a function that gives a context manager (@contextmanager, or @asynccontextmanager): it loads the
        model and warms up, and what it yields is handed to the handler as its second argument. One with a parameter is
        called with the GpuAssignment of its child process, or None where there is none.
        In process mode every child enters it, which sees its own GPU only; else the worker does. One asyncio task
        enters and leaves it, so it may have a task group around its `yield`; what that runs goes on between tasks, also
        in a child, where only a handler that is not `async def` holds it up. One that ends by itself ends the worker,
        or its child.
        It does not count in `exec_timeout`; `start` waits for the first one. Where tasks need a GPU, and none has room
        at the start, the first task that gets one waits for it instead. Raises HandlerError as for handlers.
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

        It is called in the worker with the TaskEntity, whose `error` is that of the attempt, and may take as long as
        the attempt might have. Returning ResultEntity.ok(…) completes the task with that fallback;
        ResultEntity.fail(…) sets code and message of the failed attempt. What it raises is logged and changes nothing.
        """
        self._check_stopped("exception handler")
        check_handler("exception handler", handler, 1)
        self._exception_handler = handler
        return handler

    @property
    def has_handler(self) -> bool:
        """Whether a task handler is set; without one, the scheduler is a producer."""
        return self._handler is not None

    def health(self) -> Health:
        """Return whether this process runs tasks as it should, and what keeps it from that. Does no I/O."""
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
        """Connect, and start to run tasks if there is a handler. Does nothing if it has been started.

        Installs no signal handlers. Raises ConfigError, HandlerError or StorageError; then nothing is left running.
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

        Does nothing if the scheduler was not started, or was stopped. Raises what the worker died of, if it died;
        HandlerError when a handler calls it.
        """
        task = current.get()
        if task is not None and self._service is not None and self._service.runs(task):
            raise HandlerError("shutdown: a handler cannot wait for its own end; tell your main task to call it")
        self._check_home("shutdown")
        await uninterrupted(self._stop())  # a worker must not be left half stopped; stop() is bounded

    async def _stop(self) -> None:
        async with self._opened.lock():
            try:
                if self._service is not None:
                    await self._service.stop()
            finally:
                self._service = self._home = None
                await self._opened.close()

    def _check_home(self, what: str, *, takes: bool = False) -> None:
        """Raise EventLoopError where the worker runs in another event loop; forget a worker whose loop was closed.

        `takes` makes the running loop the one of the worker.
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
        """Begin anew in a child process: the worker is the parent's."""
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
        """Run as a worker process: start, and drain on SIGTERM, SIGINT or SIGHUP; return when that is done.

        A second signal cancels what runs and hands it back; a third ends the process at once. SIGHUP stays ignored
        where it was (`nohup`). Raises what the worker died of, if it died, or WorkerEndedError.
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
        """Create a task and return its id; made before the first send when None: 16 characters that sort by time.

        `task_params` is a dict of JSON values. An id that exists, in any state, with equal params is returned, and
        nothing created: an idempotency key, until the finished task's time to live ends. Options (TaskOptions) are
        not compared.

        Raises TaskConflictError for an id with other params; InvalidValueError, ConfigError, PayloadError before
        anything is sent; StorageFullError.
        """
        return await self._client.create(task_params, task_id, options)

    async def create_tasks(self, items: Iterable[Mapping[str, object] | TaskSpec]) -> list[str]:
        """Create many tasks and return their ids in order; an item is the params, or a TaskSpec with the options.

        All items are checked before the first is sent. They are sent 1,000 at a time. Conflicts are raised at the end,
        as one TaskConflictError with `conflicts` and `created`. QueueFullError and other StorageErrors have `created`:
        the ids of this call that are in the queue for certain. If all items have ids, the same call may be repeated.
        """
        return await self._client.create_many(items)

    # Reading tasks

    async def get_task(self, task_id: str) -> TaskEntity | None:
        """Return the task, or None if there is none of that id (any more)."""
        return await self._client.get(task_id)

    async def wait_task(self, task_id: str, timeout: float | timedelta | None = None) -> TaskEntity:
        """Return the task when it is finished: completed, failed or cancelled. None waits for ever.

        Raises TaskTimeoutError after `timeout` (seconds, or a timedelta), and TaskNotFoundError.
        """
        return await self._client.wait(task_id, timeout)

    async def watch(self, task_id: str, *, after: str | None = None) -> AsyncGenerator[TaskEvent, None]:
        """Give the task as it is, and again whenever its state or progress changes, until it is finished.

        `after` is the id of the last event that was seen: it is not given again, and a lost connection costs nothing
        but what came in between. Changes that follow each other quickly may be seen as one. Raises TaskNotFoundError,
        also when the task is deleted meanwhile.
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
        """Create a task for as long as somebody is there for it: `async with scheduler.call(params) as task_id:`.

        When the block is left before the task is finished, by an exception, a return, or as its caller was cancelled,
        the task is cancelled, wherever it runs; also one that was there before under the same id.

        `disconnected` is a function, awaited twice a second, that says whether the caller has hung up:
        `request.is_disconnected` in an endpoint, which a web framework does not cancel. Once it returns True, the block
        is cancelled, and CallerGoneError raised. Other arguments and errors are those of `create_task`.
        """
        task_id = new_task_id() if task_id is None else task_id
        try:
            await uninterrupted(self.create_task(task_params, task_id, **options))
        except asyncio.CancelledError:  # the task may be there all the same, and even run
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

        Pending and processing tasks come in the order in which they are due or run out, finished ones in that in which
        they expire; with `reverse` the last comes first. Of the pending ones, `waiting_for="gpu"` lists those that are
        due and wait for room on a GPU, `waiting_for="slot"` those that are due and need none, and `due_from` those that
        are delayed, or wait to be retried, from that moment on (a timedelta: from now). With
        `brief` they come without params, result and failed attempts, at a fraction of the cost. A task that changes
        its state meanwhile may be missed or seen twice.
        """
        return await self._client.page(status, Listing(limit, cursor, reverse, waiting_for, due_from, brief))

    async def get_queue_stats(self) -> QueueStats:
        """Return how many tasks are in which state, in constant time."""
        return await self._client.store.reader.stats()

    async def explain(self) -> str:
        """Return in one sentence why nothing runs, or not all that waits."""
        return await self._client.store.reader.explain()

    async def get_history(self, minutes: int = 60) -> History:
        """Return what has happened in the last 1 to 120 minutes, this one included, and in all time.

        Kept by whoever settles attempts, at no cost worth naming; minutes are those of the server's clock.
        """
        return await self._client.history(minutes)

    async def get_upcoming(self, step: float | timedelta = 30, steps: int = 20) -> list[int]:
        """Return how many tasks become due in each of the next `steps` (1 to 200) steps.

        `step` is the length of one, seconds or a timedelta, at most a day.
        """
        return await self._client.upcoming(step, steps)

    async def workers(self) -> list[Worker]:
        """Return the live workers of this queue, as each told with its last heartbeat; at most 1,000."""
        return list(await self._client.store.registry.fleet())

    async def gpus(self) -> list[GpuStatus]:
        """Return the GPUs of all live workers of this queue, with what every queue has reserved there."""
        return await self._client.gpus()

    # Changing tasks

    async def cancel_task(self, task_id: str, *, running: bool = False) -> bool:
        """Cancel a pending task at once. With `running`, ask for the end of an attempt that runs, wherever it runs.

        True if the task is cancelled, or its attempt will be stopped within a moment; an attempt that completes first
        wins. False for a finished or unknown task, and for a running one without `running`.
        """
        return await self._client.operations.cancel(task_id, running=running)

    async def mark_task_processing(self, task_id: str) -> bool:
        """Take a pending task out of the queue: somebody else works on it. No lease; nobody runs or reaps it."""
        return await self._client.operations.mark_processing(task_id)

    async def mark_task_completed(self, task_id: str, result: object = None) -> bool:
        """Complete a task that is not finished, with any JSON value. A running attempt loses its right to settle."""
        return await self._client.operations.mark_completed(task_id, result)

    async def mark_task_failed(self, task_id: str, reason: str = "", *, retry: bool = True) -> bool:
        """Count a failed attempt for a task that is not finished: retried while it has retries left, else failed.

        `retry=False` fails it at once. A running attempt loses its right to settle.
        """
        return await self._client.operations.mark_failed(task_id, reason, retry=retry)

    async def update_task_progress(self, task_id: str, progress: float, message: str | None = None) -> bool:
        """Note how far a task is, 0 to 100, while it is processing; from its own handler, while it holds the lease."""
        return await self._client.operations.update_progress(task_id, progress, message)

    async def retry_task(self, task_id: str) -> bool:
        """Make a failed or cancelled task pending again, with all its retries."""
        return await self._client.operations.retry(task_id)

    async def retry_tasks(self, status: str = "failed", *, error: str | None = None) -> int:
        """Retry all tasks that are failed, or cancelled, now; return how many.

        `error` picks those whose error, "type: message", has this text in it, in whatever case.
        """
        return await self._client.operations.retry_all(status, error)

    async def update_task(self, task_id: str, **options: Unpack[Reschedule]) -> bool:
        """Change when a pending task is due (`delay` or `run_at`), or its `priority`; False if it is not pending."""
        return await self._client.operations.update(task_id, options)

    async def delete_task(self, task_id: str) -> bool:
        """Delete a task, unless an attempt of it runs."""
        return await self._client.operations.delete(task_id)

    async def purge_tasks(self, status: str) -> int:
        """Delete all tasks that are pending, completed, failed or cancelled now; return how many."""
        return await self._client.operations.purge(status)

    # Steering the queue

    async def pause(self) -> bool:
        """Have no worker claim anything more until `resume`, from the next claim on; what runs goes on.

        For the whole queue, and lasting: it survives all workers. False if it was paused already.
        """
        return await self._client.operations.pause(on=True)

    async def resume(self) -> bool:
        """Let the queue's workers go on; False if it was not paused."""
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
