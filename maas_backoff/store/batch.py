"""The batch request of a worker and its reply: settlements there, claimed tasks back."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import attrs

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.history import tallied
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.task import TaskEntity
from maas_backoff.store.codec import NO_COUNTS, AttemptInfo, settlement_fields
from maas_backoff.store.connection import QueueConnection

Precondition = Literal["lease", "expired", "pending", "external", "finished"]

ACCEPTED = frozenset({"ok", "already", "cancelled"})
"""Answers to a worker's settle that was accepted."""


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
    overrides: bytes | None = attrs.field(default=None, repr=False)
    """The task's own, as they are stored: needed where its params are replaced."""
    extra: Sequence[str] = attrs.field(default=(), repr=False)
    """Further fields of the task, names and values in turn: a change of when it is due, or how urgent."""


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
        if settle.extra:
            fields += settle.extra
        tally = _tally(settle)
        alike = settle.precondition, settlement.status, settlement.delay, settlement.ttl, tally, len(fields)
        if alike != last:
            last = alike
            args[0] += 1
            args += settle.precondition, status or settlement.status, f"{settlement.delay * 1000:.0f}"
            args += f"{max(1, settlement.ttl):.0f}", tally, len(fields) // 2
            count = len(args)
            args.append(0)
        args[count] += 1
        args += settle.task_id, "" if settle.token is None else settle.token
        args += fields
    return args


def _tally(settle: Settle) -> str:
    """Return what a settle counts as in the history: nothing, where it is of no attempt."""
    settlement = settle.settlement
    if settlement.result is not None or not (settle.info is not None or settle.precondition in {"lease", "expired"}):
        return ""
    return tallied(settlement, settle.counts)


def suspicion_text(*, may: bool, cohort: str, in_children: bool) -> str:
    """Return as scripts take it which suspects a worker may claim: see _suspects.lua."""
    return f"{may:d} {in_children:d} {cohort or '-'}"


NO_SUSPECTS = suspicion_text(may=False, cohort="", in_children=False)


def settle_head(
    queue: QueueConnection,
    settle_id: str,
    worker: str,
    *,
    request_id: str = "",
    claims: int = 0,
    suspicion: str = NO_SUSPECTS,
    fits: Sequence[str] = (),
    tally: str = "",
    lease_ms: str = "",
) -> list[Any]:
    """Return the arguments of settle.lua that stand before its groups. `lease_ms`: the configured lease, if empty."""
    config = queue.config
    lease_ms = lease_ms or f"{config.scheduler.lease * 1000:.0f}"
    head = [queue.clock, queue.keys.prefix, settle_id, worker, lease_ms, request_id, claims]
    return [*head, suspicion, config.task.max_finished, "\n".join(fits), tally]


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
    overrides: bytes | None = attrs.field(default=None, repr=False)
    waited_ms: float = 0
    """For how long it had been due."""
    fit: int = -1
    """Which of the request's fits it takes; -1: it needs no GPU."""
    demand: Demand | None = None


@attrs.frozen
class BatchRequest:
    """A request of an exchange loop. Frozen: it is sent again, as it is, until it is answered."""

    settles: tuple[Settle, ...]
    claims: int
    may_claim_suspect: bool
    request_id: str
    exchange: int
    tally: str = ""
    """Counts since the last request, for the history."""
    fits: tuple[str, ...] = ()
    """Claims only tasks that need a GPU: for each, the demand's name and the device that has room for it."""
    cohort: str = ""
    """The cohort whose suspects may be claimed; empty: those of any one cohort."""
    in_children: bool = False
    """Whether attempts run in child processes: then tasks that were lost once may be claimed in any number."""
    args: list[Any] = attrs.field(init=False, repr=False, eq=False)

    @property
    def suspicion(self) -> str:
        """Which suspects may be claimed, as scripts take it: see _suspects.lua."""
        return suspicion_text(may=self.may_claim_suspect, cohort=self.cohort, in_children=self.in_children)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "args", settle_args(self.settles))


@attrs.frozen
class BatchReply:
    """The reply to a batch request. `answers` are in the order of the settles; `next_due` is in seconds from now."""

    answers: list[str]
    claimed: list[Claimed]
    next_due: float | None
    hit: bool
