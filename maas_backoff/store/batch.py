"""The batch request of a worker, which carries settlements, and the batch reply, which carries claimed tasks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import attrs

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.kind import ONLY_NAMELESS
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.tally import tallied
from maas_backoff.domain.task import TaskEntity
from maas_backoff.store.codec import NO_COUNTS
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.settled import AttemptInfo, settlement_fields

Precondition = Literal["lease", "expired", "pending", "external", "finished", "overdue"]

UNSENT = "unsent"
"""The answer that means that the server has lost parts of the stream: they must be sent again before the settle."""

ACCEPTED = frozenset({"ok", "already", "cancelled"})
"""Answers that mean that a worker's settle was accepted."""


@attrs.define  # made for each task; a frozen one takes twice as long
class Settle:
    """One state change of a task, and its precondition. No token means any token."""

    task_id: str
    precondition: Precondition
    token: int | None
    settlement: Settlement
    counts: Counts = NO_COUNTS
    info: AttemptInfo | None = None
    progress: tuple[float, str | None] | None = None
    overrides: bytes | None = attrs.field(default=None, repr=False)
    """The task's overrides, as they are stored. Only a settlement with new params needs them."""
    used: Sequence[str] = ()
    """Lines about its lane, as settle.lua takes them, without the number: "u lane costs", "c limit ms"."""
    parts: int = 0
    """The parts that the stream of the task must have; 0: it does not matter."""
    breakdown: str = ""
    """Its line for the history by kind and by tenant: see `settled_line`. A worker sends sums: see worker/sums.py."""
    extra: Sequence[str] = attrs.field(default=(), repr=False)
    """Further fields of the task, names and values in turn: a new due time or priority."""


def settle_args(settles: Iterable[Settle], status: str | None = None) -> list[Any]:
    """Return the arguments of settle.lua: the number of groups, and groups of neighbours that are alike.

    `status` replaces the status of the settlements.
    """
    args: list[Any] = [0]
    last: object = None
    count = 0  # index of the last group's size
    for settle in settles:
        settlement = settle.settlement
        fields = settlement_fields(settlement, settle.counts, settle.info, settle.progress, settle.overrides)
        if settle.extra:
            fields += settle.extra
        tally = _tally(settle)
        precondition = f"{settle.precondition} {settle.parts}" if settle.parts else settle.precondition
        alike = precondition, settlement.status, settlement.delay, settlement.ttl, tally, len(fields)
        if alike != last:
            last = alike
            args[0] += 1
            args += precondition, status or settlement.status, f"{settlement.delay * 1000:.0f}"
            args += f"{max(1, settlement.ttl):.0f}", tally, len(fields) // 2
            count = len(args)
            args.append(0)
        args[count] += 1
        args += settle.task_id, "" if settle.token is None else settle.token
        args += fields
    return args


def _tally(settle: Settle) -> str:
    """Return the names that a settle counts under in the history: none if it ends no attempt."""
    settlement = settle.settlement
    if settlement.result is not None or not (settle.info is not None or settle.precondition in {"lease", "expired"}):
        return ""
    return tallied(settlement, settle.counts)


def used_text(settles: Iterable[Settle]) -> str:
    """Return the argument of settle.lua that says what the lanes of settled tasks have used."""
    lines: list[str] = []
    for number, settle in enumerate(settles, 1):
        for line in settle.used:
            what, _, rest = line.partition(" ")
            lines.append(f"{what} {number} {rest}")
    return "\n".join(lines)


def breakdown_text(settles: Iterable[Settle]) -> str:
    """Return the argument of settle.lua for the history by kind and by tenant."""
    return "\n".join(f"{number} {one.breakdown}" for number, one in enumerate(settles, 1) if one.breakdown)


def suspicion_text(*, may: bool, cohort: str) -> str:
    """Return the argument that says which suspects a worker may claim: see _suspects.lua."""
    return f"{may:d} {cohort or '-'}"


NO_SUSPECTS = suspicion_text(may=False, cohort="")


def settle_head(
    queue: QueueConnection,
    settle_id: str,
    worker: str,
    *,
    request_id: str = "",
    claims: int | str = 0,
    suspicion: str = NO_SUSPECTS,
    fits: Sequence[str] = (),
    tally: str = "",
    kinds: str = ONLY_NAMELESS.text,
    used: str = "",
    breakdown: str = "",
    lease_ms: str = "",
) -> list[Any]:
    """Return the arguments of settle.lua before its groups. An empty `lease_ms` means the configured lease."""
    config = queue.config
    lease_ms = lease_ms or f"{config.scheduler.lease * 1000:.0f}"
    head = [queue.clock, queue.keys.prefix, settle_id, worker, lease_ms, request_id, claims]
    return [*head, suspicion, config.task.max_finished, "\n".join(fits), tally, kinds, used, breakdown]


@attrs.define  # made for each task; a frozen one takes twice as long
class Claimed:
    """A task whose lease this worker has; `defect` says why the task cannot run."""

    task: TaskEntity
    token: int
    counts: Counts
    policy: Policy
    exec_timeout: float | None
    started_ms: float
    defect: str | None = None
    overrides: bytes | None = attrs.field(default=None, repr=False)
    waited_ms: float = 0
    """The time from its due time to the claim."""
    fit: int = -1
    """The number of its placement in the request's `fits`; -1: it needs no GPU."""
    demand: Demand | None = None
    start_before: float = math.inf
    """The last moment to start because of a deadline, by time.monotonic()."""
    time_left: float = math.inf
    """Seconds from the claim to the deadline of all attempts."""
    has_stream: bool = False
    """Whether earlier attempts have emitted something."""


@attrs.frozen
class BatchRequest:
    """A request of an exchange loop. It is frozen: the loop repeats it unchanged until the server answers."""

    settles: tuple[Settle, ...]
    claims: int
    may_claim_suspect: bool
    request_id: str
    exchange: int
    tally: str = ""
    """Counts for the history since the last request."""
    fits: tuple[str, ...] = ()
    """Placements, one for each claim: a demand's name and a device with room. If any, only GPU tasks are claimed."""
    cohort: str = ""
    """The only cohort whose suspects may be claimed; empty: any one cohort."""
    batch: str = ""
    """A batch, as _batch.lua takes it, to claim instead of up to `claims` tasks; empty: none. It takes one slot."""
    kind: str = ""
    """The kind of the batch."""
    args: list[Any] = attrs.field(init=False, repr=False, eq=False)
    used: str = attrs.field(init=False, repr=False, eq=False)

    @property
    def suspicion(self) -> str:
        """The argument that says which suspects may be claimed: see _suspects.lua."""
        return suspicion_text(may=self.may_claim_suspect, cohort=self.cohort)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "args", settle_args(self.settles))
        object.__setattr__(self, "used", used_text(self.settles))


class BatchReply(NamedTuple):
    """The reply to a batch request. `answers` are in the order of the settles; `next_due` is in seconds from now."""

    answers: list[str]
    claimed: list[Claimed]
    next_due: float | None
    hit: bool
    ranks: Sequence[float] = ()
    """The rank of the first waiting task of each kind in batches, if the claim has asked; infinity: none waits."""
