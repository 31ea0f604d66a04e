"""What one round trip of a worker carries: settlements there, claims back."""

from collections.abc import Iterable
from typing import Any, Literal

import attrs

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.task import TaskEntity
from maas_backoff.store.codec import NO_COUNTS, AttemptInfo, settlement_fields

Precondition = Literal["lease", "expired", "pending", "external", "finished"]


@attrs.define  # made for each task; a frozen one takes twice as long
class Settle:
    """One state change, and what must be true of the task for it to happen; no token means any."""

    task_id: str
    precondition: Precondition
    token: int | None
    settlement: Settlement
    counts: Counts = NO_COUNTS
    info: AttemptInfo | None = None
    progress: tuple[float, str | None] | None = None
    overrides: bytes | None = None
    """The task's own, as they are stored: needed where its params are replaced."""


def settle_args(settles: Iterable[Settle], status: str | None = None) -> list[Any]:
    """Return settles as settle.lua takes them: the number of groups, and those that follow each other and are alike.

    `status` takes the place of the settlements' own.
    """
    args: list[Any] = [0]
    last: object = None
    count = 0  # where the last group says how many it has
    for settle in settles:
        settlement = settle.settlement
        fields = settlement_fields(settlement, settle.counts, settle.info, settle.progress, settle.overrides)
        alike = settle.precondition, settlement.status, settlement.delay, settlement.ttl, len(fields)
        if alike != last:
            last = alike
            args[0] += 1
            args += settle.precondition, status or settlement.status, f"{settlement.delay * 1000:.0f}"
            args += f"{max(1, settlement.ttl):.0f}", len(fields) // 2
            count = len(args)
            args.append(0)
        args[count] += 1
        args += settle.task_id, "" if settle.token is None else settle.token
        args += fields
    return args


@attrs.define  # made for each task; a frozen one takes twice as long
class Claimed:
    """A task that this worker holds a lease on; `defect` says why it cannot be run."""

    task: TaskEntity
    token: int
    counts: Counts
    policy: Policy
    exec_timeout: float | None
    started_ms: float
    defect: str | None = None
    overrides: bytes | None = None
    fit: int = -1
    """Which of the frame's fits it takes; -1: it needs no GPU."""
    demand: Demand | None = None


@attrs.frozen
class Frame:
    """A request of a lane. Frozen: it is sent again, as it is, until it is answered."""

    settles: tuple[Settle, ...]
    claims: int
    may_claim_suspect: bool
    request_id: str
    lane: int
    fits: tuple[str, ...] = ()
    """Claims only tasks that need a GPU: for each, the demand's name and the device that has room for it."""
    args: list[Any] = attrs.field(init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "args", settle_args(self.settles))


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
