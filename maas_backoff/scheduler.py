"""The scheduler: the main object of the public API."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio

from maas_backoff.client.calls import QueueCalls
from maas_backoff.common import forks
from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.uninterrupted import uninterrupted
from maas_backoff.common.until_stopped import Beside, stop_signals
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.context import current
from maas_backoff.domain.health import Health
from maas_backoff.domain.seconds import in_seconds
from maas_backoff.domain.tracing import Tracing
from maas_backoff.errors import EventLoopError, HandlerError, InvalidValueError
from maas_backoff.handling import SetsHandlers

if TYPE_CHECKING:
    # The first scheduler of a process imports the client with redis-py, the first handler imports the worker and the
    # gate, and the first kind imports what declares it. All are too late in a call that awaits: the import would block
    # the event loop.
    from anyio.abc import TaskGroup

    from maas_backoff.client.client import QueueClient
    from maas_backoff.gate.sample import Probe
    from maas_backoff.worker.service import Service

log: Log = log_for("scheduler")

_GIVES_UP = "giving up the start; a third signal ends the process"
_DRAINS = "finishing running attempts; a second signal cancels them"
_CANCELS = "cancelling running attempts; a third signal ends the process"


class TaskBackoffScheduler(QueueCalls, SetsHandlers):
    """Creates tasks, and runs them if a handler is set or a kind of tasks is declared.

    The constructor does no I/O. Calls before `start` connect by themselves. Without a handler and without kinds the
    scheduler is a producer and claims no tasks. The configuration is copied at the first use, and again by `start`.

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
        gpu_probe: "Probe | None" = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`tracing` traces tasks from their creation into their handlers: `maas_backoff.otel.OpenTelemetry()`.

        `gpu_probe` replaces NVML in tests: `maas_backoff.testing.FakeGpuProbe`.
        """
        if tracing is not None and (isinstance(tracing, type) or not isinstance(tracing, Tracing)):
            raise InvalidValueError("tracing", "a maas_backoff.otel.OpenTelemetry(), or None", tracing)
        from maas_backoff.client.client import QueueClient
        from maas_backoff.client.opened import Opened

        super().__init__(TaskBackoffConfig() if config is None else config)
        self._probe = gpu_probe
        self._tracing = tracing
        self._opened = Opened(lambda: self.config, lambda config, server: QueueClient(config, self._tracing, server))
        self._service: Service | None = None
        self._home: asyncio.AbstractEventLoop | None = None
        self._mutex = threading.Lock()
        forks.on_fork(self, TaskBackoffScheduler._forked)

    def __repr__(self) -> str:
        state = "running" if self._service is not None and self._service.alive else "stopped"
        return f"<TaskBackoffScheduler of {self.config.task.biz_prefix!r}, {state}>"

    def health(self) -> Health:
        """Return whether this process runs tasks as it should, and the reasons if not. Does no I/O."""
        if not self.has_handler:
            return Health((f"no task handler is set for {self.config.task.biz_prefix!r}",))
        if self._service is None:
            return Health(("not started",))
        return Health(tuple(self._service.troubles()))

    # Start and stop

    async def start(self, *, run_tasks: bool = True) -> None:
        """Connect, and start to run tasks if there is a handler or a kind. Does nothing if the scheduler is started.

        `run_tasks=False` only checks the server, for a program that creates tasks of kinds which other processes run.
        Installs no signal handlers. Raises ConfigError, HandlerError or StorageError; then nothing runs.
        """
        async with self._opened.lock():
            runs = run_tasks and self.has_handler
            self._check_home("start", takes=runs)
            if self._service is not None and self._service.failure is None:
                return
            await self._opened.refresh()
            try:
                if runs:
                    self._service = await self._started_service()
                else:
                    await self._client.check()
            except BaseException:
                self._home = None
                await uninterrupted(self._opened.close())
                raise

    async def _started_service(self) -> "Service":
        from maas_backoff.worker.handlers import service_of

        client = self._client
        service = service_of(
            client.config,
            client.store,
            self._handled(client),
            exception_handler=self._exception_handler,
            probe=self._probe,
            tracing=self._tracing,
        )
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

    async def disconnect(self) -> None:
        """Close the connections of this event loop. Later calls connect again; a worker in another loop goes on.

        Raises EventLoopError if the worker runs in this event loop: `shutdown` stops it.
        """
        if self._service is not None and self._home is asyncio.get_running_loop():
            raise EventLoopError("disconnect: the worker runs in this event loop and needs its connections; shutdown()")
        async with self._opened.lock():
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

    @property
    def _is_started(self) -> bool:
        return self._service is not None

    def _forked(self) -> None:
        """Reset the state in a child process after a fork: the worker stays in the parent process."""
        forks.inherited.append(self._service)
        self._service = self._home = None
        self._mutex = threading.Lock()

    @property
    def _client(self) -> "QueueClient":
        return self._opened.client()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    async def run_until_stopped(self, *, until: Callable[[], Awaitable[object]] | None = None) -> None:
        """Run as a worker process: start, drain on SIGTERM, SIGINT or SIGHUP, and return after the drain.

        A second signal cancels running attempts and hands back their tasks. A third signal ends the process at once. A
        signal during the start ends the start. SIGHUP stays ignored if it was ignored before (`nohup`). If this call is
        cancelled, the worker drains, too. Raises the error that ended the worker, if any, or WorkerEndedError.

        `until` is a function that is awaited while tasks run. When it returns or raises, the worker drains, too; its
        error is raised after the drain. The first signal cancels it: it may use the scheduler until it has ended.
        """
        if not self.has_handler:
            raise HandlerError("run_until_stopped: there is no task handler and no kind to run; set one before")
        beside, starting = Beside(until), anyio.CancelScope()
        failure: Exception | None = None
        with anyio.open_signal_receiver(*stop_signals()) as signals:
            try:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._obey, signals, starting, beside)
                    try:
                        with starting:
                            await self.start()
                    except Exception as error:  # noqa: BLE001 - raised below: the task group would wrap it
                        failure = error
                    if failure is None:
                        await self._run_beside(beside, group, is_stopped=starting.cancel_called)
                    group.cancel_scope.cancel()
            except asyncio.CancelledError:
                await self.shutdown()  # a signal changes nothing meanwhile
                raise
        if failure is not None:
            raise failure
        await self.shutdown()
        if beside.error is not None:
            raise beside.error

    async def _obey(self, signals: AsyncIterator[signal.Signals], starting: anyio.CancelScope, beside: Beside) -> None:
        """Give up the start or drain at the first signal, cancel at the second, end the process at the third."""
        for action, words in (self._close, _DRAINS), (self._cancel_running, _CANCELS):
            number = await anext(signals)
            log.warning("%s: %s", signal.Signals(number).name, words if self._service is not None else _GIVES_UP)
            starting.cancel()
            action()
            beside.scope.cancel()
        os._exit(128 + await anext(signals))

    async def until_idle(self, within: float | timedelta = 0) -> str:
        """Wait until the worker of this process has nothing to do, and return in words what the queue has left.

        It then runs no task, can run none that is due, and no delayed task of the queue becomes due within `within`
        (seconds, or a timedelta). Due tasks that wait for a limit, or for room on a GPU, are waited for. Paused tasks,
        and those of kinds that the worker has not, are left. `run_until_stopped(until=scheduler.until_idle)` ends a
        worker when its work is done.

        Raises InvalidValueError, HandlerError if no worker runs here, and WorkerEndedError, or the error that ended the
        worker, if the worker ends meanwhile.
        """
        seconds = in_seconds(within)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
            raise InvalidValueError("within", "seconds (or a timedelta) from 0 on", within)
        if self._service is None:
            raise HandlerError("until_idle: no worker runs here; call start() before, with a task handler or a kind")
        return await self._service.until_idle(seconds)

    async def _run_beside(self, beside: Beside, group: "TaskGroup", *, is_stopped: bool) -> None:
        """Await the function beside the worker, and the end of both. `is_stopped`: a signal came during the start."""
        if is_stopped:
            self._close()  # the start may have ended in the moment of the signal
            beside.ended.set()
        else:
            group.start_soon(beside.run, self._close)
        if self._service is not None:
            await self._service.wait()
        beside.scope.cancel()
        await beside.ended.wait()

    def _close(self) -> None:
        if self._service is not None:
            self._service.close()

    def _cancel_running(self) -> None:
        if self._service is not None:
            self._service.cancel_running()
