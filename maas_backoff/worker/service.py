"""The one host task of a worker: owns the task group, and the order of start, drain and stop."""

import asyncio
import contextlib
import math
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from importlib.metadata import version
from typing import cast

import anyio

from maas_backoff.common.guard import log_for
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.history import Tally
from maas_backoff.domain.outcome import CancelReason
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.tracing import Tracing
from maas_backoff.errors import StorageError, WorkerEndedError
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.gate import Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.sample import Probe
from maas_backoff.store.connect import Client
from maas_backoff.store.ledger import Ledgers
from maas_backoff.store.redis import RedisStore
from maas_backoff.worker.attempts import Attempts
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.executors.base import ExceptionHandler, Executor
from maas_backoff.worker.executors.process import ProcessExecutor
from maas_backoff.worker.executors.thread import ThreadExecutor
from maas_backoff.worker.loops import children, orphans, poll, progress, sweep, timeouts
from maas_backoff.worker.loops.admission import Admission
from maas_backoff.worker.loops.exchange import ExchangeLoop
from maas_backoff.worker.loops.heartbeat import Heartbeat
from maas_backoff.worker.loops.wake import LONGEST_BLOCK, Wake
from maas_backoff.worker.outbox import Outbox
from maas_backoff.worker.requests import BatchRequests
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.suspects import Suspects
from maas_backoff.worker.wake_ups import WakeUps
from maas_backoff.worker.work import Work

log = log_for("worker")

VERSION = version("maas_backoff")
EXCHANGES = 2
"""Exchange loops: the server works on the request of one while this process works on the reply of the other."""

SETTLE_GRACE = 5.0
"""Seconds that the last settlements may take at a shutdown, after the handlers have ended."""


