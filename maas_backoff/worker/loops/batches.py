"""The loop that claims the batches of one kind. The server says when a batch is due: until then, nothing is claimed."""

import math
import time

import anyio

from maas_backoff.domain.batching import Batching
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.loops.exchange import ExchangeLoop
from maas_backoff.worker.requests import BatchRequests
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.wake_ups import WakeUps

SHORTEST_LOOK = 0.05
"""Seconds between two looks while other tasks keep the worker busy. Then it does not sleep on the server."""


class BatchLoop:
    """Claims the batches of a kind, one for each free slot."""

    def __init__(
        self,
        kind: str,
        batching: Batching,
        context: WorkerContext,
        requests: BatchRequests,
        slots: Slots,
        wake_ups: WakeUps,
        exchange: ExchangeLoop,
    ) -> None:
        """`exchange` is an exchange loop that nothing else uses."""
        self._kind = kind
        self._batching = batching
        self._interval = context.interval
        self._requests = requests
        self._slots = slots
        self._wake_ups = wake_ups
        self._exchange = exchange
        self._changed = wake_ups.batches[kind]

    async def run(self) -> None:
        """Look for a batch, again when one is due, when a marker tells of one, and when a slot is free again."""
        while True:
            self._changed.clear()
            pause = await self._look()
            with anyio.move_on_after(pause):
                await self._changed.wait()

    async def _look(self) -> float:
        """Claim a batch, if one is due. Return the seconds until the next look, if nothing changes before."""
        wakes = self._wake_ups.count
        request = self._requests.for_batch(self._kind, self._text(), self._exchange.number)
        if request is None:
            # Other tasks must not take every slot that is free again.
            self._slots.keep_for_batches(0 if self._wake_ups.only_batches or self._slots.closing else 1)
            return math.inf
        self._slots.keep_for_batches(0)
        sent = time.monotonic()
        reply = await self._exchange.send(request)
        self._exchange.apply(request, reply, sent)
        if reply.claimed or reply.hit:
            return 0
        self._wake_ups.no_batch(self._kind, wakes)
        pause = min(self._interval, math.inf if reply.next_due is None else reply.next_due)
        return min(pause, max(SHORTEST_LOOK, self._batching.max_wait)) if self._wake_ups.has_work else pause

    def _text(self) -> str:
        return self._batching.claim(self._batching.max_size, self._batching.max_wait)
