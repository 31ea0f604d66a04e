"""The loop that claims batches. The server says when a batch is due: until then, nothing is claimed."""

import math
import time

import anyio
import attrs

from maas_backoff.domain.batching import Batching
from maas_backoff.worker.batch_learning import BatchLearning
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.loops.exchange import ExchangeLoop
from maas_backoff.worker.requests import BatchRequests
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.wake_ups import WakeUps

SHORTEST_LOOK = 0.05
"""Seconds between two looks while other tasks keep all slots: no claim tells of batches, nor does a wake-up."""


@attrs.define
class _Kind:
    name: str
    batching: Batching
    look_at: float = 0.0
    """The time of the next look, on the event loop's clock, if nothing wakes the worker before."""


class BatchLoop:
    """Claims the batches of all kinds that run in batches, by rank: one batch for each free slot."""

    def __init__(
        self,
        context: WorkerContext,
        requests: BatchRequests,
        slots: Slots,
        wake_ups: WakeUps,
        exchange: ExchangeLoop,
        learning: BatchLearning,
    ) -> None:
        """`exchange` is an exchange loop that nothing else uses."""
        self._kinds = [_Kind(name, batching) for name, batching in context.kinds.batches.items()]
        self._interval = context.interval
        self._requests = requests
        self._slots = slots
        self._wake_ups = wake_ups
        self._exchange = exchange
        self._learning = learning

    async def run(self) -> None:
        """Look when a batch is due, when a marker tells of one, and when a slot is free again."""
        while True:
            self._wake_ups.batch.clear()
            while (kind := self._next()) is not None and await self._look(kind):
                pass
            pause = math.inf if kind is not None else min(one.look_at for one in self._kinds) - anyio.current_time()
            with anyio.move_on_after(pause):
                await self._wake_ups.batch.wait()

    def _next(self) -> _Kind | None:
        """Return the most urgent kind of those that must be looked for; None: none must. Equal ones take turns."""
        now, unseen, ranks = anyio.current_time(), self._wake_ups.unseen, self._wake_ups.ranks
        found = (kind for kind in self._kinds if kind.look_at <= now or kind.name in unseen)
        return min(found, key=lambda kind: ranks[kind.name], default=None)

    async def _look(self, kind: _Kind) -> bool:
        """Claim a batch of a kind, if one is due. Return False if no slot is free."""
        batch = self._learning.claim(kind.name)
        request = self._requests.for_batch(kind.name, batch, self._exchange.number)
        if request is None:
            # Other tasks must not take every slot that is free again.
            self._slots.keep_for_batches(0 if self._wake_ups.only_batches or self._slots.closing else 1)
            return False
        self._slots.keep_for_batches(0)
        # Before the request: a wake-up during it may belong to tasks that come after the look.
        self._wake_ups.unseen.discard(kind.name)
        self._kinds.remove(kind)
        self._kinds.append(kind)
        sent = time.monotonic()
        reply = await self._exchange.send(request)
        self._exchange.apply(request, reply, sent)
        if reply.claimed:
            self._learning.claimed(kind.name, len(reply.claimed), time.monotonic() - sent)
        if reply.claimed or reply.hit:
            self._wake_ups.unseen.add(kind.name)
        else:
            self._wake_ups.no_batch()
            kind.look_at = anyio.current_time() + self._pause(kind, reply.next_due)
        return True

    def _pause(self, kind: _Kind, next_due: float | None) -> float:
        """Return the seconds until the next look."""
        pause = self._interval if next_due is None else min(self._interval, next_due)
        if self._wake_ups.has_work and not self._wake_ups.only_batches:
            pause = min(pause, max(SHORTEST_LOOK, kind.batching.max_wait))
        return pause
