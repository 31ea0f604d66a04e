"""Plain functions, in threads."""

import asyncio
import inspect

from maas_backoff.domain.handler_outcome import outcome_of_error, outcome_of_value
from maas_backoff.domain.outcome import HandlerOutcome
from maas_backoff.domain.task import TaskEntity
from maas_backoff.worker.executors.base import Call, GpuGrant, Handler
from maas_backoff.worker.executors.lifespan import InThisProcess, Lifespan
from maas_backoff.worker.executors.thread_pool import Rest, ThreadPool
from maas_backoff.worker.setback import Setback


class ThreadExecutor:
    """Calls the handler in worker threads. Nothing can stop a thread: a cancelled call leaves it behind, lingering."""

    stoppable = False
    wants_gpu = False
    lacks_child = False

    def __init__(self, handler: Handler, *, max_payload_bytes: int, lifespan: Lifespan | None = None) -> None:
        self._handler = handler
        self._lifespan = InThisProcess(lifespan)
        self._limit = max_payload_bytes
        self._threads = ThreadPool(self._call)

    @property
    def setback(self) -> Setback:
        """The record of threads that could not be started."""
        return self._threads.setback

    @property
    def lacking(self) -> asyncio.Event:
        """Set when a thread could not be started."""
        return self._threads.lacking

    async def start(self, _: GpuGrant | None = None, /) -> None:
        """Get ready, and enter the lifespan."""
        self._threads.start()
        await self._lifespan.enter()

    async def watch(self) -> None:
        """Wait; raise HandlerError if the lifespan ends by itself."""
        await self._lifespan.watch()

    async def run(self, call: Call) -> HandlerOutcome:
        """Call the handler once."""
        mine = self._threads.begin(call)
        try:
            outcome = await mine.outcome
        except asyncio.CancelledError:
            self._threads.leave_behind(mine)
            raise
        return await self._awaited(outcome) if isinstance(outcome, Rest) else outcome

    async def _awaited(self, rest: Rest) -> HandlerOutcome:
        """Await what the call has returned: `async def` behind a plain decorator, say."""
        try:
            return outcome_of_value(await rest.awaitable, self._limit)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - as in _call
            return outcome_of_error(error)

    def _call(self, task: TaskEntity) -> HandlerOutcome | Rest:
        """Call the handler, in a thread."""
        try:
            value = self._handler(task, *self._lifespan.values)
            return Rest(value) if inspect.isawaitable(value) else outcome_of_value(value, self._limit)
        except BaseException as error:  # noqa: BLE001 - SystemExit in a handler fails its task, not the worker
            return outcome_of_error(error)

    def unused_ended(self) -> bool:
        """Return False: a thread ends with the worker only."""
        return False

    async def warm_up(self) -> None:
        """Start a thread that no task has asked for, and note in `setback` what came of it."""
        await self._threads.try_thread()

    async def aclose(self) -> None:
        """Let the threads end; one whose handler does not end is left behind."""
        await self._threads.aclose()
        await self._lifespan.exit()
