"""Whether a history has kept the promises."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from chaos.batches import gathered, halved, hasty, oversized
from chaos.checker import ACCEPTED, TOLERANCE, Violation, check, check_counts
from chaos.ends import final_of
from chaos.fairness import crowded, rushed, unfair, woken
from chaos.functions import FUNCTIONS
from chaos.history import Event
from chaos.shares import SIMULATED

from maas_backoff import TaskBackoffScheduler
from simulation.changes import Changes
from simulation.plan import LEASE

if TYPE_CHECKING:
    from simulation.world import World

SHARE_TOLERANCE = 8.0
"""Mean costs, divided by weights, that one tenant may be ahead of another: a burst."""

GRACE = LEASE / 4
"""Seconds after an outage in which no live worker may lose a task: half of what the reaper waits."""

MILD = {"outage", "drain", "deploy", "slow", "restart", "flush", "pause", "limit"}
"""Faults after which no live worker may lose a task, however long the server was away."""


async def judge(world: "World", changes: Changes, reader: TaskBackoffScheduler) -> None:
    """Add what has broken a promise to the violations."""
    finals = world.finals
    for task_id in sorted({event["id"] for event in world.events if "id" in event}):
        task = await reader.get_task(task_id)
        if task is not None:
            finals[task_id] = final_of(task)
    found = check(world.events, finals)
    texts = await world.readers.judge(finals, loses=world.loses) if world.readers is not None else []
    if world.loses:
        # Acknowledged writes are gone. Still nothing is stuck, and each worker runs tasks of its kinds only.
        found = [one for one in found if one.promise in {"stuck", "foreign"}]
    else:
        found += late_starts(world.events)
        found += crowded(world.events, SIMULATED)
        found += rushed(world.events, SIMULATED)
        if world.plan.batches:
            kinds_of_batches = {kind.name: kind for kind in world.plan.batches.kinds}
            found += oversized(world.events, kinds_of_batches)
            found += gathered(world.events, kinds_of_batches)
            found += halved(world.events)
            if not world.jumps:
                found += hasty(world.events, kinds_of_batches)
        if not world.jumps:
            found += robbed(world.events)
            found += hurried(world.events)
            found += woken(world.events)
        if changes.flood_ids:
            found += unfair(world.events, changes.flood_ids, changes.flooded, changes.places, SHARE_TOLERANCE)
    if world.jumps:
        found = [one for one in found if one.promise not in {"early", "overdue"}]
    kinds = {event["kind"] for event in world.events if event["event"] == "invoke"}
    if world.faults.keys() <= MILD and "poison" not in kinds:
        lost = [task_id for task_id, final in finals.items() if final.lost and not _went_unheard(world, task_id)]
        found += [Violation("needless", task_id, "lost, although no worker was") for task_id in lost]
    world.violations += [*found, *texts]
    stats = await reader.get_queue_stats()
    names = ("pending", "processing", "completed", "failed", "cancelled")
    world.violations += check_counts(finals, {name: getattr(stats, f"{name}_count") for name in names}, "stats")
    if not world.loses:
        totals = {name: int(world.server.one("HGET", "maas:{chaos}:meta", name) or 0) for name in names[2:]}
        world.violations += check_counts(finals, totals, "totals")
    functions = (
        [*FUNCTIONS[1:], *(kind.name for kind in world.plan.batches.kinds)] if world.plan.batches else FUNCTIONS[1:]
    )
    of_kinds = [f"k:{kind}:{name}" for kind in functions for name in ("ready", "suspects")]
    for name in ("ready", "suspects", "scheduled", "leases", "external", "deadlines", *of_kinds):
        if world.server.one("ZCARD", f"maas:{{chaos}}:{name}"):
            world.violations.append(Violation("counts", "", f"{name} is not empty"))


def _went_unheard(world: "World", task_id: str) -> bool:
    """Whether the attempts of a task that were lost are those of workers that ended while messages were lost.

    A worker that ends repeats its last settlements for some seconds only.
    """
    mine = [event for event in world.events if event.get("id") == task_id]
    settled = {event["token"] for event in mine if event["event"] == "settle" and event["answer"] in ACCEPTED}
    unheard = {event["worker"] for event in mine if event["event"] == "start" and event["token"] not in settled}
    may_be_lost = world.network.noise > 0 or world.faults.keys() & {"slow", "outage", "restart"}
    return bool(may_be_lost) and unheard <= world.dismissed


def late_starts(events: list[Event]) -> Iterator[Violation]:
    """No run begins after another worker has begun a later one."""
    newest: dict[str, int] = {}
    for event in events:
        if event["event"] == "start":
            if event["token"] < newest.get(event["id"], 0):
                yield Violation("late", event["id"], f"attempt {event['attempt']} began after a later one")
            newest[event["id"]] = max(event["token"], newest.get(event["id"], 0))


def robbed(events: list[Event]) -> Iterator[Violation]:
    """A lease that was renewed is kept until its end, while its worker lives."""
    for first, now, until in _losses_of_the_living(events):
        if now < until - TOLERANCE:
            yield Violation("robbed", first["id"], f"attempt {first['attempt']} had a lease, and was lost")


def hurried(events: list[Event]) -> Iterator[Violation]:
    """After an outage of the server, live workers get time to renew their leases before any task counts as lost."""
    outages = [event for event in events if event["event"] == "away" and event["time"] - event["since"] > LEASE]
    for first, now, until in _losses_of_the_living(events):
        for away in outages:
            # When the outage began, the attempt had its lease.
            had_lease = first["time"] < away["since"] < until
            if had_lease and away["time"] < now < away["time"] + GRACE:
                yield Violation("hurried", first["id"], f"attempt {first['attempt']} was lost in an outage")


def _losses_of_the_living(events: list[Event]) -> Iterator[tuple[Event, float, float]]:
    """Return the starts of attempts that were lost although their worker lives.

    Each with the start of the next attempt, and the end of the lost one's lease: two times.
    """
    dead = {event["worker"]: event["time"] for event in events if event["event"] == "died"}
    until: dict[int, float] = {}
    before: dict[str, Event] = {}
    for event in events:
        if event["event"] == "renewed":
            until[event["token"]] = event["until"]
        elif event["event"] == "start":
            first, now = before.get(event["id"]), event["time"]
            before[event["id"]] = event
            if first is None or event["lost"] <= first["lost"] or first["attempt"] + 1 != event["attempt"]:
                continue
            if dead.get(first["worker"], math.inf) > now:
                yield first, now, until.get(first["token"], 0)
