"""The numbers of a queue."""

from collections.abc import Mapping
from datetime import datetime

import attrs


@attrs.frozen
class QueueStats:
    """The number of a queue's tasks in each state at one moment. Finished tasks count until their time to live ends.

    `scheduled_count` is the part of `pending_count` that is not due yet. `oldest_pending_age` is the seconds since the
    task at the head of the queue was due; 0 if no task is due. It leaves out tasks that are too large for all GPUs of
    live workers: see `unfit_count`. `gpu_count` is the part of `pending_count` that is due and needs a GPU.
    `gpu_room_count` is the part of `gpu_count` for which a GPU has room: these tasks wait for a slot. `unfit_count` is
    the part of `gpu_count` that asks for more memory than any device of a live worker has. While `paused`, nothing is
    claimed. `suspect_count` is the part of `pending_count` that is due and was lost with its worker again, or whose
    batch failed: these tasks come back in halves. `kinds` has the number of due tasks of each kind that the queue has
    had, without those that need a GPU; `gpu_kinds` has the number of those. `paused_kinds` has the moment since which
    each paused kind is paused: their tasks are not claimed. `tenant_count` is the number of tenants with waiting tasks,
    delayed ones too. `limit_count` is the number of limits that are set, and of those that a task has closed.
    `paused_tenants` has the moment since which each paused tenant is paused; beyond 1,000 paused tenants, some may be
    left out. `paused_since` is the moment since which the whole queue is paused. `paused_by` is the name of who paused
    the queue; `kinds_paused_by` and `tenants_paused_by` have the names for paused kinds and tenants. A name is missing
    if none was given. `created_count` is the number of tasks that were created, of all time.
    """

    pending_count: int
    scheduled_count: int
    processing_count: int
    completed_count: int
    failed_count: int
    cancelled_count: int
    oldest_pending_age: float
    gpu_count: int = 0
    unfit_count: int = 0
    paused: bool = False
    suspect_count: int = 0
    kinds: Mapping[str, int] = attrs.field(factory=dict[str, int])
    gpu_kinds: Mapping[str, int] = attrs.field(factory=dict[str, int])
    paused_kinds: Mapping[str, datetime] = attrs.field(factory=dict[str, datetime])
    tenant_count: int = 0
    limit_count: int = 0
    paused_tenants: Mapping[str, datetime] = attrs.field(factory=dict[str, datetime])
    created_count: int = 0
    paused_since: datetime | None = None
    paused_by: str = ""
    kinds_paused_by: Mapping[str, str] = attrs.field(factory=dict[str, str])
    tenants_paused_by: Mapping[str, str] = attrs.field(factory=dict[str, str])
    gpu_room_count: int = 0

    def due_of(self, kind: str) -> int:
        """Return the number of due tasks of a kind with a name, with those that need a GPU."""
        return self.kinds.get(kind, 0) + self.gpu_kinds.get(kind, 0)
