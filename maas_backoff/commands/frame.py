"""The view of `maas-backoff top`: the numbers of a queue at one moment, as lines."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Any, Self

import attrs

from maas_backoff.commands.counts import activity_view, most_frequent, paused_lines
from maas_backoff.commands.fleet import Tasks, running_tasks, seconds_of, state_of, worker_view
from maas_backoff.commands.text import plain_table, span
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.history import Activity
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.worker import Worker
from maas_backoff.language import sentence, t
from maas_backoff.language.width import cut
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler

MINUTES = 5
"""The minutes of the rates, the present one included."""
MOST = 5
"""Tasks of a worker, and errors, that are shown."""


@attrs.frozen
class Snapshot:
    """The numbers of a queue at one moment."""

    queue: str
    at: datetime
    stats: QueueStats
    reason: str
    recent: Activity
    seconds: float
    """The time that `recent` is about."""
    workers: Sequence[Worker]
    tasks: Tasks
    gpus: Sequence[GpuStatus]

    @classmethod
    async def read(cls, scheduler: TaskBackoffScheduler) -> Self:
        """Read a queue. Raises StorageError."""
        at = datetime.now(UTC)
        history = await scheduler.get_history(MINUTES)
        start = history.steps[-1].start
        # The present minute has just begun, or is nearly over.
        seconds = 60.0 * (MINUTES - 1) + (0 if start is None else min(60.0, max(0.0, (at - start).total_seconds())))
        return cls(
            scheduler.config.task.biz_prefix,
            at,
            await scheduler.get_queue_stats(),
            await scheduler.explain(),
            history.recent,
            seconds,
            await scheduler.workers(),
            await running_tasks(scheduler),
            await scheduler.gpus(),
        )

    def view(self) -> Mapping[str, Any]:
        """Return the numbers as values for JSON."""
        return {
            "queue": self.queue,
            "at": self.at,
            "stats": attrs.asdict(self.stats),
            "reason": self.reason,
            "recent": {"seconds": round(self.seconds, 3), **activity_view(self.recent)},
            "workers": [worker_view(one, self.tasks.get(one.name, ()), self.at) for one in self.workers],
            "gpus": [gpu.to_dict() for gpu in self.gpus],
        }


def frame(now: Snapshot, width: int, height: int | None, trouble: str = "") -> list[str]:
    """Return the lines of a frame, cut to the width and the height of a terminal; None: any height."""
    moment = f"{now.at:%Y-%m-%d %H:%M:%S}Z"
    lines = [t("maas-backoff top   queue {queue}   {moment}   q ends", queue=now.queue, moment=moment)]
    lines += [f"! {trouble}"] if trouble else []
    for part in (_states(now), _rates(now), _workers(now), _gpus(now), _errors(now)):
        lines += ["", *part] if part else []
    shown = [cut(printable(line), width) for line in lines]
    if height is None or len(shown) <= height:
        return shown
    more = t("… {n} more lines: enlarge the terminal", n=len(shown) - height + 1)
    return [*shown[: height - 1], cut(more, width)]


def _states(now: Snapshot) -> list[str]:
    stats = now.stats
    due = stats.pending_count - stats.scheduled_count
    counts = {"due": due, "scheduled": stats.scheduled_count, "processing": stats.processing_count}
    counts |= {"completed": stats.completed_count, "failed": stats.failed_count, "cancelled": stats.cancelled_count}
    table = _table(list(counts), [[f"{number:,}" for number in counts.values()]])
    return [*table, sentence(now.reason), *paused_lines(stats)]


def _rates(now: Snapshot) -> list[str]:
    recent, minutes = now.recent, now.seconds / 60
    names = ("completed", "failed", "retried", "lost")
    numbers: Mapping[str, int] = {name: getattr(recent, name) for name in names}
    rates = {name: f"{number / minutes:.3g}" for name, number in numbers.items()}
    text = "A minute, in the last {span}: {completed} completed, {failed} failed, {retried} retried, {lost} lost"
    lines = [t(text, span=span(now.seconds), **rates)]
    for name, durations in ((t("waited"), recent.waits), (t("ran"), recent.runs)):
        if durations.count:
            half, most, worst = (span(durations.quantile(share)) for share in (0.5, 0.95, 0.99))
            quantiles = t("{half} (p50), {most} (p95), {worst} (p99)", half=half, most=most, worst=worst)
            lines.append(t("  {name}: {quantiles}", name=name, quantiles=quantiles))
    return lines


def _workers(now: Snapshot) -> list[str]:
    if not now.workers:
        return [t("No worker is running.")]
    rows: list[Sequence[object]] = []
    for worker in now.workers:
        tasks = now.tasks.get(worker.name, [])
        longest = [f"{one.task_id} {span(seconds_of(one, now.at))}" for one in tasks[:MOST]]
        more = [t("{n} more", n=len(tasks) - MOST)] if len(tasks) > MOST else []
        heads = [(worker.name, f"{worker.running}/{worker.slots}", span(worker.lag), state_of(worker))]
        empty = ("", "", "", "")
        rows += [(*head, task) for head, task in zip_longest(heads, longest + more or [""], fillvalue=empty)]
    return _table(("worker", "slots", "loop lag", "state", "tasks, longest first"), rows)


def _gpus(now: Snapshot) -> list[str]:
    if not now.gpus:
        return []
    rows = [
        (
            one.host,
            one.index,
            f"{one.total_gb:.1f}",
            f"{one.reserved_gb:.1f}",
            f"{one.other_processes_gb:.1f}",
            f"{one.room_gb:.1f}",
            "-" if one.utilization is None else f"{one.utilization:.0f}%",
            len(one.tasks),
            sentence(one.health),
        )
        for one in sorted(now.gpus, key=lambda one: (one.health == "ok", one.host, one.index))
    ]
    return _table(("host", "gpu", "GiB", "reserved", "others", "room", "util", "tasks", "health"), rows)


def _errors(now: Snapshot) -> list[str]:
    if not now.recent.errors:
        return []
    rows = [(name, f"{number:,}") for name, number in most_frequent(now.recent, MOST)]
    return _table(("error", "attempts"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return plain_table(head, rows).splitlines()
