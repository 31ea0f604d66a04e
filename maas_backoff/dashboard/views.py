"""The values of the page, as JSON values. Pure functions."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import attrs

from maas_backoff.dashboard.selecting import Shown
from maas_backoff.domain.breakdown import Breakdown, SettledAttempts, added
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.histogram import Durations
from maas_backoff.domain.history import Activity, History, gpu_memory_hint
from maas_backoff.domain.limit import rate_text
from maas_backoff.domain.retries_ahead import RetryAhead
from maas_backoff.domain.shares import LimitStats, TenantStats
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.stream import LogLine
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.worker import Worker
from maas_backoff.store.server_queues import QueueSummary

View = dict[str, Any]

WORST = 20
"""The most types of errors in a view, the most frequent first."""

STALE = 10.0
"""Seconds after which a GPU sample is shown as old."""

SHOWN = 50
"""The most workers, GPUs, and tasks of a GPU in a view."""

SHOWN_SHARES = 20
"""The most tenants, and limits, in a view."""

SHOWN_LINES = 50
"""The most lines of a log in the view of a task, the last ones."""

LONGEST = 300
"""The most characters of a text in a list; the view of one task has all of them."""


def queue_view(stats: QueueStats, reason: str) -> View:
    """Return the counts by state, with pending tasks split by their reason to wait, and why nothing runs."""
    waiting = stats.pending_count - stats.scheduled_count - stats.gpu_count
    return {
        "reason": reason,
        "paused": stats.paused,
        "paused_since": _iso(stats.paused_since),
        "paused_by": stats.paused_by,
        "paused_tenants": len(stats.paused_tenants),
        "oldest": round(stats.oldest_pending_age, 1),
        "unfit": stats.unfit_count,
        "gpu_room": stats.gpu_room_count,
        "kinds": [
            {
                "name": kind,
                "due": stats.due_of(kind),
                "paused_since": _iso(stats.paused_kinds.get(kind)),
                "paused_by": stats.kinds_paused_by.get(kind, ""),
            }
            for kind in sorted(stats.kinds)
        ],
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


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat()


def shares_view(tenants: Sequence[TenantStats], limits: Sequence[LimitStats]) -> View:
    """Return the number of tenants and of limits, and the first of each: those with most waiting tasks."""
    busy = sorted(limits, key=lambda one: (-one.waiting_tasks, not one.shut, one.name))
    return {
        "tenants": {
            "count": len(tenants),
            "first": [attrs.asdict(one) | {"paused_since": _iso(one.paused_since)} for one in tenants[:SHOWN_SHARES]],
        },
        "limits": {"count": len(limits), "first": list(map(_limit_view, busy[:SHOWN_SHARES]))},
    }


def _limit_view(one: LimitStats) -> View:
    view = {name: getattr(one, name) for name in ("name", "in_use", "most", "shut", "waiting_tasks")}
    limit = one.limit
    rates = [] if limit is None else [rate_text(rate) for rate in (limit.rate, limit.tokens) if rate is not None]
    return {**view, "is_class": one.is_class, "rates": rates}


def line_view(line: LogLine) -> View:
    """Return a line of a task's log."""
    return {"at": line.at.isoformat(), "attempt": line.attempt, "text": line.text}


def workers_view(fleet: Sequence[Worker]) -> View:
    """Return the number of workers, and the first of them, those with trouble first, without their GPUs."""
    shown = sorted(fleet, key=lambda worker: worker.ready)[:SHOWN]
    return {"count": len(fleet), "first": list(map(_worker_view, shown))}


def _worker_view(worker: Worker) -> View:
    view = attrs.asdict(worker, filter=lambda field, _: field.name != "devices")
    return {**view, "host": worker.host[:LONGEST], "gpus": len(worker.devices)}


def gpus_view(gpus: Sequence[GpuStatus]) -> View:
    """Return the number of GPUs, and the first of them, those that take no tasks first, with some of their tasks."""
    shown = sorted(gpus, key=lambda gpu: gpu.healthy)[:SHOWN]
    return {"count": len(gpus), "first": list(map(_gpu_view, shown))}


def _gpu_view(gpu: GpuStatus) -> View:
    view = attrs.evolve(gpu, tasks=gpu.tasks[:SHOWN]).to_dict()
    del view["age"], view["quarantine_age"]  # ages always change, and the feed sends what has changed
    return {**view, "stale": gpu.age > STALE, "healthy": gpu.healthy, "task_count": len(gpu.tasks)}


