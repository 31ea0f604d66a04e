"""The history by kind and by tenant: what came of the attempts of the largest ones, in steps."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Literal

import attrs

from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.tally import comeback
from maas_backoff.errors import InvalidValueError

By = Literal["kind", "tenant"]

LETTERS: Mapping[By, str] = {"kind": "k", "tenant": "t"}
"""The letter of each breakdown in keys and lines."""

MOST_NAMES = 20
"""The most names in a breakdown."""

CANCELLED, RETRIED = 2, 3
"""Places in a stored row: see _breakdown.lua."""

_COLUMNS = {TaskStatus.COMPLETED: 0, TaskStatus.FAILED: 1, TaskStatus.CANCELLED: CANCELLED}

_OTHERS = "*"
"""The stored name of the sum of all names that have lost their place."""


@attrs.frozen
class SettledAttempts:
    """The tasks of one kind, or tenant, that ended or were retried in the step from `start` on.

    `completed`, `failed` and `cancelled` are ends of tasks, by a worker or in any other way. `retried` are failed
    attempts whose task comes back by a retry. `run_time` is the sum of the durations in seconds, without those of
    cancelled tasks.
    """

    start: datetime | None = None
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    run_time: float = 0

    @property
    def count(self) -> int:
        """The number of ends and retries."""
        return self.completed + self.failed + self.cancelled + self.retried

    @property
    def mean_run_time(self) -> float | None:
        """The mean duration of an attempt in seconds, without cancelled tasks; None: there was no attempt."""
        attempts = self.count - self.cancelled
        return self.run_time / attempts if attempts else None


@attrs.frozen
class Breakdown:
    """The history by kind or by tenant, in steps of a minute or of ten minutes, the oldest first.

    `names` has the steps of the twenty names with most ends and retries, those first that have most. `others` has the
    steps of all further names together. Tasks without a kind, or without a tenant, are left out. Each step has 32
    places: if it has more names, those with few ends count among the others, and so may the first ends of a new name.
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
    columns = ("completed", "failed", "cancelled", "retried", "run_time")
    return SettledAttempts(start, *(sum(getattr(one, name) for one in found) for name in columns))


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
        *counts, ms = map(int, text.split()[:5])
        completed, failed, cancelled, retried = counts
    except ValueError:  # a person has overwritten it
        return SettledAttempts(start)
    return SettledAttempts(start, completed, failed, cancelled, retried, ms / 1000)


def column_of(settlement: Settlement, before: Counts, answer: str) -> int | None:
    """Return the place in a stored row under which an accepted settle counts; None: it ends no task, and is no retry.

    `before` are the counts of the task before the settlement. The `answer` tells of a cancel in place of a comeback.
    """
    if answer == "cancelled":
        return CANCELLED
    if settlement.status is not TaskStatus.PENDING:
        return _COLUMNS[settlement.status]
    return RETRIED if comeback(settlement.counts, before) == "retried" else None


def sum_line(letter: str, name: str, numbers: Sequence[float]) -> str:
    """Return the line of a sum for settle.lua: letter, name, and a stored row whose last number is in seconds."""
    *counts, seconds = numbers
    return f"{letter} {name} {' '.join(map(str, counts))} {seconds * 1000:.0f}"


def settled_line(kind: str, tenant: str, seconds: float) -> str:
    """Return the line of a settle for settle.lua, "kind tenant ms"; empty for a task with neither kind nor tenant."""
    return f"{kind} {tenant} {seconds * 1000:.0f}" if kind or tenant else ""
