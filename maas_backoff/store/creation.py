"""The fields of a task that are stored at its creation, and never change."""

from collections.abc import Iterable
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import attrs

from maas_backoff.domain.policy import Policy


class Creation(NamedTuple):
    """A task as it is created."""

    created_ms: int
    priority: int
    policy: bytes
    """Its digest."""
    params: bytes
    """JSON text."""

    @classmethod
    def of(cls, stored: bytes) -> "Creation":
        """Return the parts of what is stored, and what _queue.lua describes, that matter outside Lua."""
        line, _, params = stored.partition(b"\n")
        try:
            return cls._make((*_terms(line), params))
        except (ValueError, IndexError):
            # Somebody has written over it. It is none of our policies, and its params are no JSON, as a rule.
            return cls(0, 0, b"", stored)


@lru_cache(maxsize=256)  # tasks that were created together have the same line
def _terms(line: bytes) -> tuple[int, int, bytes]:
    created, *rest = line.split(b" ")
    return int(created), int(rest[1]) if len(rest) > 1 else 0, rest[0]


@attrs.define  # made for each task; a frozen one takes three times as long
class NewTask:
    """A checked task that is to be created; `due` is seconds from now, or a moment."""

    task_id: str
    params: str = attrs.field(repr=False)
    priority: int
    due: float | datetime
    policy: Policy
    overrides: str

    def terms(self, digest: str) -> tuple[str, ...]:
        """Return what enqueue.lua takes of this task and all that are alike; `digest` names the queue's policy."""
        record = digest
        demand = self.policy.demand
        if self.priority or demand is not None:
            head_start = f"{self.priority * self.policy.priority_step * 1000:.0f}"
            record = f"{digest} {self.priority} {head_start} {'-' if demand is None else demand.name}"
        if isinstance(self.due, datetime):
            when = f"at {self.due.timestamp() * 1000:.0f}"
        else:
            when = f"in {self.due * 1000:.0f}" if self.due else ""
        return record, when, self.overrides


def reprioritized(stored: bytes, priority: int, policy: Policy) -> bytes:
    """Return what is stored of a task's creation with another priority."""
    line, _, params = stored.partition(b"\n")
    created, digest, *rest = line.split(b" ")
    demand = rest[2] if len(rest) > 2 else b"-"
    head_start = f"{priority * policy.priority_step * 1000:.0f}"
    return b"%s %s %d %s %s\n%s" % (created, digest, priority, head_start.encode(), demand, params)


def enqueue_args(tasks: Iterable[NewTask], digest: str) -> list[Any]:
    """Return tasks as enqueue.lua takes them: the number of groups, and those that follow each other and are alike."""
    args: list[Any] = [0]
    last: object = None
    count = 0  # where the last group says how many it has
    for task in tasks:
        alike = task.due, task.priority, task.overrides, task.policy
        if alike != last:
            last = alike
            args[0] += 1
            args += task.terms(digest)
            count = len(args)
            args.append(0)
        args[count] += 1
        args += task.task_id, task.params
    return args
