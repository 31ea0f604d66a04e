"""Tasks that were read in order to change them, on the condition that they are still as they were read."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import attrs

from maas_backoff.domain.breakdown import settled_line
from maas_backoff.domain.lane import Lane
from maas_backoff.domain.outcome import LeaseExpired
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.store.batch import Precondition, Settle
from maas_backoff.store.codec import TRACE, counts_of, held_by
from maas_backoff.store.creation import Creation, reprioritized
from maas_backoff.store.policies import Policies
from maas_backoff.store.replies import LeaseRow
from maas_backoff.store.settled import AttemptInfo


class Found(NamedTuple):
    """An unfinished task that the reaper or an operation has read, without its lease."""

    task_id: str
    precondition: Precondition
    token: int
    counts: Counts
    policy: Policy
    info: AttemptInfo
    breakdown: str = ""
    """The line of its settle for the history by kind and by tenant."""
    trace: str = ""
    """The place in a trace where the task was created; empty: the create was not traced."""
    loss: LeaseExpired = LeaseExpired()
    """The share of the blame and the cohort, if its lease ran out."""

    @classmethod
    def of(cls, row: LeaseRow, precondition: Precondition, now_ms: float, policies: Policies) -> "Found":
        """Return the task of stored fields. They include its creation, and its policy is known."""
        assert row.creation is not None
        creation = Creation.of(row.creation)
        policy, own = policies.effective(creation.policy, row.overrides)
        trace = own.get(TRACE)
        started_ms, worker, gpu = held_by(row.held_by)
        uuid = "" if gpu is None else gpu.uuid
        info = AttemptInfo(int(row.attempt or 0), started_ms or now_ms, now_ms, worker, uuid)
        counts = counts_of(row.counts, row.suspicion)
        # A pending task has the holder of its last attempt, which has been counted.
        seconds = 0 if precondition == "pending" else max(0, info.ended_ms - info.started_ms) / 1000
        line = settled_line(creation.kind, Lane.of(creation.lane).tenant, seconds)
        about = counts, policy, info, line, trace if isinstance(trace, str) else ""
        return cls(row.task_id.decode(), precondition, int(row.token or 0), *about)

    def settle(self, settlement: Settlement) -> Settle:
        """Return the state change, on the condition that the task is still as it was read."""
        settle = Settle(self.task_id, self.precondition, self.token, settlement, self.counts, self.info)
        settle.breakdown = self.breakdown
        return settle


class Seen(NamedTuple):
    """A task that was read in a page, with its policy."""

    task: TaskEntity
    policy: Policy

    @property
    def has_lease(self) -> bool:
        """Whether a worker runs the task. `mark_task_processing` takes a task without a worker."""
        return self.task.status is TaskStatus.PROCESSING and self.task.worker is not None

    def cancelled(self) -> Settle:
        """Return the change of a task without a lease to a cancelled one."""
        precondition: Precondition = "pending" if self.task.status is TaskStatus.PENDING else "external"
        line = settled_line(self.task.kind, self.task.tenant, 0)
        return Settle(self.task.task_id, precondition, self.task.token, Settlement.cancel(self.policy), breakdown=line)

    def requeued(self) -> Settle:
        """Return the change of a failed or cancelled task to a pending one, with all its retries."""
        settlement = attrs.evolve(Settlement.release(self.policy), counts=Counts())
        return Settle(self.task.task_id, "finished", self.task.token, settlement)

    def rescheduled(self, due: float | datetime) -> Settle:
        """Return the change of a pending task to another due time (seconds from now, or a moment)."""
        settlement, extra = _due(Settlement.release(self.policy), due)
        return Settle(self.task.task_id, "pending", self.task.token, settlement, extra=extra)


class Scan(NamedTuple):
    """A page of tasks that was read in order to select some of them."""

    seen: Sequence[Seen]
    places: Sequence[int]
    """The place of each task in the page, from 1 on: some entries of an index have no task."""
    now: datetime
    next: tuple[str, str, int] | None
    """The index, score and skip at which the next page begins; None at the end."""
    last: Sequence[str]
    """The ids of this page that have the score of `next`."""

    def cursor(self, gone: Collection[str] = ()) -> str | None:
        """Return the cursor of the next page. `gone` are ids of this page that have left the index since."""
        if self.next is None:
            return None
        name, score, skip = self.next
        return f"{name} {score} {skip - sum(task_id in gone for task_id in self.last)}"


@attrs.frozen
class Pending:
    """A pending task that was read in order to reschedule it."""

    task_id: str
    token: int
    created: bytes = attrs.field(repr=False)
    """Its stored creation: see _queue.lua."""
    due_ms: float
    policy: Policy

    def rescheduled(self, priority: int | None, due: float | datetime | None) -> Settle:
        """Return the change to another priority, another due time (seconds from now, or a moment), or both."""
        settlement, extra = Settlement.release(self.policy), ["u", f"{self.due_ms:.0f}"]
        if due is not None:
            settlement, extra = _due(settlement, due)
        if priority is not None:
            extra += "p", reprioritized(self.created, priority, self.policy).decode()
        return Settle(self.task_id, "pending", self.token, settlement, extra=extra)


def _due(settlement: Settlement, due: float | datetime) -> tuple[Settlement, list[str]]:
    """Return a settlement with another due time, and the field that it needs for a moment."""
    if isinstance(due, datetime):
        return settlement, ["u", f"at {due.timestamp() * 1000:.0f}"]
    settlement.delay = due
    return settlement, []
