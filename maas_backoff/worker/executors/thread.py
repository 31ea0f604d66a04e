"""Plain functions, in threads."""

import asyncio
import inspect
import os
from functools import partial

from maas_backoff.common.forks import end_if_forked
from maas_backoff.domain.batch_outcome import outcomes_of_values
from maas_backoff.domain.handler_outcome import outcome_of_error, outcome_of_value
from maas_backoff.domain.outcome import HandlerOutcome
from maas_backoff.domain.task import TaskEntity
from maas_backoff.worker.executors.base import BatchOutcome, Call, CallOfBatch, GpuGrant, Handler
from maas_backoff.worker.executors.lifespan import InThisProcess
from maas_backoff.worker.executors.thread_pool import Rest, Run, ThreadPool
from maas_backoff.worker.setback import Setback


class ThreadExecutor:
    """Calls the handler in worker threads. Nothing can stop a thread: a cancelled call leaves it behind, lingering."""

    stoppable = False
    start_demand = None

    def __init__(
        self,
        handler: Handler,
        *,
        max_payload_bytes: int,
        lifespan: InThisProcess | None = None,
        threads: ThreadPool | None = None,
    ) -> None:
        """`threads` are shared with other executors."""
        self.child_ended: asyncio.Event = asyncio.Event()
        """Never set."""
        self._handler = handler
        self._lifespan = lifespan or InThisProcess(None)
        self._limit = max_payload_bytes
        self._threads = threads or ThreadPool()
        self._pid = os.getpid()

    @property
    def groups(self) -> "tuple[ThreadExecutor]":
        """The executor itself."""
        return (self,)

    @property
    def setback(self) -> Setback:
        """The record of threads that could not be started."""
        return self._threads.setback

    @property
    def starting(self) -> ThreadPool:
        """The threads."""
        return self._threads

    def stops(self, _: str, /) -> bool:
        """Return False."""
        return False

    async def start(self, _: GpuGrant | None = None, /) -> None:
        """Get ready, and enter the lifespan."""
        self._threads.start()
        await self._lifespan.enter()

    async def watch(self) -> None:
        """Wait; raise HandlerError if the lifespan ends by itself."""
        await self._lifespan.watch()

    async def run(self, call: Call) -> HandlerOutcome:
        """Call the handler once."""
        outcome = await self._in_thread(call, self._call)
        if isinstance(outcome, Rest):
            return await self._awaited(outcome)
        assert not isinstance(outcome, list)
        return outcome

    async def run_batch(self, call: CallOfBatch) -> BatchOutcome:
        """Call the handler once for a batch."""
        tasks = [member.task for member in call.members]
        outcome = await self._in_thread(call, partial(self._call_batch, tasks))
        return await self._awaited_batch(outcome) if isinstance(outcome, Rest) else outcome

    async def _in_thread(self, call: Call, run: Run) -> BatchOutcome | Rest:
        mine = self._threads.begin(call, run)
        try:
            return await mine.outcome
        except asyncio.CancelledError:
            self._threads.leave_behind(mine)
            raise

    async def _awaited(self, rest: Rest) -> HandlerOutcome:
        """Await what the call has returned: `async def` behind a plain decorator, say."""
        try:
            value = await rest.awaitable
            end_if_forked(self._pid)
            return outcome_of_value(value, self._limit)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - as in _call
            end_if_forked(self._pid, error)
            return outcome_of_error(error)

    def _call(self, task: TaskEntity) -> HandlerOutcome | Rest:
        """Call the handler, in a thread."""
        try:
            value = self._handler(task, *self._lifespan.values)
            return Rest(value) if inspect.isawaitable(value) else outcome_of_value(value, self._limit)
        except BaseException as error:  # noqa: BLE001 - SystemExit in a handler fails its task, not the worker
            end_if_forked(self._pid, error)
            return outcome_of_error(error)

    def _call_batch(self, tasks: list[TaskEntity], _: TaskEntity) -> BatchOutcome | Rest:
        """Call the handler for a batch, in a thread."""
        try:
            value = self._handler(tasks, *self._lifespan.values)
            return Rest(value) if inspect.isawaitable(value) else outcomes_of_values(value, self._limit)
        except BaseException as error:  # noqa: BLE001 - as in _call
            end_if_forked(self._pid, error)
            return outcome_of_error(error)

    async def _awaited_batch(self, rest: Rest) -> BatchOutcome:
        try:
            value = await rest.awaitable
            end_if_forked(self._pid)
            return outcomes_of_values(value, self._limit)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - as in _call
            end_if_forked(self._pid, error)
            return outcome_of_error(error)

    async def aclose(self) -> None:
        """Let the threads end; one whose handler does not end is left behind."""
        await self._threads.aclose()
        await self._lifespan.exit()
