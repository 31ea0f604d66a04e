"""The history by kind and by tenant: what came of the attempts of the largest ones, in steps."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import attrs

from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.status import TaskStatus
from maas_backoff.errors import InvalidValueError

By = Literal["kind", "tenant"]

LETTERS: Mapping[By, str] = {"kind": "k", "tenant": "t"}
"""The letter of each breakdown in keys and lines."""

MOST_NAMES = 20
"""The most names in a breakdown."""

_OTHERS = "*"
"""The stored name of the sum of all names that have lost their place."""


@attrs.frozen
class SettledAttempts:
    """The attempts of one kind, or tenant, that were settled in the step from `start` on.

    `completed` and `failed` are ends of tasks; `retried` are failed attempts whose task comes back by a retry.
    `run_time` is the sum of their durations in seconds.
    """

    start: datetime | None = None
    completed: int = 0
    failed: int = 0
    retried: int = 0
    run_time: float = 0

    @property
    def count(self) -> int:
        """The number of attempts."""
        return self.completed + self.failed + self.retried

    @property
    def mean_run_time(self) -> float | None:
        """The mean duration of an attempt in seconds; None: there was no attempt."""
        return self.run_time / self.count if self.count else None


@attrs.frozen
class Breakdown:
    """The history by kind or by tenant, in steps of a minute or of ten minutes, the oldest first.

    `names` has the steps of the twenty names with most attempts, those first that have most. `others` has the steps of
    all further names together. Tasks without a kind, or without a tenant, are left out. Each step has 32 places: if it
    has more names, those with few attempts count among the others, and new ones may lack their first attempts.
    """

    by: By
    step: timedelta
    names: Mapping[str, Sequence[SettledAttempts]] = attrs.field(factory=dict[str, Sequence[SettledAttempts]])
    others: Sequence[SettledAttempts] = ()

    @property
    def totals(self) -> Mapping[str, SettledAttempts]:
        """The sum of all steps of each name."""
        return {name: added(steps) for name, steps in self.names.items()}


def checked_by_what(by: object) -> By:
    """Return by what a history is broken down. Raises InvalidValueError."""
    if not isinstance(by, str) or by not in LETTERS:
        raise InvalidValueError("by", "kind or tenant", by)
    return by  # type: ignore[return-value]  # a key of LETTERS


def added(steps: Iterable[SettledAttempts], start: datetime | None = None) -> SettledAttempts:
    """Return the sum of steps."""
    found = list(steps)
    completed, failed, retried = (
        sum(getattr(one, name) for one in found) for name in ("completed", "failed", "retried")
    )
    return SettledAttempts(start, completed, failed, retried, sum(one.run_time for one in found))


def broken_down(
    by: By, step: timedelta, rows: Sequence[tuple[datetime, Mapping[str, str]]], wanted: str = ""
) -> Breakdown:
    """Return the breakdown of stored steps, the oldest first: each has a start, and numbers by name.

    The name `wanted` is among the names, if it is given.
    """
    read = [(start, {name: _settled(start, text) for name, text in row.items()}) for start, row in rows]
    counts: dict[str, int] = {wanted: 0} if wanted else {}
    for _, row in read:
        for name, one in row.items():
            counts[name] = counts.get(name, 0) + one.count
    largest = sorted((name for name in counts if name != _OTHERS), key=lambda name: (-counts[name], name))[:MOST_NAMES]
    names = {name: [row.get(name, SettledAttempts(start)) for start, row in read] for name in largest}
    shown = set(largest)
    others = [added((one for name, one in row.items() if name not in shown), start) for start, row in read]
    return Breakdown(by, step, names, others)


def _settled(start: datetime, text: str) -> SettledAttempts:
    try:
        completed, failed, retried, ms = map(int, text.split()[:4])
    except ValueError:  # a person has overwritten it
        return SettledAttempts(start)
    return SettledAttempts(start, completed, failed, retried, ms / 1000)


def lines_of(ended: Iterable[tuple[str, str, Settlement, Counts, float]]) -> str:
    """Return what settle.lua counts by kind and by tenant: lines "k name completed failed retried ms".

    `ended` has the kind, the tenant, the settlement, the counts before, and the seconds of each attempt.
    """
    sums: dict[str, list[float]] = {}
    for kind, tenant, settlement, before, seconds in ended:
        column = _column(settlement, before)
        if column is None:
            continue
        for name in (f"k {kind}" if kind else "", f"t {tenant}" if tenant else ""):
            if name:
                numbers = sums.setdefault(name, [0, 0, 0, 0])
                numbers[column] += 1
                numbers[3] += seconds * 1000
    return "\n".join(f"{name} {' '.join(f'{number:.0f}' for number in numbers)}" for name, numbers in sums.items())


def _column(settlement: Settlement, before: Counts) -> int | None:
    """Return the place of a settlement in a line: completed, failed or retried; None: it does not count."""
    if settlement.status is TaskStatus.COMPLETED:
        return 0
    if settlement.status is TaskStatus.FAILED:
        return 1
    after = settlement.counts
    return 2 if settlement.status is TaskStatus.PENDING and after is not None and after.retry > before.retry else None
