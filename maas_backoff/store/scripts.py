"""The Lua scripts: loaded once, called by digest. Each file's header names its keys, arguments and reply."""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any, Generic, TypeVar

import attrs

from maas_backoff.store.replies import (
    BreakdownReply,
    DemandsReply,
    ExpireReply,
    GetReply,
    HistoryReply,
    ListReply,
    PurgeReply,
    ReapReply,
    RenewReply,
    SettleReply,
    SharesReply,
    StatsReply,
    StreamReply,
    UpcomingReply,
)

_R_co = TypeVar("_R_co", covariant=True)

_FOLDER = files("maas_backoff.store") / "lua"
_INCLUDE = re.compile(r"^--#include (\w+)\n", re.MULTILINE)


@attrs.frozen
class Script(Generic[_R_co]):
    """One script. `keys` and `args` are the names in the header of its file, in order."""

    name: str
    keys: tuple[str, ...]
    args: tuple[str, ...]
    text: str = attrs.field(repr=False)
    digest: str = attrs.field(repr=False)
    reply: Callable[[Any], _R_co] = attrs.field(repr=False)
    """Returns the typed value of a reply."""


def _load(name: str, keys: str, args: str, reply: Callable[[Any], _R_co]) -> Script[_R_co]:
    """Return the script of `lua/<name>.lua`; `keys` and `args` are names, separated by spaces."""
    text = _INCLUDE.sub(lambda match: _text(match[1]), _text(name))
    digest = hashlib.sha1(text.encode()).hexdigest()  # noqa: S324 - EVALSHA's name for a text, not a secret
    return Script(name, tuple(keys.split()), tuple(args.split()), text, digest, reply)


@cache  # most scripts include the same parts: without it, these are 109 reads of 42 files
def _text(name: str) -> str:
    """Return the text of a file without comments."""
    return without_comments((_FOLDER / f"{name}.lua").read_text(encoding="utf-8"))


def without_comments(text: str) -> str:
    """Return a script without comments, empty lines and indents. Lines that include other files are no comments.

    Comments are half of the text. The text is sent to a server that does not know the script, and in each preflight.
    """
    # A regular expression takes four times as long, which is 3 ms of each start of a process.
    body = text.partition("]]\n")[2] if text.startswith("--[[") else text
    lines = [line.lstrip(" ") for line in body.splitlines(keepends=True)]
    return "".join(line for line in lines if line != "\n" and (line[:2] != "--" or line.startswith("--#include")))


def _words(reply: list[bytes]) -> list[bytes]:
    return reply


def _numbers(reply: list[int]) -> list[int]:
    return reply


def _word(reply: bytes | None) -> bytes | None:
    return reply


def _several(reply: Any) -> Any:
    """Return a reply unchanged: it has several forms."""
    return reply


ENQUEUE = _load(
    "enqueue",
    "scheduled policies meta",
    "now prefix policy policy_text max_queue_size max_tenant_queue_size all_or_none groups",
    _several,
)
SETTLE = _load(
    "settle",
    "scheduled leases external completed failed cancelled meta watched totals request",
    "now prefix settle_id worker lease_ms request_id claims suspicion max_finished fits tally kinds used breakdown"
    " groups",
    SettleReply._make,
)
RENEW = _load(
    "renew", "leases workers info meta host name quiet", "now prefix worker info lease_ms process", RenewReply._make
)
LEAVE = _load("leave", "workers info scheduled demands host", "prefix worker kinds", _word)
EXPIRE = _load("expire", "leases workers info host", "prefix worker cursor", ExpireReply._make)
REAP = _load("reap", "leases completed failed cancelled meta", "now prefix gap_ms grace_ms limit", ReapReply._make)
CANCEL = _load("cancel", "task call meta", "prefix id keep_ms call_ms token", _word)
PROGRESS = _load("progress", "meta watched", "prefix", _numbers)
EMIT = _load("emit", "meta watched", "prefix", _numbers)
STREAM = _load("stream", "watched meta", "now prefix watch_ms limit", StreamReply._make)
GET = _load("get", "watched meta", "now prefix watch_ms limit", GetReply._make)
LIST = _load("list", "meta", "now prefix limit index score skip reverse brief due_only", ListReply._make)
STATS = _load("stats", "scheduled leases external completed failed cancelled meta", "now prefix", StatsReply._make)
DELETE = _load("delete", "scheduled external completed failed cancelled watched call meta", "prefix call_ms", _numbers)
PURGE = _load("purge", "meta watched call", "prefix status limit call_ms", PurgeReply._make)
PAUSE = _load("pause", "meta call", "now prefix on kind call_ms by", int)
TENANT = _load("tenant", "meta call", "now prefix tenant weight on call_ms by", int)
LIMIT = _load("limit", "meta call", "now prefix name setting call_ms", int)
SHARES = _load("shares", "meta", "now prefix part cursor limit", SharesReply._make)
UPCOMING = _load("upcoming", "scheduled meta", "now step_ms steps", UpcomingReply._make)
HISTORY = _load("history", "totals meta", "now prefix step steps", HistoryReply._make)
BREAKDOWN = _load("breakdown", "meta", "now prefix of step steps name", BreakdownReply._make)
DEMANDS = _load("demands", "demands hold meta", "now prefix suspicion kinds", DemandsReply._make)
HOLD = _load("hold", "hold meta", "now value lease_ms", int)
ORPHANS = _load(
    "orphans",
    "scheduled leases external completed failed cancelled meta",
    "now prefix repair lease_ms result_ttl_s failed_ttl_s",
    _words,
)
FLEET = _load("fleet", "workers meta", "now prefix limit", _words)

QUEUE = (
    *(ENQUEUE, SETTLE, RENEW, LEAVE, EXPIRE, REAP, CANCEL, PROGRESS, EMIT, DEMANDS, HOLD),
    *(GET, STREAM, LIST, STATS, FLEET, UPCOMING, HISTORY, BREAKDOWN),
    *(DELETE, PURGE, PAUSE, TENANT, LIMIT, SHARES, ORPHANS),
)
"""The scripts that work on a queue."""

RESERVE = _load("reserve", "ledger", "now id mib free limit lease_ms settle_ms holder owner rest", _several)
KEEP = _load("keep", "ledger", "now lease_ms seen_ms how", _words)
LEDGER = _load("ledger", "ledger", "now", _several)
POST = _load("post", "ledger", "now field lease_ms value", int)
DOUBT = _load("doubt", "ledger", "now task limit shut_ms reason queue", int)

DEVICE = (RESERVE, KEEP, LEDGER, POST, DOUBT)
"""The scripts that work on the ledger of a GPU, which may be on another node of a Cluster."""

ALL = QUEUE + DEVICE
