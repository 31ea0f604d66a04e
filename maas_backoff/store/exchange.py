"""The exchange of batch requests and batch replies between a worker and its queue."""

import math
import time
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.kind import ONLY_NAMELESS, Kinds
from maas_backoff.domain.labels import NO_LABELS
from maas_backoff.domain.lane import Lane
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.waiting import at
from maas_backoff.store import scripts
from maas_backoff.store.batch import BatchReply, BatchRequest, Claimed, settle_head
from maas_backoff.store.codec import PARAMS, comeback_of_claim, deadline_of, demand_of, labels_of, now_and_ahead
from maas_backoff.store.connect import Client
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.creation import Creation
from maas_backoff.store.markers import Markers
from maas_backoff.store.replies import ClaimRow, SettleReply
from maas_backoff.store.time_limits import TimeLimits

_created_at = lru_cache(maxsize=256)(at)  # as in creation.py
_PROCESSING = TaskStatus.PROCESSING  # as in settlement.py
_VALUES = len(ClaimRow._fields)
_CREATION = ClaimRow._fields.index("creation")


def _claimed(request: BatchRequest, kinds: Kinds) -> str:
    """Return the kinds whose tasks a request may claim, of a worker's `kinds`; `~` and the kinds that it asks about."""
    if request.fits:
        return request.kind or kinds.text
    return (request.kind or kinds.alone) + kinds.ranked


class Exchange:
    """The sender of batch requests. It sends a request once; the caller repeats it unchanged until it is answered."""

    def __init__(self, queue: QueueConnection, markers: Markers) -> None:
        self._queue = queue
        self._markers = markers
        self._clock = math.inf
        """The queue's time is at most this many seconds ahead of time.monotonic(), by the last request."""

    async def send(self, request: BatchRequest, worker: str, kinds: Kinds = ONLY_NAMELESS) -> BatchReply:
        """Send a batch request, which claims tasks of `kinds`. If StorageUnavailableError is raised, send it again."""
        client = await self._queue.server.connect()
        sent = time.monotonic()
        reply = await client.run(scripts.SETTLE, *self._packed(request, worker, kinds))
        self._clock = now_and_ahead(reply.now)[0] / 1000 - sent
        return await self._read(request, reply, worker)

    async def send_after_sleep(
        self,
        client: Client,
        request: BatchRequest,
        worker: str,
        longest: float,
        *,
        gpu: bool,
        kinds: Kinds = ONLY_NAMELESS,
    ) -> tuple[str, BatchReply]:
        """Send a request that the server runs at the next marker, or after `longest` seconds. Errors as `send`.

        Return the name of the marker, as `Markers.sleep` does, and the reply.
        """
        command = self._markers.blocking(worker, longest, gpu=gpu, kinds=kinds)
        taken, reply = await client.run_after(command, scripts.SETTLE, *self._packed(request, worker, kinds))
        return self._markers.name_of(taken), await self._read(request, reply, worker)

    def _packed(self, request: BatchRequest, worker: str, kinds: Kinds) -> tuple[Sequence[str], list[Any]]:
        keys = self._queue.keys
        head = settle_head(
            self._queue,
            worker,
            worker,
            request_id=request.request_id,
            claims=request.batch or request.claims,
            suspicion=request.suspicion,
            fits=request.fits,
            tally=request.tally,
            kinds=_claimed(request, kinds),
            used=request.used,
        )
        names = keys.all(scripts.SETTLE.keys, request=keys.request(worker, request.exchange))
        return names, [*head, *request.args]

    async def _read(self, request: BatchRequest, reply: SettleReply, worker: str) -> BatchReply:
        now_ms, ahead_ms = now_and_ahead(reply.now)
        started_at = at(now_ms - ahead_ms)
        creations = [Creation.of(stored) for stored in reply.claims[_CREATION::_VALUES]]
        await self._queue.learn(creations)
        rows = map(ClaimRow._make, zip(*[iter(reply.claims)] * _VALUES, strict=True))
        claimed = [
            self._claimed(row, creation, now_ms, started_at, ahead_ms, worker)
            for row, creation in zip(rows, creations, strict=True)
        ]
        fitted = reply.fitted if request.fits else ()
        for one, fit, raised in zip(claimed, fitted[::2], fitted[1::2], strict=bool(fitted)):
            one.fit, one.demand = fit, demand_of(raised, one.policy)
        words = [word.decode() for word in reply.answers]
        next_due = None if reply.next_due == b"-1" else int(reply.next_due) / 1000
        ranks = [] if request.fits else [float(rank) if rank else math.inf for rank in reply.fitted]
        return BatchReply(words, claimed, next_due, bool(reply.hit), ranks)

    def _claimed(
        self, row: ClaimRow, creation: Creation, now_ms: float, started_at: datetime, ahead_ms: float, worker: str
    ) -> Claimed:
        task_id, token, attempt, _, overrides, stored_counts, due = row
        policy, own = self._queue.policies.effective(creation.policy, overrides)
        has_stream = stored_counts is not None and stored_counts.startswith(b"+")
        counts, error, attempts = comeback_of_claim(stored_counts, ahead_ms)
        lane = Lane.of(creation.lane)
        defect = None
        task_params: dict[str, Any] = {}
        try:
            task_params = own[PARAMS] if PARAMS in own else jsontext.parse(creation.params)
        except ValueError as wrong:
            defect = f"stored params are not JSON: {wrong}"
        task = TaskEntity(
            task_id=task_id.decode(),
            biz_prefix=self._queue.config.task.biz_prefix,
            task_params=task_params,
            status=_PROCESSING,
            priority=creation.priority,
            retry_count=counts.retry,
            max_retry_count=policy.max_retry_count,
            attempt=attempt,
            lost_count=counts.lost,
            snooze_count=counts.snooze,
            created_at=_created_at(creation.created_ms - ahead_ms),
            started_at=started_at,
            error=error,
            attempts=attempts,
            token=token,
            oom_count=counts.oom,
            kind=creation.kind,
            tenant=lane.tenant,
            cost=lane.cost,
            limits=lane.limits,
            labels=labels_of(own) if own else NO_LABELS,
            worker=worker,
        )
        waited = now_ms - (creation.created_ms if due is None else float(due))
        claimed = Claimed(task, token, counts, policy, own.get("exec_timeout"), now_ms, defect, overrides, waited)
        if has_stream:
            claimed.has_stream = True
        limits = TimeLimits.of(own) if own else None
        if limits is not None:
            claimed.task = attrs.evolve(task, deadline=deadline_of(limits, ahead_ms))
            if limits.complete_by:
                claimed.time_left = (limits.complete_by - now_ms) / 1000
            # Without a request before, the reply is taken to be as new as its time.
            clock = self._clock if self._clock != math.inf else now_ms / 1000 - time.monotonic()
            claimed.start_before = limits.expiry / 1000 - clock
        return claimed
