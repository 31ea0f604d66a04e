"""What the page is told, as JSON-able values: pure, and small."""

from collections.abc import Sequence
from typing import Any

import attrs

from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.history import Activity, Durations, History
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.worker import Worker

View = dict[str, Any]

WORST = 20
"""Types of errors, the most frequent first."""


def queue_view(stats: QueueStats, reason: str) -> View:
    """Return the counts by state, the part of pending that is due, and why nothing runs."""
    waiting = stats.pending_count - stats.scheduled_count - stats.gpu_count
    return {
        "reason": reason,
        "paused": stats.paused,
        "oldest": round(stats.oldest_pending_age, 1),
        "unfit": stats.unfit_count,
        "counts": {
            "due": waiting,
            "gpu": stats.gpu_count,
            "scheduled": stats.scheduled_count,
            "processing": stats.processing_count,
            "completed": stats.completed_count,
            "failed": stats.failed_count,
            "cancelled": stats.cancelled_count,
        },
    }


def worker_view(worker: Worker) -> View:
    """Return a worker; its devices are shown by themselves."""
    return attrs.asdict(worker, filter=lambda field, _: field.name != "devices") | {"gpus": len(worker.devices)}


def gpu_view(gpu: GpuStatus) -> View:
    """Return a device; how old its reading is would make it another one each time."""
    view = gpu.to_dict()
    view["stale"] = view.pop("age") > STALE
    return view


STALE = 10.0
"""Seconds after which a reading is called old."""


def history_view(history: History) -> View:
    """Return the minutes, the oldest first, and all of them together."""
    recent = history.recent
    worst = sorted(recent.errors.items(), key=lambda one: -one[1])[:WORST]
    return {
        "minutes": [_activity_view(minute) for minute in history.minutes],
        "recent": {**_activity_view(recent), "errors": worst},
    }


def _activity_view(activity: Activity) -> View:
    numbers = ("completed", "failed", "cancelled", "retried", "lost", "snoozed", "out_of_memory", "gpu_fault")
    return {
        "start": activity.start and activity.start.timestamp(),
        **{name: getattr(activity, name) for name in numbers},
        "wait": _quantiles(activity.waits),
        "run": _quantiles(activity.runs),
    }


def _quantiles(durations: Durations) -> Sequence[float | None]:
    return [durations.quantile(share) for share in (0.5, 0.95)]


def task_view(task: TaskEntity, *, payloads: bool) -> View:
    """Return a task; params and result only with `payloads`."""
    view = task.to_dict()
    if not payloads:
        del view["task_params"], view["result"]
    return view
