"""The counts of one worker for the history of its queue, and the names under which a settlement counts."""

import math
from collections import defaultdict
from collections.abc import Mapping

from maas_backoff.domain.histogram import MEASURED, SUM, bucket_of_duration, bucket_of_memory, bucket_of_size
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.status import TaskStatus

SUMS_EACH = 1.0
"""Seconds between two sendings of the sums of a worker's histograms."""

_LAST_BUCKETS = {letter: len(made.bounds) for letter, made, _ in MEASURED.values()}

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
        self.waits[bucket_of_duration(milliseconds)] += 1
        self._sums["w"] += milliseconds * 1000

    def count_run(self, seconds: float) -> None:
        """Count a call of the handler, by its duration."""
        self.runs[bucket_of_duration(seconds * 1000)] += 1
        self._sums["r"] += seconds * 1_000_000

    def count_settles(self, seconds: float, number: int) -> None:
        """Count the settlements of one call, by the duration of the call."""
        self.settles[bucket_of_duration(seconds * 1000)] += number
        self._sums["s"] += seconds * 1_000_000 * number

    def count_gpu_memory(self, peak: int, need: int) -> None:
        """Count an attempt on a GPU, by MiB: the most that its process used, and its task's demand."""
        self.peaks[bucket_of_memory(peak)] += 1
        self.needs[bucket_of_memory(need)] += 1
        self._sums["g"] += peak
        self._sums["n"] += need

    def count_batch(self, size: int, milliseconds: float) -> None:
        """Count a claimed batch, by its size and the time since its oldest task was due."""
        self.batch_sizes[bucket_of_size(size)] += 1
        self.batch_waits[bucket_of_duration(milliseconds)] += 1
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
                lines.append(f"{letter}{SUM} {number:.0f}")
                self._sums[letter], self._sent_at[letter] = 0, now
        return "\n".join(lines)

    def put_back(self, taken: str) -> None:
        """Add the counts that `take` returned again, because the server has not counted them."""
        counts = self._all()
        for line in taken.splitlines():
            name, _, number = line.partition(" ")
            if name[1:] == SUM:
                self._sums[name[0]] += int(number)
                continue
            counts[name[0]][int(name[1:])] += int(number)


def tallied(settlement: Settlement, before: Counts) -> str:
    """Return the names that an accepted settlement counts under. The end of a task is counted elsewhere.

    The first name is that of a comeback, or empty.
    """
    name = ""
    if settlement.status is TaskStatus.PENDING:
        name = comeback(settlement.counts, before)
    elif settlement.counts is not None and settlement.counts.lost > before.lost:
        name = "lost"
    elif settlement.expired:
        name = "expired"
    if settlement.error is None:
        return name
    return f"{name} e:{''.join(settlement.error.type.split())[:_NAME] or 'error'}"


def comeback(after: Counts | None, before: Counts) -> str:
    """Return the name that a comeback counts under, by the counts of the task `after` it and `before`."""
    if after is None:
        return "released"
    for name in ("retry", "lost", "snooze", "oom", "fault"):
        if getattr(after, name) > getattr(before, name):
            return _COMEBACKS[name]
    return "released"


_COMEBACKS = {"retry": "retried", "lost": "lost", "snooze": "snoozed", "oom": "out_of_memory", "fault": "gpu_fault"}
