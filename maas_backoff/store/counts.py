"""The counts of a queue."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import attrs

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.pause import PausedBy
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.waiting import NOT_YET, at, gpu_reason
from maas_backoff.domain.worker import Worker
from maas_backoff.store.codec import now_and_ahead
from maas_backoff.store.replies import StatsReply, mapping


class Demanded(NamedTuple):
    """Due tasks with the same kind and GPU demand, and the seconds since the first of them was due."""

    kind: str
    demand: Demand
    tasks: int
    age: float


class Counts(NamedTuple):
    """The counts of a queue, and what explains them."""

    stats: QueueStats
    waiting: Sequence[Demanded]
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
    waiting, gpu_kinds = list[Demanded](), Counter[str]()
    for (stored, count), age_ms in zip(mapping(reply.demands).items(), reply.gpu_ages, strict=True):
        kind, _, name = stored.decode().rpartition("/")
        # The name of a set that several demands share is the size that none of them is above.
        waiting.append(Demanded(kind, Demand.parse(name.removeprefix("~")), count, int(age_ms) / 1000))
        gpu_kinds[kind] += count
    gpu_kinds.pop(NAMELESS, None)
    _, ahead_ms = now_and_ahead(reply.now)
    by = PausedBy.of({field.decode(): name.decode() for field, name in mapping(reply.paused_by).items()})
    stats = QueueStats(
        int(reply.pending),
        int(reply.scheduled),
        int(reply.processing),
        int(reply.completed),
        int(reply.failed),
        int(reply.cancelled),
        oldest_pending_age=int(reply.age_ms) / 1000,
        gpu_count=sum(one.tasks for one in waiting),
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
        created_count=reply.created,
        paused_by=by.queue,
        kinds_paused_by=by.kinds,
        tenants_paused_by=by.tenants,
    )
    next_due = None if reply.next_due == b"-1" else int(reply.next_due) / 1000
    paused_tenants = {name.decode(): int(number) for name, _, number in reply.paused_tenants}
    return Counts(stats, waiting, next_due, reply.suspects_running, paused_tenants, reply.shut_limits)


def with_unfit(stats: QueueStats, waiting: Sequence[Demanded], fleet: Sequence[Worker]) -> QueueStats:
    """Return the counts with those of tasks for GPUs. The age leaves out tasks that are too large for the fleet.

    Without any live GPU, no size is known to be too large, and the age has all tasks.
    """
    unfit = [one for one in waiting if not any(worker.could_fit(one.demand) for worker in fleet)]
    never = unfit if any(worker.devices for worker in fleet) else []
    age = max([stats.oldest_pending_age, *(one.age for one in waiting if one not in never)])
    roomy = sum(one.tasks for one in waiting if gpu_reason(one.demand, fleet) == NOT_YET)
    unfit_count = sum(one.tasks for one in unfit)
    return attrs.evolve(stats, unfit_count=unfit_count, gpu_room_count=roomy, oldest_pending_age=age)
