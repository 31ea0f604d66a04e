"""The history of a queue in numbers, which workers count: by the minute, in coarser steps, and for all time."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

import attrs

from maas_backoff.domain.demand import MIB_PER_GIB
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.task import TaskStatus

BUCKETS = 24
"""Buckets of durations: bucket n has those from 2**(n-1) to below 2**n ms; the last one has all longer ones."""

BOUNDS: tuple[float, ...] = tuple(2.0**n / 1000 for n in range(BUCKETS - 1))
"""Upper ends of all buckets but the last, in seconds."""

_MEMORY_BUCKETS = 84
"""Buckets of GPU memory: bucket n has amounts up to 2**(n/4) MiB, each is 19 % wide; the last one has all above."""

_MEMORY_BOUNDS: tuple[float, ...] = tuple(2 ** (n / 4) / MIB_PER_GIB for n in range(_MEMORY_BUCKETS - 1))

SUMS_EACH = 1.0
"""Seconds between two sendings of the sums of a worker's histograms."""
_SUM = "sum"  # after the letter of a histogram
_SIZE_BUCKETS = 12
"""Buckets of numbers of tasks: bucket n has those up to 2**n; the last one has all above."""

_NAME = 64
"""Characters of an error's type that are kept."""


class Tally:
    """Durations and amounts of GPU memory since the worker's last batch request."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = dict.fromkeys("wrsgnbo", 0.0)  # microseconds, MiB, or tasks
        self._sent_at: dict[str, float] = {}  # when each sum was sent last
        self.waits: defaultdict[int, int] = defaultdict(int)
        """Claims, by the time since their tasks were due."""
        self.runs: defaultdict[int, int] = defaultdict(int)
        """Calls of the handler, by duration."""
        self.settles: defaultdict[int, int] = defaultdict(int)
        """Settlements, by the duration of the call that sent them."""
        self.peaks: defaultdict[int, int] = defaultdict(int)
        """Attempts with a GPU, by the most memory seen in use by their process."""
        self.needs: defaultdict[int, int] = defaultdict(int)
        """The same attempts, by the memory demand of their tasks."""
        self.batch_sizes: defaultdict[int, int] = defaultdict(int)
        """Claimed batches, by the number of their tasks."""
        self.batch_waits: defaultdict[int, int] = defaultdict(int)
        """The same batches, by the time since their oldest task was due."""

    def count_wait(self, milliseconds: float) -> None:
        """Count a claim, by the time since its task was due."""
        self.waits[int(milliseconds).bit_length()] += 1
        self._sums["w"] += milliseconds * 1000

    def count_run(self, seconds: float) -> None:
        """Count a call of the handler, by its duration."""
        self.runs[_bucket(seconds)] += 1
        self._sums["r"] += seconds * 1_000_000

    def count_settles(self, seconds: float, number: int) -> None:
        """Count the settlements of one call, by the duration of the call."""
        self.settles[_bucket(seconds)] += number
        self._sums["s"] += seconds * 1_000_000 * number

    def count_gpu_memory(self, peak: int, need: int) -> None:
        """Count an attempt on a GPU, by MiB: the most that its process used, and its task's demand."""
        self.peaks[_memory_bucket(peak)] += 1
        self.needs[_memory_bucket(need)] += 1
        self._sums["g"] += peak
        self._sums["n"] += need

    def count_batch(self, size: int, milliseconds: float) -> None:
        """Count a claimed batch, by its size and the time since its oldest task was due."""
        self.batch_sizes[(size - 1).bit_length()] += 1
        self.batch_waits[int(milliseconds).bit_length()] += 1
        self._sums["b"] += size
        self._sums["o"] += round(milliseconds * 1000)

    def _all(self) -> Mapping[str, defaultdict[int, int]]:
        counts = {"w": self.waits, "r": self.runs, "s": self.settles, "g": self.peaks, "n": self.needs}
        return {**counts, "b": self.batch_sizes, "o": self.batch_waits}

    def take(self, now: float, *, is_last: bool = False) -> str:
        """Return the counts as lines "name number", and reset them. `now` is a time in seconds.

        Each sum is among them once a second, because each line costs the server time, or if this call `is_last`.
        """
        lines: list[str] = []
        for letter, counts in self._all().items():
            last = _LAST_BUCKETS[letter]
            lines += [f"{letter}{min(bucket, last)} {number}" for bucket, number in counts.items()]
            counts.clear()
        for letter, number in self._sums.items():
            if number >= 0.5 and (is_last or now - self._sent_at.get(letter, -math.inf) >= SUMS_EACH):
                lines.append(f"{letter}{_SUM} {number:.0f}")
                self._sums[letter], self._sent_at[letter] = 0, now
        return "\n".join(lines)

    def put_back(self, taken: str) -> None:
        """Add the counts that `take` returned again, because the server has not counted them."""
        counts = self._all()
        for line in taken.splitlines():
            name, _, number = line.partition(" ")
            if name[1:] == _SUM:
                self._sums[name[0]] += int(number)
                continue
            counts[name[0]][int(name[1:])] += int(number)


