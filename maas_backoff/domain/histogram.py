"""Histograms of durations, GPU memory and sizes of batches, in buckets that workers count in."""

import math
from collections.abc import Mapping
from typing import ClassVar, Self

import attrs

from maas_backoff.domain.demand import MIB_PER_GIB

BUCKETS = 24
"""Buckets of durations: bucket n has those from 2**(n-1) to below 2**n ms; the last one has all longer ones."""

BOUNDS: tuple[float, ...] = tuple(2.0**n / 1000 for n in range(BUCKETS - 1))
"""Upper ends of all buckets but the last, in seconds."""

_MEMORY_BUCKETS = 84
"""Buckets of GPU memory: bucket n has amounts up to 2**(n/4) MiB, each is 19 % wide; the last one has all above."""

_MEMORY_BOUNDS: tuple[float, ...] = tuple(2 ** (n / 4) / MIB_PER_GIB for n in range(_MEMORY_BUCKETS - 1))

_SIZE_BUCKETS = 12
"""Buckets of numbers of tasks: bucket n has those up to 2**n; the last one has all above."""

SUM = "sum"
"""The name of the sum of a histogram, after its letter."""


@attrs.frozen
class Histogram:
    """The `counts` of measurements by bucket; `bounds` are the upper ends of all buckets but the last.

    `total` is the sum of the measurements. It may lack the last second of each worker, and those of older releases.
    """

    counts: tuple[int, ...] = ()
    total: float = 0
    bounds: ClassVar[tuple[float, ...]] = ()
    lowest: ClassVar[float] = 0
    """The lower end of the first bucket."""

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
                low = self.bounds[bucket - 1] if bucket else self.lowest
                high = self.bounds[bucket] if bucket < len(self.bounds) else low
                return low + (high - low) * (rank - below) / number
            below += number
        return self.bounds[-1]

    def __add__(self, other: Self) -> Self:
        if not any(other.counts) and not other.total:  # as in most minutes: this is ten times as fast
            return self
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return type(self)(counts, self.total + other.total)


@attrs.frozen
class Durations(Histogram):
    """A histogram of durations in seconds: each bucket ends at twice the end of the one before."""

    counts: tuple[int, ...] = (0,) * BUCKETS
    total: float = 0
    bounds: ClassVar[tuple[float, ...]] = BOUNDS


@attrs.frozen
class MemorySizes(Histogram):
    """A histogram of GPU memory in GiB: a bucket is at most 19 % wide."""

    counts: tuple[int, ...] = (0,) * _MEMORY_BUCKETS
    total: float = 0
    bounds: ClassVar[tuple[float, ...]] = _MEMORY_BOUNDS


@attrs.frozen
class BatchSizes(Histogram):
    """A histogram of the tasks of batches: each bucket ends at twice the end of the one before, the first one at 1."""

    counts: tuple[int, ...] = (0,) * _SIZE_BUCKETS
    total: float = 0
    bounds: ClassVar[tuple[float, ...]] = tuple(2.0**n for n in range(_SIZE_BUCKETS - 1))
    lowest: ClassVar[float] = 1


def bucket_of_duration(milliseconds: float) -> int:
    """Return the bucket of a duration; it may be beyond the last one."""
    return int(milliseconds).bit_length()


def bucket_of_memory(mib: int) -> int:
    """Return the bucket of an amount of GPU memory; it may be beyond the last one."""
    return math.ceil(4 * math.log2(max(1, mib)))


def bucket_of_size(tasks: int) -> int:
    """Return the bucket of a number of tasks; it may be beyond the last one."""
    return (tasks - 1).bit_length()


MEASURED: Mapping[str, tuple[str, type[Histogram], int]] = {
    "waits": ("w", Durations, 1_000_000),
    "runs": ("r", Durations, 1_000_000),
    "settles": ("s", Durations, 1_000_000),
    "gpu_peaks": ("g", MemorySizes, MIB_PER_GIB),
    "gpu_needs": ("n", MemorySizes, MIB_PER_GIB),
    "batch_sizes": ("b", BatchSizes, 1),
    "batch_waits": ("o", Durations, 1_000_000),
}
"""The letter of each histogram, its class, and the stored numbers that make one of its sum."""


def histogram_of(name: str, numbers: Mapping[str, int]) -> Histogram:
    """Return a histogram of MEASURED, of stored names and numbers."""
    letter, made, unit = MEASURED[name]
    counts = tuple(numbers.get(f"{letter}{bucket}", 0) for bucket in range(len(made.bounds) + 1))
    return made(counts, numbers.get(letter + SUM, 0) / unit)
