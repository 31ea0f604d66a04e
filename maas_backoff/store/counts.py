"""The counts of a queue."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import attrs

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.waiting import at
from maas_backoff.domain.worker import Worker
from maas_backoff.store.codec import now_and_ahead
from maas_backoff.store.replies import StatsReply, mapping


class Counts(NamedTuple):
    """The counts of a queue, and what explains them."""

    stats: QueueStats
    waiting: Sequence[tuple[str, Demand, int]]
    """Due tasks by kind and GPU demand."""
    next_due: float | None
    """Seconds to the next due task."""
    suspects_running: int
    paused_tenants: Mapping[str, int]
    """Waiting tasks of each, delayed ones too."""
    shut_limits: int
    """Limits for which lanes wait."""


def counts_in(reply: StatsReply) -> Counts:
    """Return the counts in a reply of stats.lua."""
    waiting, gpu_kinds = list[tuple[str, Demand, int]](), Counter[str]()
    for stored, count in mapping(reply.demands).items():
        kind, _, name = stored.decode().rpartition("/")
        # The name of a set that several demands share is the size that none of them is above.
        waiting.append((kind, Demand.parse(name.removeprefix("~")), count))
        gpu_kinds[kind] += count
    gpu_kinds.pop(NAMELESS, None)
    _, ahead_ms = now_and_ahead(reply.now)
    stats = QueueStats(
        int(reply.pending),
        int(reply.scheduled),
        int(reply.processing),
        int(reply.completed),
        int(reply.failed),
        int(reply.cancelled),
        oldest_pending_age=int(reply.age_ms) / 1000,
        gpu_count=sum(count for _, _, count in waiting),
        paused=bool(reply.paused),
        paused_since=at(reply.paused - ahead_ms) if reply.paused else None,
        suspect_count=reply.suspects,
        kinds={name.decode(): count for name, count in mapping(reply.by_kind).items()},
        gpu_kinds=dict(gpu_kinds),
        paused_kinds={
            name.decode(): at(float(since) - ahead_ms) for name, since in mapping(reply.paused_kinds).items()
        },
        tenant_count=reply.tenant_count,
        limit_count=reply.limit_count,
        paused_tenants={name.decode(): at(float(since) - ahead_ms) for name, since, _ in reply.paused_tenants},
    )
    next_due = None if reply.next_due == b"-1" else int(reply.next_due) / 1000
    paused_tenants = {name.decode(): int(number) for name, _, number in reply.paused_tenants}
    return Counts(stats, waiting, next_due, reply.suspects_running, paused_tenants, reply.shut_limits)


def with_unfit(stats: QueueStats, waiting: Iterable[tuple[Demand, int]], fleet: Sequence[Worker]) -> QueueStats:
    """Return counts with the number of due tasks that no device of a fleet is large enough for."""
    unfit = sum(count for demand, count in waiting if not any(worker.could_fit(demand) for worker in fleet))
    return attrs.evolve(stats, unfit_count=unfit)
