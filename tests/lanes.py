"""The invariants of tenants and limits: relations between the keys of a queue that hold after each script.

`check` reads all keys of a queue and compares them; `check_keys` compares keys that were read before.
docs/data-model.md describes the keys.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import attrs

from maas_backoff.domain.lane import Lane
from maas_backoff.store.creation import Creation
from maas_backoff.store.keys import Keys

_INDEX = re.compile(r"(?:k:[^:]+:)?(?:ready|suspects)|gpu:(?:[^/]+/)?~?\d+(?::\d+)?|scheduled")
_OF_LANES = re.compile(r".*(?:\||:turns$|:limited\|).*|shut:.*")
_READ = """
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local kind = redis.call('TYPE', key).ok
  if kind == 'hash' then
    found[#found + 1] = { key, kind, redis.call('HGETALL', key) }
  elseif kind == 'zset' then
    found[#found + 1] = { key, kind, redis.call('ZRANGE', key, 0, -1, 'WITHSCORES') }
  end
end
return found
"""
"""One call reads all: a model asks after each of its steps."""


@attrs.frozen
class Limited:
    """The state of one limit, from its keys."""

    most: float
    interval: float
    burst: float
    unit: float
    unit_burst: float
    until: float
    trial: int
    use: int
    at: float
    unit_at: float

    def has_place(self) -> bool:
        """Return whether the running tasks leave a place, apart from rates."""
        return (not self.most or self.use < self.most) and (not self.trial or self.use < self.trial)

    def opens(self, now: float) -> float:
        """Return the moment from which a task may start, if no other task starts or ends; infinity: never."""
        if not self.has_place() and self.until <= now:
            return math.inf
        moments = [now, self.until]
        if self.until <= now and self.interval:
            moments.append(self.at - self.burst)
        if self.until <= now and self.unit:
            moments.append(self.unit_at - self.unit_burst)
        return max(moments)


@attrs.define
class Lanes:
    """All keys of a queue at one moment."""

    hashes: dict[str, dict[str, str]]
    zsets: dict[str, dict[str, float]]

    @classmethod
    def read(cls, client: Any, queue: str = "test") -> "Lanes":
        """Read the keys of a queue with a blocking client."""
        prefix = Keys(queue).prefix
        found = cls({}, {})
        for name, kind, flat in sorted(client.eval(_READ, 0, f"{prefix}*".replace("[", "\\["))):
            own = name.decode().removeprefix(prefix)
            pairs = zip(flat[::2], flat[1::2], strict=True)
            if kind == b"hash":
                found.hashes[own] = {k.decode(): v.decode("utf-8", "replace") for k, v in pairs}
            else:
                found.zsets[own] = {member.decode(): float(score) for member, score in pairs}
        return found

    def hash(self, name: str) -> Mapping[str, str]:
        return self.hashes.get(name, {})

    def zset(self, name: str) -> Mapping[str, float]:
        return self.zsets.get(name, {})

    @property
    def tasks(self) -> dict[str, dict[str, str]]:
        return {name[2:]: fields for name, fields in self.hashes.items() if name.startswith("t:") and "p" in fields}

    @property
    def lanes(self) -> dict[str, dict[str, float]]:
        """The lanes with their entries, by "<index>|<lane>"."""
        return {name: entries for name, entries in self.zsets.items() if is_index(name) and "|" in name}

    def limit(self, name: str) -> Limited:
        of_class = f"{name.partition(':')[0]}:*"
        settings = self.hash("limits")
        most, interval, burst, unit, unit_burst = map(
            float, (settings.get(name) or settings.get(of_class) or "0 0 0 0 0").split()[:5]
        )
        until, trial, *_ = (self.hash("closed").get(name) or "0 0").split()
        arrivals = self.zset("arrivals")
        use = int(self.hash("use").get(name, 0))
        at, unit_at = arrivals.get(f"r {name}", 0), arrivals.get(f"u {name}", 0)
        return Limited(most, interval, burst, unit, unit_burst, float(until), int(trial), use, at, unit_at)

    def waiting_for(self, limit: str) -> set[str]:
        """Return the lanes, and indexes of suspects, that wait for a limit."""
        queues = [entries for name, entries in self.zsets.items() if name.startswith(f"shut_lanes:{limit}|")]
        return {member for entries in queues for member in entries}

    def is_paused(self, tenant: str) -> bool:
        return " " in self.hash("tenants").get(tenant, "")


def lane_of(fields: Mapping[str, str]) -> Lane:
    """Return the lane of a task, by its fields."""
    return _place_of(fields["p"])[1]


@lru_cache(1000)  # the simulation looks at the same tasks again and again
def _place_of(creation: str) -> tuple[str, Lane, str]:
    """Return the kind of a task, its lane, and the name of its lane."""
    found = Creation.of(creation.encode())
    lane = Lane.of(found.lane)
    return found.kind, lane, name_of(lane)


def name_of(lane: Lane) -> str:
    """Return the name of a lane: "tenant", or "tenant|limit,limit"; empty for none."""
    return lane.record.partition(" ")[0]


@lru_cache(1000)
def is_index(name: str) -> bool:
    """Return whether a key, without the queue's prefix, has the ids of pending tasks: an index, or a lane of one."""
    return _INDEX.fullmatch(name.partition("|")[0]) is not None


def limits_of(name: str) -> list[str]:
    """Return the limits in the name of a lane."""
    return name.partition("|")[2].split(",") if "|" in name else []


def check(client: Any, now: float, queue: str = "test") -> Lanes:
    """Check all invariants of a queue at `now`, in ms by its clock; return its keys."""
    found = Lanes.read(client, queue)
    check_keys(found, now)
    return found


def check_keys(found: Lanes, now: float) -> None:
    """Check all invariants of the keys of a queue at `now`, in ms by its clock."""
    tasks = found.tasks
    pending = {task_id: fields for task_id, fields in tasks.items() if _state(fields) == "pending"}
    _check_indexes(found, pending)
    _check_counts(found, pending)
    _check_turns(found)
    _check_running(found, tasks)
    _check_waits(found, now)
    if not found.lanes:
        left = {name for name in found.zsets if _OF_LANES.fullmatch(name)} | found.zset("lanes").keys()
        # Suspects wait for limits without a lane, and plain tasks are the last to have a turn.
        waits = {name: any("|" in it for it in found.waiting_for(name)) for name in found.zset("opens")}
        left -= {
            name
            for name in left
            if name.startswith("shut") and not waits[re.split(r"[:|]", name, maxsplit=1)[1].split("|")[0]]
        }
        left -= {name for name in left if name.endswith(":turns") and found.zset(name).keys() == {""}}
        assert not left and not found.hash("laned"), f"left without lanes: {left}"


def _state(fields: Mapping[str, str]) -> str:
    return fields.get("s", "pending")


def _check_indexes(found: Lanes, pending: Mapping[str, Mapping[str, str]]) -> None:
    """Each pending task is in one index: in its own lane, if it is due, has one and is no suspect."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name, entries in found.zsets.items():
        if is_index(name):
            for member in entries:
                places[member].append(name)
    assert places.keys() == pending.keys(), "entries and pending tasks"
    for task_id, fields in pending.items():
        (place,) = places[task_id]
        kind, _, lane = _place_of(fields["p"])
        index, _, own = place.partition("|")
        is_suspect = fields.get("k", "0").endswith(" 1")
        if index == "scheduled" or is_suspect or not lane:
            assert place == index, f"{task_id} is in {place}"
        else:
            assert own == lane, f"{task_id} of {lane} is in {place}"
        if index.startswith("gpu:"):
            assert index[4:].rpartition("/")[0] == kind
            assert index[4:] in found.hash("demands"), f"{index} is not listed"
        elif index != "scheduled":
            assert index.rpartition(":")[0] == (f"k:{kind}" if kind else "")


def _check_counts(found: Lanes, pending: Mapping[str, Mapping[str, str]]) -> None:
    laned: Counter[str] = Counter()
    for name, entries in found.lanes.items():
        laned[name.partition("|")[0]] += len(entries)
    assert {name: int(number) for name, number in found.hash("laned").items()} == laned, "tasks in lanes by index"
    waiting = Counter(lane.tenant for lane in map(lane_of, pending.values()) if lane.record)
    assert {name: int(number) for name, number in found.hash("waiting").items()} == waiting, "waiting tasks by tenant"


def _check_turns(found: Lanes) -> None:
    """Claims find each lane: its tenant has a turn, or is paused; or the lane waits for one of its limits."""
    lanes = found.lanes
    assert found.zset("lanes").keys() == lanes.keys(), "`lanes`"
    in_turn: defaultdict[str, set[str]] = defaultdict(set)
    waiting = {
        limit: found.waiting_for(limit) for limit in {one for key in lanes for one in limits_of(key.partition("|")[2])}
    }
    for key, entries in lanes.items():
        index, _, lane = key.partition("|")
        tenant, limits = lane.partition("|")[0], limits_of(lane)
        limited = found.zset(f"{index}:limited|{tenant}")
        is_listed = not limits or lane in limited
        waits_for = [limit for limit in limits if key in waiting[limit]]
        assert is_listed or waits_for, f"{key} is neither open nor waits for a limit"
        if is_listed:
            has_turn = tenant in found.zset(f"{index}:turns")
            assert has_turn != found.is_paused(tenant), f"{key}: {tenant} has a turn: {has_turn}"
            in_turn[index].add(tenant)
        if limits and is_listed:
            assert limited[lane] <= min(entries.values()), f"{key} begins earlier than its tenant knows"
    for name, entries in found.zsets.items():
        index, _, tenant = name.partition(":limited|")
        if index != name:
            assert {f"{index}|{lane}" for lane in entries} <= lanes.keys(), f"lanes in {name} that are gone"
            assert all(lane.partition("|")[0] == tenant for lane in entries)
        if name.endswith(":turns"):
            index = name.removesuffix(":turns")
            # Plain tasks are those of the tenant ''.
            known = in_turn[index] | ({""} if found.zset(index) or lanes else set())
            assert entries.keys() <= known, f"{name} has tenants without open lanes: {entries.keys() - known}"


def _check_running(found: Lanes, tasks: Mapping[str, Mapping[str, str]]) -> None:
    """Each running task with limits has its place in them, and nothing else has."""
    held = found.hash("held")
    running = {task_id for task_id in found.zset("leases") if _state(tasks[task_id]) == "processing"}
    limited = {task_id for task_id in running if lane_of(tasks[task_id]).limits}
    assert held.keys() == limited, "tasks with places in limits"
    for task_id, text in held.items():
        assert text.split() == lane_of(tasks[task_id]).record.split()
    use = Counter(limit for text in held.values() for limit in limits_of(text.partition(" ")[0]))
    assert {name: int(number) for name, number in found.hash("use").items()} == use, "running tasks by limit"


def _check_waits(found: Lanes, now: float) -> None:
    """Each limit with lanes that wait for it is looked at when it has room, and not later."""
    waits = {name.removeprefix("shut:"): entries for name, entries in found.zsets.items() if name.startswith("shut:")}
    opens, lanes = found.zset("opens"), found.lanes
    assert opens.keys() == waits.keys(), "limits for which lanes wait"
    for name, tenants in waits.items():
        queues = {tenant: found.zset(f"shut_lanes:{name}|{tenant}") for tenant in tenants}
        assert all(queues.values()), f"tenants without lanes that wait for {name}"
        assert found.waiting_for(name) == {member for queue in queues.values() for member in queue}
        members = {member for member in found.waiting_for(name) if "|" in member}
        assert members <= lanes.keys(), f"lanes that wait for {name} and are gone"
        assert all(name in limits_of(member.partition("|")[2]) for member in members)
        due = found.limit(name).opens(now)
        assert opens[name] <= due + 1, f"{name} has room at {due}, and is looked at at {opens[name]}"


def windows(starts: Iterable[float], period: float) -> int:
    """Return the most starts in a half-open stretch of the period; `starts` are moments in order."""
    moments = [*starts]
    most = first = 0
    for n, moment in enumerate(moments):
        while moments[first] <= moment - period:
            first += 1
        most = max(most, n - first + 1)
    return most
