"""The loop that claims batches. The server says when a batch is due: until then, nothing is claimed."""

import math
import time
from collections.abc import Sequence

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
"""Seconds between two looks while other tasks keep the worker busy. Then it does not sleep on the server."""


@attrs.define
class _Kind:
    name: str
    batching: Batching
    look_at: float = 0.0
    """The time of the next look, on the event loop's clock, if nothing wakes the worker before."""
    rank: float = math.inf
    """The rank of its first task that waits, as the last look at any kind has told; infinity: none waits."""


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
        self._named = tuple(self._kinds)
        """The kinds in the order in which a look names them. If there is only one, a look names none."""
        self._names = "".join(f" {kind.name}" for kind in self._named) if len(self._named) > 1 else ""
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
        now, unseen = anyio.current_time(), self._wake_ups.unseen
        found = (kind for kind in self._kinds if kind.look_at <= now or kind.name in unseen)
        return min(found, key=lambda kind: kind.rank, default=None)

    async def _look(self, kind: _Kind) -> bool:
        """Claim a batch of a kind, if one is due. Return False if no slot is free."""
        batch = self._learning.claim(kind.name) + self._names
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
        self._note_ranks(kind, reply.ranks)
        if reply.claimed:
            self._learning.claimed(kind.name, len(reply.claimed), time.monotonic() - sent)
        if reply.claimed or reply.hit:
            self._wake_ups.unseen.add(kind.name)
        else:
            self._wake_ups.no_batch()
            kind.look_at = anyio.current_time() + self._pause(kind, reply.next_due)
        return True

    def _note_ranks(self, seen: _Kind, ranks: Sequence[float]) -> None:
        """Note how urgent the kinds are, and look for those with new tasks: a busy worker hears no wake-up."""
        for kind, rank in zip(self._named, ranks, strict=False):
            if rank < kind.rank and kind is not seen:
                self._wake_ups.unseen.add(kind.name)
            kind.rank = rank

    def _pause(self, kind: _Kind, next_due: float | None) -> float:
        """Return the seconds until the next look."""
        pause = self._interval if next_due is None else min(self._interval, next_due)
        if self._wake_ups.has_work and not self._wake_ups.only_batches:
            pause = min(pause, max(SHORTEST_LOOK, kind.batching.max_wait))
        return pause
