"""The host task of a worker. It owns the task group, and the order of start, drain and stop."""

import asyncio
import contextlib
import math
import time
from contextvars import Context
from typing import cast

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.orphans import this_process
from maas_backoff.common.threads import in_thread
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import StorageError, WorkerEndedError
from maas_backoff.store.connect import Client
from maas_backoff.store.preflight.check import check_queue
from maas_backoff.worker.description import Description
from maas_backoff.worker.drain import SETTLE_GRACE, drain
from maas_backoff.worker.idle import until_idle
from maas_backoff.worker.loops import orphans
from maas_backoff.worker.loops.heartbeat import Heartbeat
from maas_backoff.worker.loops.wake import LONGEST_BLOCK
from maas_backoff.worker.parts import Loop, Parts
from maas_backoff.worker.predecessor import take_over

log: Log = log_for("worker")


class Service:
    """Runs tasks from `start` to `stop`. The scheduler calls each of them once."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.failure: BaseException | None = None
        """The error that ended the worker."""
        self._heartbeat: Heartbeat | None = None
        self._host: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started = False
        self._stopping = asyncio.Event()
        self._cancelling = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether the worker claims tasks."""
        return self._host is not None and not self._host.done() and not self._stopping.is_set()

    def runs(self, task: TaskEntity) -> bool:
        """Return whether this worker runs the task now."""
        attempt = self.parts.slots.attempts.get(task.token)
        return attempt is not None and attempt.task is task

    def troubles(self) -> list[str]:
        """Return the reasons why this worker does not run tasks as it should."""
        if self.failure is not None:
            return [f"the worker stopped unexpectedly: {self.failure}"]
        found = self._troubles_here()
        if self._heartbeat is not None and self._heartbeat.trouble is not None:
            found.append(self._heartbeat.trouble)
        return found

    def _troubles_here(self) -> list[str]:
        """Return the troubles for the registry, without those of the heartbeat, whose thread calls this, too."""
        if not self.alive:
            return ["shutting down" if self._stopping.is_set() else "the worker has ended"]
        return self.parts.troubles(time.monotonic()) if self._started else ["starting"]

    async def start(self) -> None:
        """Start the worker, and return when it claims tasks. Raises the error that prevented the start."""
        # The task group must be left by the asyncio task that entered it: so the worker has its own asyncio task. The
        # context is empty: tasks must not see the context of the caller, such as a web request.
        self._host = asyncio.create_task(self._run(), name="maas-backoff", context=Context())
        self._host.add_done_callback(self._ended)
        try:
            await asyncio.shield(self._ready)
        except asyncio.CancelledError:
            # redis-py swallows a cancel that arrives together with a reply. Then the host task goes on, and drains.
            self._stopping.set()
            self._cancelling.set()
            self._host.cancel()
            # Nothing can end a `worker_lifespan` that swallows its cancel.
            with anyio.move_on_after(3 * SETTLE_GRACE, shield=True):
                await asyncio.wait([self._host])
            raise

    def close(self) -> None:
        """Begin to drain: claim nothing more, let running attempts end."""
        self._stopping.set()

    def cancel_running(self) -> None:
        """Cancel the running attempts and hand back their tasks, after `close`."""
        self._cancelling.set()

    async def wait(self) -> None:
        """Wait until the worker has ended, after `close` or by a failure."""
        if self._host is not None:
            await asyncio.wait([self._host])

    async def until_idle(self, within: float) -> str:
        """Wait until the worker runs nothing, can run nothing, and no task of the queue is due within `within` seconds.

        Raises the error that ended the worker, or WorkerEndedError if the worker was stopped meanwhile.
        """
        assert self._host is not None
        idle = asyncio.create_task(until_idle(self.parts, within), name="maas-backoff-until-idle")
        try:
            await asyncio.wait([idle, self._host], return_when=asyncio.FIRST_COMPLETED)
        finally:
            idle.cancel()  # does nothing if the task has ended
        if self._host.done() and not idle.done():
            raise self.failure or WorkerEndedError("until_idle: the worker was stopped before its work was done")
        return await idle

    async def stop(self) -> None:
        """Drain and stop. Raises the error that ended the worker, if any."""
        self.close()
        patience = self.parts.config.scheduler.shutdown_grace + 3 * SETTLE_GRACE
        with anyio.move_on_after(patience) as scope:
            await self.wait()
        if scope.cancelled_caught:
            # Nothing can end a coroutine that swallows its cancel. Its lease is no longer renewed.
            log.critical("a handler ignores its cancellation; the worker is left behind")
        if self.failure is not None:
            raise self.failure

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
        parts, store = self.parts, self.parts.context.store
        await store.connection.server.connect()
        description = Description(
            parts.config.threadpool,
            parts.context.kinds,
            self._troubles_here,
            parts.gate.overview.describe,
            lambda: parts.slots.quiet,
        )
        heartbeat = self._heartbeat = Heartbeat(
            parts.context, parts.slots, parts.gate, description, parts.orphans.neighbour_ended, parts.work.tracing
        )
        waker = store.connection.server.new_client(connections=1, timeout=LONGEST_BLOCK + 2)
        try:
            parts.gate.start()
            await check_queue(store.connection, worker=True)
            store.connection.process = await in_thread(this_process)
            await take_over(parts.context)
            heartbeat.start()
            try:
                await orphans.check()  # they may occupy memory, a GPU or a port that the handlers need
                await parts.start_executor()
                self._started = True
                with contextlib.suppress(StorageError):  # the next heartbeat reports it, too
                    await heartbeat.announce()
                await self._loop_and_work(waker)
            finally:
                with anyio.CancelScope(shield=True):
                    await heartbeat.stop()
                    with anyio.move_on_after(SETTLE_GRACE):
                        with contextlib.suppress(StorageError):
                            await parts.sums.send()
                        # After the last heartbeat, which would enter the worker again. If this fails, it expires.
                        with contextlib.suppress(StorageError):
                            await store.registry.leave(parts.context.name, parts.context.kinds)
        finally:
            with anyio.CancelScope(shield=True):
                await waker.aclose()
                try:
                    await parts.executor.aclose()
                finally:
                    with anyio.move_on_after(SETTLE_GRACE), contextlib.suppress(StorageError):
                        await parts.gate.aclose()  # if this fails, the reservations expire with their lease

    async def _loop_and_work(self, waker: Client) -> None:
        parts = self.parts
        async with anyio.create_task_group() as group:
            for name, loop in parts.loops(waker):
                group.start_soon(self._run_loop, name, loop, name=f"maas-backoff {name}")
            try:
                parts.wake_ups.wake()
                self._ready.set_result(None)
                log.info("ready: worker %s of queue %r", parts.context.name, parts.config.task.biz_prefix)
                await self._stopping.wait()
                await drain(parts, self._cancelling)
            finally:
                with anyio.CancelScope(shield=True):
                    await parts.work.stop()
            group.cancel_scope.cancel()

    async def _run_loop(self, name: str, loop: Loop) -> None:
        """Run a loop. Raise WorkerEndedError if the loop ends before the worker is stopped."""
        try:
            await loop()
        except asyncio.CancelledError:
            if anyio.current_effective_deadline() == -math.inf:
                raise
            raise _was_cancelled() from None
        if not self._stopping.is_set():
            raise WorkerEndedError(f"the worker's loop {name!r} ended although nobody stopped it")


def _was_cancelled() -> WorkerEndedError:
    return WorkerEndedError("other code of this process cancelled an asyncio task of the worker (all_tasks(), perhaps)")


def _cause(error: BaseException | None) -> BaseException | None:
    """Return the only exception inside nested exception groups, or the group if it has several."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return _cause(group.exceptions[0]) if len(group.exceptions) == 1 else group
