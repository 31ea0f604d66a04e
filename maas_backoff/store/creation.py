"""What is stored of a task when it is created, and never changes."""

from datetime import datetime
from typing import NamedTuple

import attrs

from maas_backoff.domain.policy import Policy


class Creation(NamedTuple):
    """What is known of a task from its creation on."""

    created_ms: int
    priority: int
    policy: bytes
    """Its digest."""

    @classmethod
    def from_record(cls, record: bytes) -> "Creation":
        """Return the parts of a stored creation record that matter outside Lua."""
        created, priority, policy, _ = record.split(b" ", 3)
        return cls(int(created), int(priority), policy)


@attrs.frozen
class NewTask:
    """A checked task that is to be created; `due` is seconds from now, or a moment."""

    task_id: str
    params: str
    priority: int
    due: float | datetime
    policy: Policy
    overrides: str

    def args(self, digest: str) -> tuple[str, ...]:
        """Return this task as enqueue.lua takes it; `digest` names the queue's policy."""
        head_start = f"{self.priority * self.policy.priority_step * 1000:.0f}"
        record = f"{self.priority} {digest} {head_start} {'gpu' if self.policy.needs_gpu else '-'}"
        if isinstance(self.due, datetime):
            when = f"at {self.due.timestamp() * 1000:.0f}"
        else:
            when = f"in {self.due * 1000:.0f}" if self.due else ""
        return self.task_id, self.params, record, head_start, when, self.overrides