def _bucket(seconds: float) -> int:
    return int(seconds * 1000).bit_length()


def _memory_bucket(mib: int) -> int:
    return math.ceil(4 * math.log2(max(1, mib)))


_LAST_BUCKETS = dict.fromkeys("wrso", BUCKETS - 1) | dict.fromkeys("gn", _MEMORY_BUCKETS - 1) | {"b": _SIZE_BUCKETS - 1}


def tallied(settlement: Settlement, before: Counts) -> str:
    """Return the names that an accepted settlement counts under. The end of a task is counted elsewhere.

    The first name is that of a comeback, or empty.
    """
    name = ""
    if settlement.status is TaskStatus.PENDING:
        name = _comeback(settlement.counts, before)
    elif settlement.counts is not None and settlement.counts.lost > before.lost:
        name = "lost"
    elif settlement.expired:
        name = "expired"
    if settlement.error is None:
        return name
    return f"{name} e:{''.join(settlement.error.type.split())[:_NAME] or 'error'}"


def _comeback(after: Counts | None, before: Counts) -> str:
    if after is None:
        return "released"
    for name in ("retry", "lost", "snooze", "oom", "fault"):
        if getattr(after, name) > getattr(before, name):
            return _COMEBACKS[name]
    return "released"


_COMEBACKS = {"retry": "retried", "lost": "lost", "snooze": "snoozed", "oom": "out_of_memory", "fault": "gpu_fault"}


@attrs.frozen
class _Histogram:
    """The `counts` of measurements by bucket; `bounds` are the upper ends of all buckets but the last.

    `total` is the sum of the measurements. It may lack the last second of each worker, and those of older releases.
    """

    counts: tuple[int, ...] = ()
    total: float = 0
    bounds: ClassVar[tuple[float, ...]] = ()

    @property
    def count(self) -> int:
        """The number of measurements."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Return the value that a `share` of the measurements does not exceed; None if there are none.

        The error is at most the width of a bucket. The value is interpolated linearly within the bucket, as by
        Prometheus' histogram_quantile.
        """
        rank, below = share * self.count, 0
        if not self.count:
            return None
        for bucket, number in enumerate(self.counts):
            if number and below + number >= rank:
                low = self.bounds[bucket - 1] if bucket else 0.0
                high = self.bounds[bucket] if bucket < len(self.bounds) else low
                return low + (high - low) * (rank - below) / number
            below += number
        return self.bounds[-1]

    def __add__(self, other: Self) -> Self:
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return type(self)(counts, self.total + other.total)


@attrs.frozen
class Durations(_Histogram):
    """A histogram of durations in seconds: each bucket ends at twice the end of the one before."""

    counts: tuple[int, ...] = (0,) * BUCKETS
    total: float = 0
    bounds: ClassVar[tuple[float, ...]] = BOUNDS


@attrs.frozen
class MemorySizes(_Histogram):
    """A histogram of GPU memory in GiB: a bucket is at most 19 % wide."""

    counts: tuple[int, ...] = (0,) * _MEMORY_BUCKETS
    total: float = 0
    bounds: ClassVar[tuple[float, ...]] = _MEMORY_BOUNDS


@attrs.frozen
class BatchSizes(_Histogram):
    """A histogram of the tasks of batches: each bucket ends at twice the end of the one before, the first one at 1."""

    counts: tuple[int, ...] = (0,) * _SIZE_BUCKETS
    total: float = 0
    bounds: ClassVar[tuple[float, ...]] = tuple(2.0**n for n in range(_SIZE_BUCKETS - 1))


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
        measured: dict[str, Any] = {
            name: made(_counts(letter, numbers), _sum(letter, numbers) / unit)
            for name, (letter, made, unit) in _MEASURED.items()
        }
        return cls(start, errors=errors, **measured, **plain)


_PLAIN = (
    *("completed", "failed", "cancelled"),
    *("retried", "lost", "snoozed", "out_of_memory", "gpu_fault", "released", "expired"),
)
_MEASURED: Mapping[str, tuple[str, type[_Histogram], int]] = {
    "waits": ("w", Durations, 1_000_000),
    "runs": ("r", Durations, 1_000_000),
    "settles": ("s", Durations, 1_000_000),
    "gpu_peaks": ("g", MemorySizes, MIB_PER_GIB),
    "gpu_needs": ("n", MemorySizes, MIB_PER_GIB),
    "batch_sizes": ("b", BatchSizes, 1),
    "batch_waits": ("o", Durations, 1_000_000),
}
"""The letter of each histogram, its class, and the stored numbers that make one of its sum."""


def _counts(letter: str, numbers: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(numbers.get(f"{letter}{bucket}", 0) for bucket in range(_LAST_BUCKETS[letter] + 1))


def _sum(letter: str, numbers: Mapping[str, int]) -> int:
    return numbers.get(letter + _SUM, 0)


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
            name: sum((getattr(one, name) for one in self.steps), made()) for name, (_, made, _) in _MEASURED.items()
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