class Service:
    """Runs tasks from `start` to `stop`. For one use; both are called by the scheduler, once each."""

    def __init__(
        self,
        config: TaskBackoffConfig,
        store: RedisStore,
        executor: Executor,
        exception_handler: ExceptionHandler | None,
        probe: Probe,
        tracing: Tracing | None = None,
    ) -> None:
        self._config = config
        self._store = store
        self._executor = executor
        self._exception_handler = exception_handler
        self._tracing = tracing
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._host: asyncio.Task[None] | None = None
        self._started = False
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        in_children = config.threadpool.proc_mode == "process"
        self._child_ended = executor.child_ended if isinstance(executor, ProcessExecutor) else asyncio.Event()
        self._setback = executor.setback if isinstance(executor, ProcessExecutor | ThreadExecutor) else None
        self._context = WorkerContext.of(self.worker, store, config)
        self.wake_ups = WakeUps()
        self.slots = Slots(config.threadpool.concurrency, self.wake_ups, self._setback)
        self._deadlines = Deadlines(by_lease=executor.stoppable)
        outbox, tally = Outbox(), Tally()
        self._attempts = Attempts(self._context, self.slots, outbox, self.wake_ups, self._deadlines, tally)
        self._requests = BatchRequests(
            *(self.slots, outbox, self.wake_ups, Suspects(in_children=in_children), tally),
            batch_size=config.task.batch_size,
        )
        self._gate = Gate(
            probe,
            Ledgers(config.storage, store.server, lease=config.scheduler.lease, queue=config.task.biz_prefix),
            GateContext(
                config.gpu,
                worker=self.worker,
                queue=config.task.biz_prefix,
                in_children=in_children,
                changed=self.wake_ups.gpu,
            ),
            hand_back=self.slots.hand_back,
        )
        self._heartbeat: Heartbeat | None = None
        self.failure: BaseException | None = None

    @property
    def alive(self) -> bool:
        """Whether tasks are being claimed."""
        return self._host is not None and not self._host.done() and not self._stopping.is_set()

    def runs(self, task: TaskEntity) -> bool:
        """Whether the task is being run by this worker."""
        attempt = self.slots.attempts.get(task.token)
        return attempt is not None and attempt.task is task

    def troubles(self) -> list[str]:
        """Return what keeps this worker from running tasks as it should."""
        if self.failure is not None:
            return [f"the worker has died: {self.failure}"]
        found = self._troubles_here()
        if self._heartbeat is not None and self._heartbeat.trouble is not None:
            found.append(self._heartbeat.trouble)
        return found

    def _troubles_here(self) -> list[str]:
        """Return those that the heartbeat tells the registry. Called from its thread as well."""
        if not self.alive:
            return ["shutting down" if self._stopping.is_set() else "the worker has ended"]
        if not self._started:
            return ["starting"]
        stuck = self.slots.stuck(time.monotonic(), grace=5)
        found = [f"task {attempt.task.task_id!r} ignores its timeout" for attempt in stuck]
        if self._gate.devices.trouble is not None:
            found.append(self._gate.devices.trouble)
        if self._setback is not None and self._setback.trouble is not None:
            found.append(self._setback.trouble)
        if self.slots.lingering:
            found.append(f"{self.slots.lingering} threads outlive their timeout and hold a slot each")
        return found

    async def start(self) -> None:
        """Start, and return when tasks are being claimed. Raises what kept it from that."""
        # A task of its own, as a group cannot be left by another task than entered it. A context of its own, as the
        # tasks that it runs must not see the web request, say, that starts the worker.
        self._host = asyncio.create_task(self._run(), name="maas-backoff", context=Context())
        self._host.add_done_callback(self._ended)
        try:
            await asyncio.shield(self._ready)
        except asyncio.CancelledError:
            # redis-py swallows a cancel that meets an answer; then the host goes on, to a stop already asked for.
            self._stopping.set()
            self._hurry.set()
            self._host.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([self._host])
            raise

    def close(self) -> None:
        """Begin to drain: claim nothing more, let what runs end."""
        self._stopping.set()

    async def wait(self) -> None:
        """Wait until the worker has ended, after `close` or by its death."""
        if self._host is not None:
            await asyncio.wait([self._host])

    async def stop(self) -> None:
        """Drain and stop. Raises what the host task died of."""
        self.close()
        patience = self._config.scheduler.shutdown_grace + 3 * SETTLE_GRACE
        with anyio.move_on_after(patience) as scope:
            await self.wait()
        if scope.cancelled_caught:
            # Nothing can end a coroutine that swallows its cancellation. Its lease is not renewed any more.
            log.critical("a handler ignores its cancellation; the worker is left behind")
        if self.failure is not None:
            raise self.failure

    def hurry(self) -> None:
        """Cancel what runs and hand it back, in a drain that has begun."""
        self._hurry.set()

    def _ended(self, host: asyncio.Task[None]) -> None:
        error: BaseException | None
        if host.cancelled():
            error = None if self._stopping.is_set() else _was_cancelled()
        else:
            error = _cause(host.exception())
        if error is None and not self._stopping.is_set():
            error = WorkerEndedError("the worker ended although nobody stopped it")
        if not self._ready.done() and error is None:
            self._ready.cancel()
        elif not self._ready.done():
            assert error is not None
            self._ready.set_exception(error)
        elif error is not None:
            self.failure = error
            log.critical("the worker has died: %s", error, exc_info=error)

    async def _run(self) -> None:
        await self._store.server.connect()
        about: dict[str, object] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slots": self._config.threadpool.concurrency,
            "in_children": self._config.threadpool.proc_mode == "process",
            "version": VERSION,
        }
        heartbeat = self._heartbeat = Heartbeat(self._context, self.slots, self._gate, about, self._troubles_here)
        waker = self._store.server.new_client(connections=1, timeout=LONGEST_BLOCK + 2)
        try:
            self._gate.start()
            await self._store.check(worker=True)
            heartbeat.start()
            try:
                await orphans.look()  # they may hold what the handlers need: memory, a GPU, a port
                await self._start_executor()
                self._started = True
                with contextlib.suppress(StorageError):  # the next beat tells it, too
                    await heartbeat.announce()
                await self._loop_and_work(waker)
            finally:
                with anyio.CancelScope(shield=True):
                    await heartbeat.stop()
                    # After the last beat, which would enter it again. Without an answer the entry expires by itself.
                    with anyio.move_on_after(SETTLE_GRACE), contextlib.suppress(StorageError):
                        await self._store.leave(self.worker)
        finally:
            with anyio.CancelScope(shield=True):
                await waker.aclose()
                try:
                    await self._executor.aclose()
                finally:
                    with anyio.move_on_after(SETTLE_GRACE), contextlib.suppress(StorageError):
                        await self._gate.aclose()  # without an answer, by lease

    async def _start_executor(self) -> None:
        """Start the executor. Its first child starts on a GPU where a lifespan is to be entered on one."""
        grant = await self._grant_to_start_on()
        try:
            await self._executor.start(grant)
        finally:
            if grant is not None:
                grant.attempt_ended()

    async def _grant_to_start_on(self) -> Grant | None:
        """Return a part of a GPU for the first child, where a lifespan is to be entered on one and there is room."""
        demand = self._config.task.policy.demand
        if demand is None or not self._executor.wants_gpu:
            return None
        with anyio.move_on_after(self._config.threadpool.start_timeout):
            grant = await self._gate.first_grant(demand)
            if grant is not None:
                return grant
        log.warning("no GPU has room for the worker_lifespan now; it is entered when the first task gets a device")
        return None

    async def _loop_and_work(self, waker: Client) -> None:
        context, slots, wake_ups, requests = self._context, self.slots, self.wake_ups, self._requests
        work = Work(
            self._attempts,
            slots,
            self._executor,
            self._config.task.custom_backoff,
            self._exception_handler,
            self._config.task.max_payload_bytes,
            self._gate,
            self._tracing,
        )
        async with anyio.create_task_group() as loops:
            *exchanges, for_sleep, for_gpu = (
                ExchangeLoop(number, context, requests, wake_ups, work) for number in range(EXCHANGES + 2)
            )
            named: list[tuple[str, Callable[[], Awaitable[None]]]] = [
                *((f"exchange {each.number}", each.run) for each in exchanges),
                ("poll", partial(poll.run, wake_ups)),
                ("wake-up", Wake(context, requests, slots, wake_ups, waker, for_sleep).run),
                ("admission", Admission(context, requests, slots, wake_ups, self._gate, for_gpu).run),
                ("timeouts", partial(timeouts.run, self._deadlines, slots)),
                ("progress", partial(progress.run, self._attempts.notes, context.store)),
                ("sweep", partial(sweep.run, work.sweep, context.lease)),
                ("lifespan", self._executor.watch),
                ("orphans", partial(orphans.run, self._child_ended)),
            ]
            if isinstance(self._executor, ProcessExecutor | ThreadExecutor):
                named.append(("children", partial(children.run, self._executor, slots, context)))
            for name, loop in named:
                loops.start_soon(self._unasked, name, loop, name=f"maas-backoff {name}")
            try:
                wake_ups.wake()
                self._ready.set_result(None)
                log.info("ready: worker %s of queue %r", self.worker, self._config.task.biz_prefix)
                await self._stopping.wait()
                await self._drain()
            finally:
                with anyio.CancelScope(shield=True):
                    await work.stop()
            loops.cancel_scope.cancel()

    async def _unasked(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run a loop. Its end is the worker's failure, unless the worker is being stopped."""
        try:
            await loop()
        except asyncio.CancelledError:
            if anyio.current_effective_deadline() == -math.inf:
                raise
            raise _was_cancelled() from None
        if not self._stopping.is_set():
            raise WorkerEndedError(f"the worker's loop {name!r} ended although nobody stopped it")

    async def _drain(self) -> None:
        """Claim nothing more; let attempts end; cancel those that do not, and hand them back; settle.

        It is worse to lose a task than to run it twice: what cannot be settled in time is left to its lease.
        """
        slots = self.slots
        slots.close()
        with anyio.move_on_after(SETTLE_GRACE), contextlib.suppress(StorageError):
            await self._store.rouse(self.worker)  # the claim that sleeps on the server ends
        with anyio.move_on_after(self._config.scheduler.shutdown_grace):
            async with anyio.create_task_group() as group:
                group.start_soon(_when_set, self._hurry, group.cancel_scope)
                await slots.empty.wait()
                group.cancel_scope.cancel()
        if self._executor.stoppable:
            slots.cancel(list(slots.attempts), CancelReason.SHUTDOWN)
        elif not slots.unsettled:
            return self._give_up()
        with anyio.move_on_after(SETTLE_GRACE):
            await slots.empty.wait()
        return self._give_up()

    def _give_up(self) -> None:
        for attempt in self.slots.attempts.values():
            log.warning("task %r is left to its lease at shutdown", attempt.task.task_id, extra=attempt.about("left"))


def _was_cancelled() -> WorkerEndedError:
    return WorkerEndedError("other code of this process cancelled an asyncio task of the worker (all_tasks(), perhaps)")


def _cause(error: BaseException | None) -> BaseException | None:
    """Return the one exception in our groups, which users need to see."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return _cause(group.exceptions[0]) if len(group.exceptions) == 1 else group


async def _when_set(event: asyncio.Event, scope: anyio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
