"""The replies of the scripts, as they come from the server. Names and order are those of docs/protocol.md."""

from collections.abc import Sequence
from typing import Any, NamedTuple


def mapping(flat: Any) -> dict[bytes, Any]:
    """Return the dict of names and values in turn, as Lua gives them."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


class SettleReply(NamedTuple):
    """The reply of settle.lua. `claims` are the values of `ClaimRow`, one task after the other."""

    now: bytes
    answers: list[bytes]
    claims: list[Any]
    next_due: bytes
    hit: int
    fitted: list[Any]


class ClaimRow(NamedTuple):
    """A claimed task in the reply of settle.lua."""

    task_id: bytes
    token: int
    attempt: int
    creation: bytes
    overrides: bytes | None
    counts: bytes | None
    due: bytes | None


class RenewReply(NamedTuple):
    """The reply of renew.lua. `neighbours` are names and processes in turn; `named` is the worker with its name.

    `quiet` is 1 if the worker is to claim nothing.
    """

    lost: list[bytes]
    cancelled: list[bytes]
    neighbours: list[bytes]
    named: bytes
    quiet: int


class ReapReply(NamedTuple):
    """The reply of reap.lua. `rows` have the values of `LeaseRow`; `workers` a name and the numbers of `Losses`.

    `overdue` are ids of pending tasks whose deadline has passed.
    """

    now: bytes
    rows: list[list[Any]]
    workers: list[list[Any]]
    next_ms: bytes
    overdue: list[bytes]


class ExpireReply(NamedTuple):
    """The reply of expire.lua."""

    ended: int
    cursor: bytes


class LeaseRow(NamedTuple):
    """A lease that ran out, in the reply of reap.lua."""

    task_id: bytes
    token: bytes | None
    creation: bytes | None
    overrides: bytes | None
    attempt: bytes | None
    counts: bytes | None
    held_by: bytes | None
    suspicion: bytes | None


class DemandsReply(NamedTuple):
    """The reply of demands.lua."""

    now: bytes
    first_ready: bytes
    hold: bytes
    rows: list[list[Any]]


class DemandRow(NamedTuple):
    """A demand in the reply of demands.lua, with values of its first task."""

    name: bytes
    demand: bytes
    rank: bytes
    age_ms: bytes
    avoid: bytes
    suspect: int


class GetReply(NamedTuple):
    """The reply of get.lua. `rows` are, for each task in turn, the ready tasks before it and its fields.

    For a task in a lane, "own others tenants" stands for the ready tasks. `paused_kinds` are names and times in turn;
    none if no task among the rows waits and has a kind. `limits` are rows of `LimitRow`, of tasks that wait.
    """

    now: bytes
    paused: int
    rows: list[Any]
    paused_kinds: list[bytes]
    paused_tenants: list[bytes]
    limits: list[list[Any]]


StreamItem = tuple[str, str, str]
"""A part or a line of a stream: its id, its form with the number of the attempt, and its text."""


class StreamReply(NamedTuple):
    """The reply of stream.lua. `rows` are the values of `StreamRow`, or None for a task that is not there."""

    now: bytes
    rows: list[list[Any] | None]


class StreamRow(NamedTuple):
    """The state of a task and its next parts or lines, in the reply of stream.lua.

    `items` has three values of each: id, form, text.
    """

    state: bytes
    attempt: bytes
    restart: bytes
    more: int
    overrides: bytes
    items: list[bytes]


class ListReply(NamedTuple):
    """The reply of list.lua. `rows` are ids and fields; `paused_kinds` are names and times in turn.

    `limits` are rows of `LimitRow`, of tasks that wait. The next cursor is `place` (of an index, from 1; 0: the end),
    `score` and `skip`.
    """

    now: bytes
    rows: list[tuple[bytes, list[bytes]]]
    place: int
    score: bytes
    skip: int
    paused: int
    paused_kinds: list[bytes]
    paused_tenants: list[bytes]
    limits: list[list[Any]]


class StatsReply(NamedTuple):
    """The reply of stats.lua. `by_kind` are names and numbers in turn; `paused_kinds` are names and times.

    `paused_tenants` are rows of a name, a time, and a number of waiting tasks. `age_ms` is without GPU sets;
    `gpu_ages` has the age of each of them, in the order of `demands`. `paused_by` are fields and names in turn.
    """

    now: bytes
    pending: int
    scheduled: int
    processing: int
    completed: int
    failed: int
    cancelled: int
    age_ms: bytes
    demands: list[Any]
    paused: int
    next_due: bytes
    suspects: int
    suspects_running: int
    by_kind: list[Any]
    paused_kinds: list[bytes]
    tenant_count: int
    paused_tenants: list[tuple[bytes, bytes, bytes]]
    shut_limits: int
    limit_count: int
    gpu_ages: list[bytes]
    created: int
    paused_by: list[bytes]


class SharesReply(NamedTuple):
    """The reply of shares.lua. The form of `rows` depends on the part that was read."""

    now: bytes
    cursor: bytes
    size: int
    rows: list[Any]


class TenantRow(NamedTuple):
    """A tenant in the reply of shares.lua. `settings` are "weight", or "weight since" of a paused one."""

    name: bytes
    waiting: bytes
    settings: bytes
    paused_by: bytes


class LimitRow(NamedTuple):
    """A limit in a reply, as _shares.lua reads it. Missing values are empty."""

    name: bytes
    set_by: bytes
    setting: bytes
    use: bytes
    at: bytes
    unit_at: bytes
    closed: bytes


class UpcomingReply(NamedTuple):
    """The reply of upcoming.lua."""

    now: bytes
    counts: list[int]


class HistoryReply(NamedTuple):
    """The reply of history.lua. `steps` are names and numbers in turn, of the newest step first."""

    now: bytes
    totals: list[bytes]
    finished: list[bytes | None]
    steps: list[list[bytes]]


class BreakdownReply(NamedTuple):
    """The reply of breakdown.lua. `steps` are names and numbers in turn, of the newest step first."""

    now: bytes
    steps: list[list[bytes]]


class PurgeReply(NamedTuple):
    """The reply of purge.lua."""

    number: int
    more: int


def queue_time(clock: str | Sequence[bytes], ahead: bytes | None, seen: bytes | None) -> float:
    """Return the queue's time in ms, as lua/_time.lua does. `clock` is the reply of TIME, or the time of a test."""
    ms = float(clock) if isinstance(clock, str) else int(clock[0]) * 1000 + int(clock[1]) / 1000
    return max(ms + float(ahead or 0), float(seen or 0))
