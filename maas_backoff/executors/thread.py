"""Plain functions, in threads."""

import asyncio
import contextlib
import math

import anyio
from anyio import to_thread

from maas_backoff.domain.outcome import HandlerOutcome, outcome_of_error, outcome_of_value
from maas_backoff.executors.base import Call, Handler


class ThreadExecutor:
    """Calls the handler in a worker thread. Nothing can stop a thread: a cancelled call leaves it behind, lingering."""

    stoppable = False

    def __init__(self, handler: Handler, *, max_payload_bytes: int) -> None:
        self._handler = handler
        self._limit = max_payload_bytes
        self._limiter: anyio.CapacityLimiter | None = None

    async def start(self) -> None:
        """Get ready. The slots are the limit, not anyio's default of 40 threads."""
        self._limiter = anyio.CapacityLimiter(math.inf)

    async def run(self, call: Call) -> HandlerOutcome:
        """Call the handler once."""
        body = _Body(self._handler, call, self._limit)
        call.started()
        try:
            return await to_thread.run_sync(body.run, abandon_on_cancel=True, limiter=self._limiter)
        except asyncio.CancelledError:
            call.lingers(body.abandon())
            raise

    async def aclose(self) -> None:
        """Nothing to let go of: threads end by themselves."""


class _Body:
    def __init__(self, handler: Handler, call: Call, limit: int) -> None:
        self._handler = handler
        self._task = call.task
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._ended: asyncio.Event | None = None

    def run(self) -> HandlerOutcome:
        try:
            return outcome_of_value(self._handler(self._task), self._limit)
        except BaseException as error:  # noqa: BLE001 - SystemExit in a handler fails its task, not the worker
            return outcome_of_error(error)
        finally:
            # In this order: whoever comes second, abandon() or this, sees the other.
            self._over = True
            if self._ended is not None:
                with contextlib.suppress(RuntimeError):  # the loop is gone, and nobody waits
                    self._loop.call_soon_threadsafe(self._ended.set)

    def abandon(self) -> asyncio.Event:
        ended = self._ended = asyncio.Event()
        if self._over:
            ended.set()
        return ended
