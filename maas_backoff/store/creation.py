"""The fields of a task that are stored at its creation."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import attrs

from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.policy import Policy


class Creation(NamedTuple):
    """The stored creation of a task."""

    created_ms: int
    priority: int
    policy: bytes
    """Its digest."""
    kind: str
    lane: str
    """The tenant and the limits, as `Lane.of` reads them."""
    params: bytes
    """JSON text."""

    @classmethod
    def of(cls, stored: bytes) -> "Creation":
        """Return the creation in a field p; _queue.lua describes its form."""
        line, _, params = stored.partition(b"\n")
        try:
            return cls._make((*_terms(line), params))
        except (ValueError, IndexError):
            # A person has overwritten the field. The task fails if its params are no JSON.
            return cls(0, 0, b"", "", "", stored)


@lru_cache(maxsize=256)  # tasks that were created together have the same line
def _terms(line: bytes) -> tuple[int, int, bytes, str, str]:
    created, *rest = line.split(b" ")
    priority = int(rest[1]) if len(rest) > 1 else 0
    kind = rest[4].decode() if len(rest) > 4 and rest[4] != b"-" else NAMELESS
    return int(created), priority, rest[0], kind, b" ".join(rest[5:]).decode()


@attrs.define  # made for each task; a frozen one takes three times as long
class NewTask:
    """A validated task before its creation; `due` is seconds from now, or a moment."""

    task_id: str
    params: str = attrs.field(repr=False)
    priority: int
    due: float | datetime
    policy: Policy
    overrides: str
    kind: str = NAMELESS
    lane: str = ""
    """The record of its Lane."""

    def terms(self, digest: str) -> tuple[str, ...]:
        """Return the head of this task's group for enqueue.lua; `digest` names the queue's policy."""
        record = digest
        demand = self.policy.demand
        if self.priority or demand is not None or self.kind or self.lane:
            head_start = f"{self.priority * self.policy.priority_step * 1000:.0f}"
            record = f"{digest} {self.priority} {head_start} {'-' if demand is None else demand.name}"
            if self.lane:
                record = f"{record} {self.kind or '-'} {self.lane}"
            elif self.kind:
                record = f"{record} {self.kind}"
        if isinstance(self.due, datetime):
            when = f"at {self.due.timestamp() * 1000:.0f}"
        else:
            when = f"in {self.due * 1000:.0f}" if self.due else ""
        return record, when, self.overrides


def reprioritized(stored: bytes, priority: int, policy: Policy) -> bytes:
    """Return a stored creation with another priority."""
    line, _, params = stored.partition(b"\n")
    created, digest, *rest = line.split(b" ")
    unchanged = b" ".join(rest[2:]) or b"-"  # the demand, the kind and the lane
    head_start = f"{priority * policy.priority_step * 1000:.0f}"
    return b"%s %s %d %s %s\n%s" % (created, digest, priority, head_start.encode(), unchanged, params)


def enqueue_args(tasks: Iterable[NewTask], digest: str) -> list[Any]:
    """Return the arguments of enqueue.lua: the number of groups, and groups of neighbours that are alike."""
    args: list[Any] = [0]
    last: object = None
    count = 0  # index of the last group's size
    for task in tasks:
        alike = task.due, task.priority, task.overrides, task.policy, task.kind, task.lane
        if alike != last:
            last = alike
            args[0] += 1
            args += task.terms(digest)
            count = len(args)
            args.append(0)
        args[count] += 1
        args += task.task_id, task.params
    return args


def by_lane(tasks: Sequence[NewTask]) -> list[int]:
    """Return the places of tasks in the order in which they are sent: tasks of one lane together, each lane in order.

    Only the order within a lane is kept by the queue, and a group of tasks that are alike costs the server less.
    """
    lanes = [task.lane.partition(" ")[0] for task in tasks]
    order = {lane: number for number, lane in enumerate(dict.fromkeys(lanes))}
    return sorted(range(len(tasks)), key=lambda place: order[lanes[place]])
