"""What one round trip of a worker carries: settlements there, claims back."""

from typing import Any, Literal

import attrs

from maas_backoff.domain.policy import Policy
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.task import TaskEntity
from maas_backoff.store.codec import AttemptInfo, settlement_args, settlement_fields

Precondition = Literal["lease", "expired", "pending", "external", "finished"]


@attrs.frozen(slots=False)  # made for each task: a third of the time
class Settle:
    """One state change, and what must be true of the task for it to happen; no token means any."""

    task_id: str
    precondition: Precondition
    token: int | None
    settlement: Settlement
    counts: Counts = Counts()
    info: AttemptInfo | None = None
    progress: tuple[float, str | None] | None = None

    def args(self) -> list[str]:
        """Return this settle as settle.lua takes it."""
        fields = settlement_fields(self.settlement, self.counts, self.info, self.progress)
        status = self.settlement.status
        return settlement_args(self.task_id, self.precondition, self.token, status, self.settlement, fields)


@attrs.frozen(slots=False)  # made for each task: a third of the time
class Claimed:
    """A task that this worker holds a lease on; `defect` says why it cannot be run."""

    task: TaskEntity
    token: int
    counts: Counts
    policy: Policy
    exec_timeout: float | None
    started_ms: float
    defect: str | None = None


@attrs.frozen
class Frame:
    """A request of a lane. Frozen: it is sent again, as it is, until it is answered."""

    settles: tuple[Settle, ...]
    claims: int
    may_claim_suspect: bool
    request_id: str
    lane: int
    args: list[Any] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "args", [arg for settle in self.settles for arg in settle.args()])


@attrs.frozen
class Answer:
    """The reply to a frame. `answers` are in the order of the settles; `next_due` is in seconds from now."""

    answers: list[str]
    claimed: list[Claimed]
    next_due: float | None
    hit: bool


@attrs.frozen
class Found:
    """A live task as somebody sees it who does not hold its lease: the reaper, or a hand from outside."""

    task_id: str
    precondition: Precondition
    token: int
    counts: Counts
    policy: Policy
    info: AttemptInfo

    def settle(self, settlement: Settlement) -> Settle:
        """Return the state change, on the condition that the task is still as it was found."""
        return Settle(self.task_id, self.precondition, self.token, settlement, self.counts, self.info)
