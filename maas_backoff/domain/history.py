"""What has happened in a queue, in numbers: tallied by workers, kept by the minute and for all time."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Self

import attrs

from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.task import TaskStatus

BUCKETS = 24
"""Of durations: bucket n holds those below 2**n ms, and not below 2**(n-1); the last one also what is longer."""

BOUNDS: tuple[float, ...] = tuple(2.0**n / 1000 for n in range(BUCKETS - 1))
"""Upper ends of all buckets but the last, in seconds."""

_NAME = 64
"""Characters of an error's type that are kept."""


class Tally:
    """How long things took since a worker last told the server.

    Durations are counted where they are known, for each task: `tally.runs[int(milliseconds).bit_length()] += 1`.
    """

    def __init__(self) -> None:
        self.waits: defaultdict[int, int] = defaultdict(int)
        """Claims, by how long their tasks had been due."""
        self.runs: defaultdict[int, int] = defaultdict(int)
        """Calls of the handler, by how long they took."""
        self.settles: defaultdict[int, int] = defaultdict(int)
        """Settlements, by how long the call took that settled them."""

    def take(self) -> str:
        """Return all that was counted as lines "name number", and begin anew."""
        lines: list[str] = []
        for letter, counts in (("w", self.waits), ("r", self.runs), ("s", self.settles)):
            lines += [f"{letter}{min(bucket, BUCKETS - 1)} {number}" for bucket, number in counts.items()]
            counts.clear()
        return "\n".join(lines)

    def put_back(self, taken: str) -> None:
        """Count again what `take` has returned, as the server has not counted it."""
        counts = {"w": self.waits, "r": self.runs, "s": self.settles}
        for line in taken.splitlines():
            name, _, number = line.partition(" ")
            counts[name[0]][int(name[1:])] += int(number)


def tallied(settlement: Settlement, before: Counts) -> str:
    """Return what came of an attempt, but for the end of its task: names, which the server counts if it accepts that.

    The first is that of a comeback, or empty.
    """
    name = ""
    if settlement.status is TaskStatus.PENDING:
        name = _comeback(settlement.counts, before)
    elif settlement.counts is not None and settlement.counts.lost > before.lost:
        name = "lost"
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
class Durations:
    """How often something took how long: `counts` by bucket, whose upper ends are `BOUNDS` seconds."""

    counts: tuple[int, ...] = (0,) * BUCKETS

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Return the seconds that a share of them took at most, within a factor of two; None if there were none.

        Interpolated linearly within the bucket, as Prometheus' histogram_quantile does.
        """
        rank, below = share * self.count, 0
        if not self.count:
            return None
        for bucket, number in enumerate(self.counts):
            if number and below + number >= rank:
                low = BOUNDS[bucket - 1] if bucket else 0.0
                high = BOUNDS[bucket] if bucket < len(BOUNDS) else low
                return low + (high - low) * (rank - below) / number
            below += number
        return BOUNDS[-1]

    def __add__(self, other: Self) -> "Durations":
        return Durations(tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)))


@attrs.frozen
class Activity:
    """What happened in a minute, from `start` on, or, without a start, in all time.

    `completed`, `failed` and `cancelled` are ends of tasks; `retried`, `lost`, `snoozed`, `out_of_memory`, `gpu_fault`
    and `released` (handed back, nothing used) are attempts whose task came back. `errors` counts failed attempts by the
    type of their error: 400 names are kept, those seen last; the rest are "other". `waits` are from due to claimed,
    `runs` of the handler, `settles` of the calls that settled attempts.
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
    errors: Mapping[str, int] = attrs.field(factory=dict[str, int])
    waits: Durations = Durations()
    runs: Durations = Durations()
    settles: Durations = Durations()

    @classmethod
    def of(cls, numbers: Mapping[str, int], start: datetime | None = None) -> Self:
        """Return what stored names and numbers say; those of a newer release are ignored."""
        plain = {name: numbers[name] for name in _PLAIN if name in numbers}
        errors = {name[2:]: number for name, number in numbers.items() if name.startswith("e:")}
        waits, runs, settles = (_durations(letter, numbers) for letter in "wrs")
        return cls(start=start, errors=errors, waits=waits, runs=runs, settles=settles, **plain)


_PLAIN = (
    *("completed", "failed", "cancelled"),
    *("retried", "lost", "snoozed", "out_of_memory", "gpu_fault", "released"),
)


def _durations(letter: str, numbers: Mapping[str, int]) -> Durations:
    return Durations(tuple(numbers.get(f"{letter}{bucket}", 0) for bucket in range(BUCKETS)))


@attrs.frozen
class History:
    """What has happened in a queue: in `total`, and in each of the last `minutes`, the oldest first."""

    total: Activity
    minutes: Sequence[Activity]

    @property
    def recent(self) -> Activity:
        """All minutes together."""
        numbers: dict[str, int] = {name: sum(getattr(one, name) for one in self.minutes) for name in _PLAIN}
        errors: dict[str, int] = {}
        for one in self.minutes:
            for kind, number in one.errors.items():
                errors[kind] = errors.get(kind, 0) + number
        waits, runs, settles = (
            sum((getattr(one, name) for one in self.minutes), Durations()) for name in ("waits", "runs", "settles")
        )
        return Activity(None, errors=errors, waits=waits, runs=runs, settles=settles, **numbers)
