"""Tasks that were read in order to change them, on the condition that they are still as they were read."""

from datetime import datetime

import attrs

from maas_backoff.domain.outcome import LeaseExpired
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.store.batch import Precondition, Settle
from maas_backoff.store.codec import counts_of, held_by
from maas_backoff.store.creation import Creation, reprioritized
from maas_backoff.store.policies import Policies
from maas_backoff.store.replies import LeaseRow
from maas_backoff.store.settled import AttemptInfo


@attrs.frozen
class Found:
    """An unfinished task that the reaper or an operation has read, without its lease."""

    task_id: str
    precondition: Precondition
    token: int
    counts: Counts
    policy: Policy
    info: AttemptInfo
    loss: LeaseExpired = LeaseExpired()
    """The share of the blame and the cohort, if its lease ran out."""

    @classmethod
    def of(cls, row: LeaseRow, precondition: Precondition, now_ms: float, policies: Policies) -> "Found":
        """Return the task of stored fields. They include its creation, and its policy is known."""
        assert row.creation is not None
        policy, _ = policies.effective(Creation.of(row.creation).policy, row.overrides)
        started_ms, worker, _ = held_by(row.held_by)
        info = AttemptInfo(int(row.attempt or 0), started_ms or now_ms, now_ms, worker)
        counts = counts_of(row.counts, row.suspicion)
        return cls(row.task_id.decode(), precondition, int(row.token or 0), counts, policy, info)

    def settle(self, settlement: Settlement) -> Settle:
        """Return the state change, on the condition that the task is still as it was read."""
        return Settle(self.task_id, self.precondition, self.token, settlement, self.counts, self.info)


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
        settlement, extra = Settlement.release(self.policy), list[str]()
        if isinstance(due, datetime):
            extra += "u", f"at {due.timestamp() * 1000:.0f}"
        elif due is None:
            extra += "u", f"{self.due_ms:.0f}"
        else:
            settlement.delay = due
        if priority is not None:
            extra += "p", reprioritized(self.created, priority, self.policy).decode()
        return Settle(self.task_id, "pending", self.token, settlement, extra=extra)
