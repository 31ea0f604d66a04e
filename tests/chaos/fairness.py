"""Whether no limit was exceeded in a history, and tenants got their shares. Pure, as checker.py."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from chaos.checker import ACCEPTED, Violation
from chaos.history import Event
from chaos.shares import TENANTS, Limits
from lanes import windows


def _limits_by_task(events: Sequence[Event]) -> dict[str, list[str]]:
    return {event["id"]: event["limits"] for event in events if event["event"] == "invoke" and "limits" in event}


def crowded(events: Sequence[Event], limits: Limits) -> Iterator[Violation]:
    """No more attempts run at once than a limit allows, of those that came to their end and were then settled.

    Such an attempt has had its lease, and its places in limits, all the time. Another one may have lost its lease, its
    child has crashed, or its thread went on after a timeout: then nobody but the server knows when its places were
    free, as others note that later.
    """
    named = _limits_by_task(events)
    ends = {event["token"]: event["time"] for event in events if event["event"] == "end"}
    settles = [event for event in events if event["event"] == "settle" and event["answer"] in ACCEPTED]
    held = {event["token"] for event in settles if ends.get(event["token"], math.inf) <= event["time"]}
    running: defaultdict[str, set[int]] = defaultdict(set)
    for event in events:
        if event["event"] not in {"start", "end"} or event["token"] not in held:
            continue
        for limit in named.get(event["id"], []):
            most = limits.most_of(limit)
            if event["event"] == "end":
                running[limit].discard(event["token"])
            elif most is not None:
                running[limit].add(event["token"])
                if len(running[limit]) > most:
                    yield Violation("crowded", event["id"], f"{len(running[limit])} of {limit} run at {event['time']}")


def rushed(events: Sequence[Event], limits: Limits) -> Iterator[Violation]:
    """No stretch of time has more starts than a rate allows. A token is the time of its claim, in microseconds."""
    named = _limits_by_task(events)
    claims: defaultdict[str, set[int]] = defaultdict(set)
    for event in events:
        if event["event"] == "start":
            for limit in named.get(event["id"], []):
                claims[limit].add(event["token"])
    for limit, (most, seconds) in limits.rates.items():
        found = windows(sorted(claims[limit]), seconds * 1_000_000)
        if found > most:
            yield Violation("rushed", "", f"{found} tasks of {limit} started in {seconds} s, not {most}")


def unfair(
    events: Sequence[Event],
    flood: Mapping[str, Sequence[str]],
    since: int,
    places: Mapping[str, float],
    tolerance: float,
) -> Iterator[Violation]:
    """Tenants get shares by weight, while all of them have waiting tasks.

    `flood` has tasks of each tenant without limits, all of them created before the token `since`. At that time, the
    tenants stood at these `places`. None is served that is far ahead of another one. If an attempt was lost, its
    claim is in no event, and nothing is said.
    """
    if any(event.get("lost") for event in events if event["event"] == "start"):
        return
    tenants = {event["id"]: (event["tenant"], event["cost"]) for event in events if event.get("tenant") in flood}
    waiting = {tenant: set(task_ids) for tenant, task_ids in flood.items()}
    shares = {tenant: places[tenant] for tenant in flood}
    largest = max(cost / TENANTS[tenant] for tenant, cost in tenants.values())
    for start in sorted((event for event in events if event["event"] == "start"), key=lambda one: int(one["token"])):
        tenant, cost = tenants.get(start["id"], ("", 1))
        if not tenant:
            continue
        waiting[tenant].discard(start["id"])
        if start["token"] > since:
            if shares[tenant] - min(shares.values()) > largest + tolerance:
                yield Violation("unfair", start["id"], f"places by shares: {shares}")
                return
            shares[tenant] += cost / TENANTS[tenant]
        if not all(waiting.values()):
            return


def woken(events: Sequence[Event]) -> Iterator[Violation]:
    """No task of a paused tenant or kind starts. Pauses are noted with the server's times between which they hold."""
    invoked = {event["id"]: event for event in events if event["event"] == "invoke"}
    starts = [event for event in events if event["event"] == "start"]
    for pause in (event for event in events if event["event"] == "paused"):
        for start in starts:
            is_inside = pause["since"] + 1 < start["token"] / 1000 < pause["until"] - 1
            paused = "tenant" if "tenant" in pause else "function"
            if is_inside and invoked.get(start["id"], {}).get(paused) == pause[paused]:
                yield Violation("woken", start["id"], f"started while its {paused} {pause[paused]} was paused")
