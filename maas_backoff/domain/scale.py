"""The number of workers that a queue needs."""

import math
from collections.abc import Sequence
from typing import Any

import attrs

from maas_backoff.domain.histogram import Durations
from maas_backoff.domain.history import Activity
from maas_backoff.domain.shares import LimitStats, TenantStats
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.worker import Worker


@attrs.frozen
class Scale:
    """The number of `workers` that would finish the waiting tasks in time, and the numbers that it follows from.

    `waiting` tasks would start at once if there were slots. `running` tasks keep their slots. `run_seconds` is the
    mean duration of a call of the handler; None: no call was measured. `tasks_per_call` is the mean number of tasks of
    a call: more than 1 where tasks run in batches. `slots` are needed, `slots_per_worker` are what a worker has.
    `live_workers` is the number of workers now.
    """

    workers: int
    live_workers: int
    slots: int
    slots_per_worker: float
    waiting: int
    running: int
    run_seconds: float | None
    tasks_per_call: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values."""
        return attrs.asdict(self)


def startable(stats: QueueStats, limits: Sequence[LimitStats] = (), tenants: Sequence[TenantStats] = ()) -> int:
    """Return how many due tasks more slots would start: no paused or unfit ones, and none that wait for a limit.

    Tasks of paused tenants count as far as they may be delayed, unfit, or of a paused kind, or wait for a limit.
    """
    if stats.paused:
        return 0
    due = stats.pending_count - stats.scheduled_count
    held = stats.unfit_count + sum(stats.due_of(kind) for kind in stats.paused_kinds)
    held += sum(one.waiting_tasks for one in limits)
    of_paused = sum(one.waiting for one in tenants if one.paused_since is not None)
    return max(0, due - max(held, of_paused - stats.scheduled_count))


def scale_of(
    stats: QueueStats,
    recent: Activity,
    fleet: Sequence[Worker],
    limits: Sequence[LimitStats] = (),
    tenants: Sequence[TenantStats] = (),
    *,
    within: float,
    slots_per_worker: float,
) -> Scale:
    """Return the workers that would finish all startable tasks within so many seconds, beside the running tasks.

    `recent` has the measured calls and batches. `slots_per_worker` counts if no worker is alive. If no call of the
    handler was measured, the number is that of the live workers, or 1.
    """
    waiting, running = startable(stats, limits, tenants), stats.processing_count
    if fleet:
        slots_per_worker = max(1.0, sum(worker.slots for worker in fleet) / len(fleet))
    mean, per_call = _mean(recent.runs), _tasks_per_call(recent)
    if mean is None:
        workers = max(1, len(fleet)) if waiting + running else 0
        slots = math.ceil(workers * slots_per_worker)
    else:
        # One slot makes within/mean calls in time. More slots than calls are of no use.
        calls = math.ceil(waiting / per_call)
        slots = math.ceil(running / per_call) + min(calls, math.ceil(waiting / per_call * mean / within))
        workers = math.ceil(slots / slots_per_worker)
    return Scale(workers, len(fleet), slots, slots_per_worker, waiting, running, mean, round(per_call, 3))


def _mean(runs: Durations) -> float | None:
    # Workers of older releases send no sums.
    return runs.total / runs.count if runs.total and runs.count else runs.quantile(0.5)


def _tasks_per_call(recent: Activity) -> float:
    """Return the mean number of tasks of a call; 1 if nothing was measured."""
    tasks, batches = recent.runs.count, recent.batch_sizes  # the runs are counted for each task of a batch
    calls = tasks - min(batches.total, tasks) + batches.count
    return max(1.0, tasks / max(1.0, calls))