def history_view(history: History) -> View:
    """Return the minutes, the oldest first, and their sum."""
    recent = history.recent
    worst = sorted(recent.errors.items(), key=lambda one: -one[1])[:WORST]
    return {
        "minutes": [_activity_view(minute) for minute in history.minutes],
        "recent": {**_activity_view(recent), "errors": worst, "gpu_memory": _gpu_memory_view(recent)},
    }


def _gpu_memory_view(activity: Activity) -> View | None:
    """Return the GPU memory that attempts used and asked for, in GiB, and a hint; None if NVML has shown none."""
    if not activity.gpu_peaks.count:
        return None
    used, asked = (
        [sizes.quantile(share) for share in (0.5, 0.99)] for sizes in (activity.gpu_peaks, activity.gpu_needs)
    )
    return {"count": activity.gpu_peaks.count, "used": used, "asked": asked, "hint": gpu_memory_hint(activity)}


def _activity_view(activity: Activity) -> View:
    numbers = ("completed", "failed", "cancelled", "retried", "lost", "snoozed", "out_of_memory", "gpu_fault")
    return {
        "start": activity.start and activity.start.timestamp(),
        **{name: getattr(activity, name) for name in numbers},
        "wait": _quantiles(activity.waits),
        "run": _quantiles(activity.runs),
    }


def breakdown_view(found: Breakdown, name: str) -> View:
    """Return the steps of a kind or a tenant, the oldest first, and their sum, in the form of `history_view`."""
    steps = found.names[name]
    return {
        "name": f"{found.by} {name}",
        "minutes": list(map(_settled_view, steps)),
        "recent": _settled_view(added(steps)),
    }


def _settled_view(one: SettledAttempts) -> View:
    numbers = {name: getattr(one, name) for name in ("completed", "failed", "retried")}
    return {"start": one.start and one.start.timestamp(), **numbers, "run": [one.mean_run_time]}


def _quantiles(durations: Durations) -> Sequence[float | None]:
    return [durations.quantile(share) for share in (0.5, 0.95)]


def retries_view(retries: Sequence[RetryAhead]) -> Sequence[View]:
    """Return the retries that a task has left."""
    return [attrs.asdict(one) | {"earliest": _iso(one.earliest), "latest": _iso(one.latest)} for one in retries]


def row_view(task: TaskEntity, shown: Shown) -> View:
    """Return a task for a list, with short texts."""
    view = task_view(task, Shown(errors=shown.errors))
    for name in ("progress_message", "waiting_for"):
        view[name] = view[name] and view[name][:LONGEST]
    if view["error"]:
        view["error"] = {name: str(view["error"][name])[:LONGEST] for name in ("type", "message")}
    return view


def task_view(task: TaskEntity, shown: Shown) -> View:
    """Return a task, with params, result, error messages and tracebacks only if they are shown."""
    view = task.to_dict()
    if not shown.payloads:
        del view["task_params"], view["result"]
    if not shown.errors:
        view["error"] = view["error"] and {**view["error"], "message": ""}
        view["attempts"] = [
            {**one, "error": {**one["error"], "message": ""}, "traceback": ""} for one in view["attempts"]
        ]
    return view


def groups_view(tasks: Sequence[TaskEntity], shown: Shown) -> View:
    """Return failed tasks in groups with the same error, those that have most tasks first. `text` selects a group."""
    found: dict[tuple[str, str], View] = {}
    for task in tasks:
        if task.error is None or task.finished_at is None:
            continue
        message = task.error.message[:LONGEST] if shown.errors else ""
        group = found.setdefault(
            (task.error.type, message),
            {
                "type": task.error.type,
                "message": message,
                "text": f"{task.error.type}: {message}" if message else "",
                "count": 0,
                "last": task.finished_at,
            },
        )
        group["count"] += 1
        group["last"] = max(group["last"], task.finished_at)
    worst = sorted(found.values(), key=lambda group: -group["count"])[:WORST]
    groups = [{**group, "last": group["last"].isoformat()} for group in worst]
    return {"looked": len(tasks), "groups": groups}


def summary_view(queue: QueueSummary) -> View:
    """Return a queue for the list of all queues."""
    stats = queue.stats
    return {
        "name": queue.name,
        "due": stats.pending_count - stats.scheduled_count,
        "scheduled": stats.scheduled_count,
        "processing": stats.processing_count,
        "completed": stats.completed_count,
        "failed": stats.failed_count,
        "cancelled": stats.cancelled_count,
        "oldest": round(stats.oldest_pending_age, 1),
        "workers": queue.workers,
        "paused": stats.paused,
        "paused_by": stats.paused_by,
    }
