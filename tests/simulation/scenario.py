"""One history: a plan is carried out, and its outcome is judged."""

import asyncio
import contextlib
import gc
import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
from chaos.checker import Violation
from chaos.functions import FUNCTIONS
from chaos.history import Event

from maas_backoff import TaskBackoffScheduler, TaskKind
from simulation.batches import BatchKind, declare
from simulation.changes import Changes
from simulation.faults import Faults
from simulation.judge import judge
from simulation.lane_look import LaneLook
from simulation.loop import Node, NothingLeft
from simulation.mirror import Mirror
from simulation.mutants import MUTANTS
from simulation.network import RealServer
from simulation.plan import LEASE, Plan, Step
from simulation.producers import create
from simulation.stand_ins import simulated
from simulation.streams import Readers
from simulation.world import World

PATIENCE = 3000.0
"""Seconds of virtual time, after all is well again, in which a task must be settled, until all have ended."""

MOST_PATIENCE = 10
"""All tasks must have ended in so many times PATIENCE: one worker with poison in its batches has needed 3,300 s."""


@attrs.frozen
class Outcome:
    """The result of a history."""

    plan: Plan
    violations: list[Violation]
    events: list[Event]
    statuses: Counter[str]
    worker_seconds: float
    faults: Counter[str]

    @property
    def fingerprint(self) -> str:
        """The same for the same history, whatever process has run it."""
        return hashlib.sha256(repr(self.events).encode()).hexdigest()[:16]


class History:
    """The steps of a plan, one after the other, until all tasks have ended."""

    def __init__(self, world: World, *, stops_early: bool = False) -> None:
        """With `stops_early`, the history ends when a promise is seen to be broken."""
        self._world = world
        self._stops_early = stops_early
        self._faults = Faults(world)
        self._changes = Changes(world)
        self._steps = {
            "pause": self._changes.pause,
            "pause_kind": self._changes.pause_kind,
            "limit": self._changes.limit,
            "flood": self._changes.flood,
        }
        """Changes by a person, and steps that a producer takes once."""
        self._look = LaneLook(world, Mirror(world.server.path, "chaos")) if world.plan.has_tenants else None
        self._creating: list[asyncio.Task[Any]] = []
        self._producers: list[TaskBackoffScheduler] = []
        self._kinds: list[dict[str, TaskKind[Any, Any]]] = []
        """Those of each producer, by name."""
        self._nodes: list[Node] = []

    async def run(self) -> None:
        """Carry out the plan, and judge its outcome."""
        world = self._world
        if self._look is not None:
            await self._changes.set_shares(world.scheduler())
            world.network.when_changed = self._look.at_message
        for place in range(world.plan.workers):
            await world.start_worker(place)
        self._start_producers()
        looks = None if world.look is None else world.loop.spawn(None, world.look.run())
        if world.plan.has_streams:
            world.readers = Readers(world, world.scheduler()._client.store.streams)
        self._nodes = [world.new_node(f"producer-{n}/") for n in range(2)]
        start = world.loop.now
        for step in world.plan.steps:
            await asyncio.sleep(max(0.0, start + step.at - world.loop.now))
            if self._has_shown_enough():
                return
            self._take(step, random.Random(step.seed + step.what))
        await asyncio.sleep(3 * LEASE)  # the longest fault
        world.heal()
        await asyncio.gather(*self._creating)
        reader = world.scheduler()
        await self._drain(reader)
        world.worker_seconds = (world.loop.now - start) * world.plan.workers
        if looks is not None:
            looks.cancel()
        if not self._has_shown_enough():
            await judge(world, self._changes, reader)

    def _has_shown_enough(self) -> bool:
        return self._stops_early and bool(self._world.violations)

    def _start_producers(self) -> None:
        world = self._world
        of_batches = world.plan.batches.kinds if world.plan.batches else ()
        self._producers = [world.scheduler(), world.scheduler()]
        self._kinds = [{name: world.declare(one, name) for name in FUNCTIONS if name} for one in self._producers]
        for one, own in zip(self._producers, self._kinds, strict=True):
            own |= {kind.name: declare(world, one, kind) for kind in of_batches}

    def _take(self, step: Step, choice: random.Random) -> None:
        world = self._world
        if step.what in self._steps:
            world.faults[step.what] += 1
            self._creating.append(world.loop.spawn(self._nodes[0], self._steps[step.what](self._producers[0], choice)))
        elif step.what == "join":
            assert world.plan.batches is not None
            n = choice.randrange(2)
            kind, number = world.plan.batches.group(choice)
            for m in range(number):
                task_id = f"{step.seed}-{m}"
                self._create(n, task_id, random.Random(task_id), kind)
        elif step.what == "create":
            self._create(choice.randrange(2), step.seed, choice)
        else:
            world.faults[step.what] += 1
            if world.look is not None:
                world.look.disturb()
            getattr(self._faults, step.what)(choice)

    def _create(self, n: int, task_id: str, choice: random.Random, batch: BatchKind | None = None) -> None:
        """Have a producer create a task."""
        creation = create(self._world, self._producers[n], self._kinds[n], task_id, choice, batch)
        self._creating.append(self._world.loop.spawn(self._nodes[n], creation))

    async def _drain(self, reader: TaskBackoffScheduler) -> None:
        world, seen = self._world, 0
        begun = settled_at = world.loop.now
        while not self._has_shown_enough():
            if any(event["event"] == "settle" for event in world.events[seen:]):
                settled_at = world.loop.now
            seen = len(world.events)
            if world.loop.now > min(settled_at + PATIENCE, begun + MOST_PATIENCE * PATIENCE):
                return
            stats = await reader.get_queue_stats()
            if not stats.pending_count and not stats.processing_count:
                return
            if self._look is not None:
                self._look.for_waits()
            await asyncio.sleep(2)

    def close(self) -> None:
        """Close the connection for looks."""
        if self._look is not None:
            self._look.mirror.close()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage before the end of a history: the moment would depend on the histories before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        if was_enabled:
            gc.enable()


def run(plan: Plan, server: RealServer, mutant: str = "") -> Outcome:
    """Run one history; with a `mutant`, of a library with that fault, until a promise is seen to be broken."""
    server.one("FLUSHALL")
    server.forget_scripts()
    world = World(plan, server)
    history = History(world, stops_early=bool(mutant))
    with simulated(world), MUTANTS[mutant]() if mutant else contextlib.nullcontext(), _uncollected():
        try:
            world.loop.run_until_complete(history.run())
        except NothingLeft:
            world.violations.append(Violation("stuck", "", "nothing is left that could happen"))
        statuses = Counter(str(final.status) for final in world.finals.values())
        for task in world.loop.kept:
            task._log_destroy_pending = False  # type: ignore[attr-defined] - what dead nodes have left
        world.loop.kept.clear()
        history.close()
    return Outcome(plan, world.violations, world.events, statuses, world.worker_seconds, world.faults)
