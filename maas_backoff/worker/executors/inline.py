"""Coroutine handlers, on the event loop."""

import asyncio
import os
from collections.abc import Awaitable
from typing import cast

from maas_backoff.common.forks import end_if_forked
from maas_backoff.domain.batch_outcome import outcomes_of_values
from maas_backoff.domain.handler_outcome import outcome_of_error, outcome_of_value
from maas_backoff.domain.outcome import HandlerOutcome
from maas_backoff.worker.executors.base import BatchOutcome, Call, CallOfBatch, GpuGrant, Handler
from maas_backoff.worker.executors.lifespan import InThisProcess


class InlineExecutor:
    """Awaits the handler. A timeout and a cancel are real: they reach it at its next `await`."""

    stoppable = True
    setback = None
    start_demand = None
    starting = None

    def __init__(self, handler: Handler, *, max_payload_bytes: int, lifespan: InThisProcess | None = None) -> None:
        self.child_ended: asyncio.Event = asyncio.Event()
        """Never set."""
        self._handler = handler
        self._lifespan = lifespan or InThisProcess(None)
        self._limit = max_payload_bytes
        self._pid = os.getpid()

    @property
    def groups(self) -> "tuple[InlineExecutor]":
        """The executor itself."""
        return (self,)

    def stops(self, _: str, /) -> bool:
        """Return True."""
        return True

    async def start(self, _: GpuGrant | None = None, /) -> None:
        """Enter the lifespan."""
        await self._lifespan.enter()

    async def watch(self) -> None:
        """Wait; raise HandlerError if the lifespan ends by itself."""
        await self._lifespan.watch()

    async def run(self, call: Call) -> HandlerOutcome:
        """Await the handler once."""
        call.started()
        try:
            awaitable = cast("Awaitable[object]", self._handler(call.task, *self._lifespan.values))
            value = await awaitable
            end_if_forked(self._pid)
            return outcome_of_value(value, self._limit)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - SystemExit in a handler fails its task, not the worker
            end_if_forked(self._pid, error)
            return outcome_of_error(error)

    async def run_batch(self, call: CallOfBatch) -> BatchOutcome:
        """Await the handler once for a batch."""
        call.started()
        tasks = [member.task for member in call.members]
        try:
            awaitable = cast("Awaitable[object]", self._handler(tasks, *self._lifespan.values))
            value = await awaitable
            end_if_forked(self._pid)
            return outcomes_of_values(value, self._limit)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - as in run
            end_if_forked(self._pid, error)
            return outcome_of_error(error)

    async def aclose(self) -> None:
        """Leave the lifespan."""
        await self._lifespan.exit()
