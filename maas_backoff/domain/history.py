"""The history of a queue in numbers, which workers count: by the minute, in coarser steps, and for all time."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Self

import attrs

from maas_backoff.domain.histogram import MEASURED, BatchSizes, Durations, MemorySizes, histogram_of


@attrs.frozen
class Activity:
    """The events of the step from `start` on: a minute, ten minutes or an hour. Without a start, of all time.

    `completed`, `failed` and `cancelled` are ends of tasks; `retried`, `lost`, `snoozed`, `out_of_memory`, `gpu_fault`
    and `released` (given back, nothing used) are attempts whose task came back. `expired` is the part of `cancelled`
    that a deadline has ended. `errors` counts failed attempts by the type of their error. The 400 names seen last are
    kept; all others are "other". `waits` are from due to claimed, `runs` of the handler, `settles` of the calls that
    settled attempts. `gpu_peaks` are the most memory that NVML has shown for each attempt in a child process with a
    GPU. `gpu_needs` are the demands of the same attempts. `batch_sizes` are the tasks of claimed batches, `batch_waits`
    are from the time when the oldest task of a batch was due to the claim of the batch.
    """

    start: datetime | None = None
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    lost: int = 0
    snoozed: int = 0
    out_of_memory: int = 0
    gpu_fault: int = 0
    released: int = 0
    expired: int = 0
    errors: Mapping[str, int] = attrs.field(factory=dict[str, int])
    waits: Durations = Durations()
    runs: Durations = Durations()
    settles: Durations = Durations()
    gpu_peaks: MemorySizes = MemorySizes()
    gpu_needs: MemorySizes = MemorySizes()
    batch_sizes: BatchSizes = BatchSizes()
    batch_waits: Durations = Durations()

    @classmethod
    def of(cls, numbers: Mapping[str, int], start: datetime | None = None) -> Self:
        """Return the activity in stored names and numbers; names of a newer release are ignored."""
        if not numbers:  # most minutes of most queues
            return cls(start)
        plain: dict[str, Any] = {name: numbers[name] for name in _PLAIN if name in numbers}
        errors = {name[2:]: number for name, number in numbers.items() if name.startswith("e:")}
        measured: dict[str, Any] = {name: histogram_of(name, numbers) for name in MEASURED}
        return cls(start, errors=errors, **measured, **plain)


_PLAIN = (
    *("completed", "failed", "cancelled"),
    *("retried", "lost", "snoozed", "out_of_memory", "gpu_fault", "released", "expired"),
)


def step_numbers(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """Return the numbers of a step: those of all time at its end, less those at its start.

    An error's name may have been dropped in between, and its number added to "other": that number is older.
    """
    found = {name: number - before.get(name, 0) for name, number in after.items() if number > before.get(name, 0)}
    dropped = sum(number for name, number in before.items() if name.startswith("e:") and name not in after)
    if dropped and _OTHER in found:
        found[_OTHER] = max(0, found[_OTHER] - dropped)
    return {name: number for name, number in found.items() if number}


_OTHER = "e:other"


@attrs.frozen
class History:
    """The history of a queue: in `total`, and in each of the last `steps`, the oldest first.

    `step` is the length of a step: a minute, ten minutes or an hour.
    """

    total: Activity
    steps: Sequence[Activity]
    step: timedelta = timedelta(minutes=1)

    @property
    def minutes(self) -> Sequence[Activity]:
        """The steps, if they are minutes; else empty."""
        return self.steps if self.step == timedelta(minutes=1) else ()

    @property
    def recent(self) -> Activity:
        """All steps together."""
        numbers: dict[str, Any] = {name: sum(getattr(one, name) for one in self.steps) for name in _PLAIN}
        errors: dict[str, int] = {}
        for one in self.steps:
            for kind, number in one.errors.items():
                errors[kind] = errors.get(kind, 0) + number
        measured: dict[str, Any] = {
            name: sum((getattr(one, name) for one in self.steps), made()) for name, (_, made, _) in MEASURED.items()
        }
        return Activity(None, errors=errors, **measured, **numbers)


ENOUGH = 20
"""Least number of attempts on a GPU for a hint."""


def gpu_memory_hint(activity: Activity) -> str:
    """Return a hint if tasks use much less GPU memory than their demand, or more; else ""."""
    half, most = (activity.gpu_needs.quantile(share) for share in (0.5, 0.99))
    peak = activity.gpu_peaks.quantile(0.99)
    if half is None or most is None or peak is None or activity.gpu_peaks.count < ENOUGH:
        return ""
    used = f"99 % of the attempts used at most {peak:.3g} GiB of GPU memory"
    if peak > 1.25 * most:
        return f"{used}, and asked for {most:.3g} GiB: raise min_gpu_memory_gb, or others run out of memory"
    if peak < 0.6 * half:
        return f"{used}, and half of them asked for {half:.3g} GiB or more: min_gpu_memory_gb may be lower"
    return ""
