"""Tenants and limits in a history: who has what, and whether no limit was exceeded. Pure, as checker.py."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chaos.checker import ACCEPTED, Violation
from chaos.history import Event
from lanes import windows

TENANTS = {"a": 1.0, "b": 2.0, "c": 5.0}
"""Their weights."""

MOST = {"few": 2, "user:*": 1}
"""Limits of running tasks, which never change."""

RATES = {"pace": (20, 60.0)}
"""Limits of starts in so many seconds, which never change."""

LOOSE = "loose"
"""A limit that comes and goes."""

LIMITS: Sequence[dict[str, float]] = (
    *({}, {}, {}, {"few": 1}, {"user:1": 1}, {"user:2": 1, "few": 1}),
    *({"pace": 1}, {"few": 1, "pace": 1}, {LOOSE: 1}, {LOOSE: 1, "user:1": 1}),
)


def share_of_task(choice: random.Random) -> dict[str, Any]:
    """Return the options of a task: a tenant, a cost and limits, each maybe none."""
    found: dict[str, Any] = {"limits": choice.choice(LIMITS), "cost": choice.choice([1, 1, 7])}
    tenant = choice.choice(["", *TENANTS])
    return found | ({"tenant": tenant} if tenant else {})


def most_of(limit: str) -> int | None:
    """Return how many tasks of a limit may run at once, if that never changes."""
    return MOST.get(limit) or MOST.get(f"{limit.partition(':')[0]}:*")


def _limits_by_task(events: Sequence[Event]) -> dict[str, list[str]]:
    return {event["id"]: event["limits"] for event in events if event["event"] == "invoke" and "limits" in event}


def crowded(events: Sequence[Event]) -> Iterator[Violation]:
    """No more attempts run at once than a limit allows, of those whose settlement was accepted.

    Such an attempt has had its lease, and its places in limits, all the time. Of another one, nobody but the server
    knows when its lease has ended.
    """
    limits = _limits_by_task(events)
    held = {event["token"] for event in events if event["event"] == "settle" and event["answer"] in ACCEPTED}
    running: defaultdict[str, set[int]] = defaultdict(set)
    for event in events:
        if event["event"] not in {"start", "end"} or event["token"] not in held:
            continue
        for limit in limits.get(event["id"], []):
            most = most_of(limit)
            if event["event"] == "end":
                running[limit].discard(event["token"])
            elif most is not None:
                running[limit].add(event["token"])
                if len(running[limit]) > most:
                    yield Violation("crowded", event["id"], f"{len(running[limit])} of {limit} run at {event['time']}")


def rushed(events: Sequence[Event]) -> Iterator[Violation]:
    """No stretch of time has more starts than a rate allows. A token is the time of its claim, in microseconds."""
    limits = _limits_by_task(events)
    claims: defaultdict[str, set[int]] = defaultdict(set)
    for event in events:
        if event["event"] == "start":
            for limit in limits.get(event["id"], []):
                claims[limit].add(event["token"])
    for limit, (most, seconds) in RATES.items():
        found = windows(sorted(claims[limit]), seconds * 1_000_000)
        if found > most:
            yield Violation("rushed", "", f"{found} tasks of {limit} started in {seconds} s, not {most}")


def unfair(
    events: Sequence[Event], flood: Mapping[str, Sequence[str]], since: int, tolerance: float
) -> Iterator[Violation]:
    """Tenants get shares by weight, while all of them have waiting tasks.

    `flood` has tasks of each tenant without limits, all of them created before the token `since`. Nothing has gone
    wrong: all claims are known.
    """
    tenants = {event["id"]: (event["tenant"], event["cost"]) for event in events if event.get("tenant") in flood}
    waiting = {tenant: set(task_ids) for tenant, task_ids in flood.items()}
    shares = dict.fromkeys(flood, 0.0)
    largest = max(cost / TENANTS[tenant] for tenant, cost in tenants.values())
    for start in sorted((event for event in events if event["event"] == "start"), key=lambda one: int(one["token"])):
        tenant, cost = tenants.get(start["id"], ("", 1))
        if not tenant:
            continue
        waiting[tenant].discard(start["id"])
        if start["token"] > since:
            shares[tenant] += cost / TENANTS[tenant]
            if max(shares.values()) - min(shares.values()) > largest + tolerance:
                yield Violation("unfair", start["id"], f"shares by weight: {shares}")
                return
        if not all(waiting.values()):
            return


def woken(events: Sequence[Event]) -> Iterator[Violation]:
    """No task of a paused tenant starts. Pauses are noted with the times of the server between which they hold."""
    tenants = {event["id"]: event.get("tenant", "") for event in events if event["event"] == "invoke"}
    starts = [event for event in events if event["event"] == "start"]
    for pause in (event for event in events if event["event"] == "paused"):
        for start in starts:
            is_inside = pause["since"] + 1 < start["token"] / 1000 < pause["until"] - 1
            if is_inside and tenants.get(start["id"]) == pause["tenant"]:
                yield Violation("woken", start["id"], f"started while its tenant {pause['tenant']} was paused")
