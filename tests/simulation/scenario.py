"""One history: what is created, what goes wrong and when, by a seed; and whether it kept the promises."""

import asyncio
import contextlib
import gc
import hashlib
import itertools
import logging
import math
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import attrs
import lanes
import redis
from chaos.batches import gathered, halved, hasty, oversized
from chaos.checker import ACCEPTED, TOLERANCE, Final, Violation, check, check_counts
from chaos.ends import final_of
from chaos.fairness import crowded, rushed, unfair, woken
from chaos.functions import FUNCTIONS, function_of_task, functions_of_worker
from chaos.history import Event
from chaos.setting import POISON_MAX_LOST, setting
from chaos.shares import LOOSE, SIMULATED, TENANTS, noted, share_of_task

from maas_backoff import StorageError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskKind, TaskSpec
from maas_backoff.common.orphans import Origin
from maas_backoff.domain.settlement import Settlement
from maas_backoff.store.batch import Settle
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.lease import Lease
from maas_backoff.worker.loops import exchange
from maas_backoff.worker.outbox import Outbox
from simulation.batches import HOW, Batches, BatchKind, declare
from simulation.look import Look
from simulation.loop import Node, NothingLeft, SimulatedLoop, empty_context
from simulation.mutants import MUTANTS
from simulation.network import CLOCK, START_MS, Network, RealServer, SimulatedLink
from simulation.streams import Readers, how_of, say

LEASE = 30.0

SECONDS = 400.0
"""How long tasks are created and things go wrong."""

PATIENCE = 3000.0
"""Seconds of virtual time, after all is well again, in which everything must end."""

KINDS = {
    "plain": 60,
    "flaky": 20,
    "doomed": 5,
    "delayed": 8,
    "regretted": 5,
    "interrupted": 3,
    "poison": 1,
    "limited": 12,
}

FAULTS = {
    "kill": 4,
    "outage": 1,
    "poweroff": 1,
    "stop": 3,
    "drain": 2,
    "cut": 3,
    "slow": 1,
    "restart": 2,
    "flush": 1,
    "clock": 1,
    "deny": 1,
    "lose_writes": 0.25,
}


SHARE_STEPS = {"pause": 1, "limit": 1}
"""Changes of tenants and limits by a person."""

SHARE_TOLERANCE = 8.0
"""Mean costs, divided by weights, that one tenant may be ahead of another: a burst."""

LOOK_EVERY = 7
"""Messages to the server between two looks at all keys, in a history with tenants; twice as many with batches."""

MOST_WAIT = 45.0
"""Seconds for which a task may wait for nothing, after all is well again: workers look by themselves after 10."""

MILD = {"outage", "drain", "deploy", "slow", "restart", "flush", "pause", "limit"}
"""Faults after which no live worker may lose a task, however long the server was away."""


@attrs.frozen
class Step:
    """One thing that happens: a task that is created, or a fault."""

    at: float
    what: str
    seed: str


@attrs.frozen
class Plan:
    """All that a seed has happen."""

    seed: str
    workers: int
    hosts: int
    noise: float
    steps: tuple[Step, ...]
    homes: tuple[int, ...] = ()
    """For each function, the place whose worker has it at the end. Empty: no task has a kind."""
    has_tenants: bool = False
    """Whether tasks have tenants and limits."""
    batches: Batches | None = None
    """The kinds that run in batches; None: there are none."""
    has_streams: bool = False
    """Whether some tasks emit words, which readers read."""

    @classmethod
    def of(cls, seed: str) -> "Plan":
        choice = random.Random(f"plan {seed}")
        tasks = choice.randint(5, 60)
        found = [Step(choice.uniform(0, SECONDS), "create", f"{seed}-{n}") for n in range(tasks)]
        for n in range(choice.randint(0, 10)):
            what = choice.choices(list(FAULTS), list(FAULTS.values()))[0]
            found.append(Step(choice.uniform(0, SECONDS), what, f"{seed}-{n}"))
        noise = choice.choice([0, 0.005, 0.02, 0.1])
        workers = choice.randint(1, 4)
        hosts, homes = choice.randint(1, workers), ()
        of_kinds = random.Random(f"kinds {seed}")
        if of_kinds.random() < 0.5:
            homes = tuple(of_kinds.randrange(workers) for _ in FUNCTIONS)
            deploys = range(of_kinds.randint(0, 2))
            found += [Step(of_kinds.uniform(0, SECONDS), "deploy", f"{seed}-{n}") for n in deploys]
        of_shares = random.Random(f"shares {seed}")
        has_tenants = of_shares.random() < 0.5
        if has_tenants:
            if of_shares.random() < 0.4:  # nothing goes wrong: the shares can be known
                found, noise, homes = [step for step in found if step.what == "create"], 0, ()
                found.append(Step(of_shares.uniform(0, SECONDS), "flood", f"{seed}-flood"))
            else:
                for n in range(of_shares.randint(0, 4)):
                    what = of_shares.choices(list(SHARE_STEPS), list(SHARE_STEPS.values()))[0]
                    found.append(Step(of_shares.uniform(0, SECONDS), what, f"{seed}-{n}"))
            rush = of_shares.uniform(0, SECONDS)  # many tasks at once: tenants wait for their turns, and for limits
            for n in range(of_shares.randint(0, 60)):
                found.append(Step(rush + of_shares.uniform(0, 20), "create", f"{seed}-rush-{n}"))
        batches, of_batches = None, random.Random(f"batches {seed}")
        if of_batches.random() < 0.4 and all(step.what != "flood" for step in found):
            batches = Batches.of(of_batches, workers)
            if batches.alone:
                found, homes = [step for step in found if step.what != "create"], ()
            for n in range(of_batches.randint(3, 10 if has_tenants else 25)):
                found.append(Step(of_batches.uniform(0, SECONDS), "join", f"{seed}-join-{n}"))
            for n in range(of_batches.randint(0, 2)):
                found.append(Step(of_batches.uniform(0, SECONDS), "pause_kind", f"{seed}-{n}"))
        steps = tuple(sorted(found, key=lambda step: step.at))
        # A server that refuses all parts for a while makes a stream end early.
        has_streams = random.Random(f"streams {seed}").random() < 0.3 and all(step.what != "deny" for step in found)
        return cls(seed, workers, hosts, noise, steps, homes, has_tenants, batches, has_streams)

    def without_batches(self) -> "Plan":
        """Return this plan without all that is about batches."""
        steps = tuple(step for step in self.steps if step.what not in {"join", "pause_kind"})
        return attrs.evolve(self, batches=None, steps=steps)


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


class World:
    """One simulated fleet with its producers, in front of a real server."""

    def __init__(self, plan: Plan, server: RealServer, *, stops_early: bool = False) -> None:
        """With `stops_early`, the history ends when a promise is seen to be broken."""
        self.plan = plan
        self._stops_early = stops_early
        self.loop = SimulatedLoop()
        self.network = Network(self.loop, server, random.Random(f"network {plan.seed}"), plan.noise)
        self.server = server
        self.client = redis.Redis(unix_socket_path=server.path, protocol=3)
        """For looks at the keys, which take no virtual time."""
        self.events: list[Event] = []
        self.workers: dict[int, tuple[Node, TaskBackoffScheduler]] = {}
        self.faults: Counter[str] = Counter()
        self.worker_seconds = 0.0
        self.violations: list[Violation] = []
        self._numbers = iter(range(100, 1_000_000))
        self._nodes: dict[int, Node] = {}
        self.functions: dict[Node, tuple[str, ...]] = {}
        self._starts: Counter[int] = Counter()
        self._is_well = False
        self._loses = False
        self._jumps = False
        self._creating: list[asyncio.Task[Any]] = []
        self.finals: dict[str, Final] = {}
        self._flood: dict[str, list[str]] = {}
        self._paused: set[str] = set()
        self._places: dict[str, float] = {}
        self._dismissed: set[int] = set()
        self._flooded = 0
        """The token of the last claim before the tasks of a flood were there."""
        self._messages = 0
        self._waits: dict[str, float] = {}
        """Since when tasks have waited for nothing."""
        self._renewed: dict[Node, float] = {}
        """When the leases of a worker were renewed last."""
        self.busy: Counter[Node] = Counter()
        """The calls of handlers that run in each worker."""
        self.calls = itertools.count(1)
        """The numbers of the calls for batches."""
        self.look = Look(self) if plan.batches else None
        self.readers: Readers | None = None
        self._changes = {
            "pause": self._pause,
            "pause_kind": self._pause_kind,
            "limit": self._limit,
            "flood": self._flood_all,
        }
        """Changes by a person, and steps that a producer takes once."""

    # Answers to the patched parts of the library

    def monotonic(self) -> float:
        return self.loop.now

    def time(self) -> float:
        """The time of all nodes: the server's clock alone is ever off."""
        return START_MS / 1000 + self.loop.now

    def origin(self) -> Origin | None:
        node = self.loop.node
        return (
            None if node is None or node.number < 100 else Origin("boot", node.name.partition("/")[0], node.number, 1)
        )

    def has_ended(self, origin: Origin) -> bool:
        here = self.origin()
        same_host = here is not None and here.namespace == origin.namespace
        return same_host and self._nodes[origin.pid].dead

    def note(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, "time": self.time(), **fields})

    def note_renewal(self, attempt: Attempt, until: float) -> None:
        """Note that a worker knows a lease to be valid until then."""
        node = self.loop.node
        assert node is not None
        self._renewed[node] = self.loop.now
        self.note("renewed", id=attempt.task.task_id, token=attempt.token, until=until)

    # Nodes

    def new_node(self, name: str) -> Node:
        number = next(self._numbers)
        node = self._nodes[number] = Node(name, number)
        return node

    def config(self) -> TaskBackoffConfig:
        config = setting(1)
        config.gpu.gpus = ()
        config.scheduler.lease, config.scheduler.interval, config.scheduler.shutdown_grace = LEASE, 10, 20
        config.threadpool.exec_timeout = 300
        if self.plan.batches:
            config.threadpool.concurrency = self.plan.batches.slots
        return config

    def scheduler(self) -> TaskBackoffScheduler:
        scheduler = TaskBackoffScheduler(self.config())
        scheduler._client.store.connection.clock = CLOCK
        return scheduler

    async def start_worker(self, place: int) -> None:
        node = self.new_node(f"host-{place % self.plan.hosts}/{place}")

        async def run() -> None:
            scheduler = self.scheduler()
            self.functions[node] = self._functions_at(place)
            batches = {kind.name: kind for kind in self.plan.batches.kinds} if self.plan.batches else {}
            for name in self.functions[node]:
                if name in batches:
                    declare(self, scheduler, batches[name])
                elif name:
                    self._declare(scheduler, name)
                else:
                    scheduler.set_custom_task_handler(self.handler)
            self.workers[place] = node, scheduler
            while True:
                try:
                    await scheduler.start()
                except StorageError:
                    await asyncio.sleep(1)
                    continue
                return

        await self.loop.spawn(node, run())

    def _functions_at(self, place: int) -> tuple[str, ...]:
        """Return the functions of the next worker at a place. At the end, each function has a worker."""
        plan, found = self.plan, ("",)
        self._starts[place] += 1
        needed = self._needed_at(place) if self._is_well else set()
        choice = random.Random(f"functions {plan.seed} {place} {self._starts[place]}")
        if plan.homes:
            found = functions_of_worker(choice, needed)
        if plan.batches:
            own = plan.batches.of_worker(choice, needed)
            # The first place keeps the tasks without a kind, if no other has a home for them.
            is_free = plan.batches.alone or (place > 0 and bool(own) and not plan.homes and choice.random() < 0.3)
            found = own if is_free else (*found, *own)
        return found

    def _needed_at(self, place: int) -> set[str]:
        homes = zip(FUNCTIONS, self.plan.homes, strict=False)
        found = {name for name, home in homes if home % self.plan.workers == place}
        return found | (self.plan.batches.needed_at(place) if self.plan.batches else set())

    def _declare(self, scheduler: TaskBackoffScheduler, name: str) -> TaskKind[Any, Any]:
        """Declare a kind, for a worker that runs its tasks or a producer that creates them."""

        async def run(task: TaskEntity, kind: str, seconds: float, fails: int) -> dict[str, int]:
            return await self._run(task, name, kind, seconds, fails)

        return scheduler.task(name=name)(run)

    async def handler(self, task: TaskEntity) -> dict[str, int]:
        return await self._run(task, "", **task.task_params)

    async def _run(self, task: TaskEntity, function: str, kind: str, seconds: float, fails: int) -> dict[str, int]:
        node = self.note_starts([task], function)
        how = "ok"
        try:
            if kind == "poison":
                self.die(node)
                await asyncio.sleep(0)
            await (say(task, seconds) if self._emits(task.task_id) else asyncio.sleep(seconds))
            if task.retry_count < fails:
                raise ConnectionError("not yet")
        except BaseException as error:
            how = type(error).__name__
            raise
        finally:
            self.note_ends(node, [task], {task.task_id: how})
        return {"token": task.token}

    def _emits(self, task_id: str) -> bool:
        return self.plan.has_streams and bool(how_of(task_id))

    def note_starts(self, tasks: Sequence[TaskEntity], function: str, **more: object) -> Node:
        """Note that a call of a handler begins. Return the worker."""
        node = self.loop.node
        assert node is not None
        self.busy[node] += 1
        for task in tasks:
            about: dict[str, Any] = {
                "attempt": task.attempt,
                "token": task.token,
                "retry": task.retry_count,
                "lost": task.lost_count,
            }
            about |= {"function": function, "functions": self.functions[node]}
            self.note("start", id=task.task_id, worker=node.number, **about, **more)
        return node

    def note_ends(self, node: Node, tasks: Sequence[TaskEntity], how: Mapping[str, str], **more: object) -> None:
        """Note that a call has ended, and how for each of its tasks."""
        self.busy[node] -= 1
        for task in tasks:
            self.note("end", id=task.task_id, token=task.token, how=how[task.task_id], **more)

    def die(self, node: Node, after: float | None = None) -> None:
        """Kill a worker; another takes its place."""
        node.dead = True
        self.note("died", worker=node.number)
        if self.look is not None:
            self.look.disturb()
        place = next(place for place, (other, _) in self.workers.items() if other is node)
        pause = random.Random(f"{self.plan.seed} {node.number}").uniform(0.1, 60) if after is None else after
        self._outside(pause, lambda: self.loop.spawn(None, self.start_worker(place)))

    def _outside(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call something later, whatever becomes of the node that asks for it."""
        before, self.loop.node = self.loop.node, None
        self.loop.call_later(seconds, callback)
        self.loop.node = before

    # Tenants and limits

    async def _set_shares(self, scheduler: TaskBackoffScheduler) -> None:
        for tenant, weight in TENANTS.items():
            await self._patiently(lambda tenant=tenant, weight=weight: scheduler.set_weight(tenant, weight))
        for name, most in SIMULATED.most.items():
            await self._patiently(lambda name=name, most=most: scheduler.set_limit(name, concurrency=most))
        for name, rate in SIMULATED.rates.items():
            await self._patiently(lambda name=name, rate=rate: scheduler.set_limit(name, rate=rate))

    async def _patiently(self, call: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await call()
            except StorageError:
                await asyncio.sleep(0.5)
            else:
                return

    async def _pause(self, scheduler: TaskBackoffScheduler, choice: random.Random) -> None:
        """Pause a tenant for a while, unless another step has paused it."""
        tenant = choice.choice(list(TENANTS))
        if tenant in self._paused:
            return
        self._paused.add(tenant)
        await self._patiently(lambda: scheduler.pause(tenant=tenant))
        since = self.queue_ms()
        await asyncio.sleep(choice.uniform(1, 2 * LEASE))
        until = self.queue_ms()
        await self._patiently(lambda: scheduler.resume(tenant=tenant))
        self._paused.discard(tenant)
        self.note("paused", tenant=tenant, since=since, until=until)

    async def _pause_kind(self, scheduler: TaskBackoffScheduler, choice: random.Random) -> None:
        """Pause a kind that runs in batches for a while, unless another step has paused it."""
        assert self.plan.batches is not None
        kind = choice.choice(self.plan.batches.kinds).name
        if kind in self._paused:
            return
        self._paused.add(kind)
        await self._patiently(lambda: scheduler.pause(kind=kind))
        since = self.queue_ms()
        await asyncio.sleep(choice.uniform(1, 2 * LEASE))
        until = self.queue_ms()
        await self._patiently(lambda: scheduler.resume(kind=kind))
        self._paused.discard(kind)
        self.note("paused", function=kind, since=since, until=until)

    async def _limit(self, scheduler: TaskBackoffScheduler, choice: random.Random) -> None:
        """Set a limit for a while, so that nothing of it runs in the middle of that."""
        await self._patiently(lambda: scheduler.set_limit(LOOSE, concurrency=1, rate=(1, "1h")))
        await asyncio.sleep(choice.uniform(1, 2 * LEASE))
        await self._patiently(lambda: scheduler.set_limit(LOOSE, concurrency=3, rate=(1000, 1)))
        await asyncio.sleep(choice.uniform(1, 2 * LEASE))
        await self._patiently(lambda: scheduler.remove_limit(LOOSE))

    async def _flood_all(self, scheduler: TaskBackoffScheduler, choice: random.Random) -> None:
        """Create many tasks of each tenant: more than the workers have slots."""
        for tenant in TENANTS:
            ids = self._flood[tenant] = [f"flood-{tenant}-{n}" for n in range(choice.randint(60, 90))]
            for task_id in ids:
                about = {
                    "kind": "plain",
                    "delay": 0.0,
                    "fails": 0,
                    "function": "",
                    "tenant": tenant,
                    "cost": 1,
                    "limits": [],
                }
                self.note("invoke", id=task_id, **about)
            params = {"kind": "plain", "fails": 0}
            await scheduler.create_tasks(
                TaskSpec({**params, "seconds": round(choice.uniform(0, 4), 3)}, task_id, tenant=tenant)
                for task_id in ids
            )
            for task_id in ids:
                self.note("acked", id=task_id)
        self._flooded = int(self.server.one("HGET", "maas:{chaos}:meta", "token"))
        now_at = float((self.server.one("HGET", "maas:{chaos}:meta", "turn") or b"0").split()[0])
        for tenant in TENANTS:
            own = float(self.server.one("ZSCORE", "maas:{chaos}:virtual", tenant) or 0)
            self._places[tenant] = max(own, now_at) / 1_000_000

    def _went_unheard(self, task_id: str) -> bool:
        """Whether the attempts of a task that were lost are those of workers that ended while messages were lost.

        A worker that ends repeats its last settlements for some seconds only.
        """
        mine = [event for event in self.events if event.get("id") == task_id]
        settled = {event["token"] for event in mine if event["event"] == "settle" and event["answer"] in ACCEPTED}
        unheard = {event["worker"] for event in mine if event["event"] == "start" and event["token"] not in settled}
        may_be_lost = self.network.noise > 0 or self.faults.keys() & {"slow", "outage", "restart"}
        return bool(may_be_lost) and unheard <= self._dismissed

    def queue_ms(self) -> float:
        ahead, seen = self.server.one("HMGET", "maas:{chaos}:meta", "ahead", "reaped_at")
        return max(self.network.now_ms + float(ahead or 0), float(seen or 0))

    def _look(self) -> None:
        """Check all keys of tenants and limits now and then, and that no limit is exceeded."""
        self._messages += 1
        if self._messages % (2 * LOOK_EVERY if self.plan.batches else LOOK_EVERY):
            return
        try:
            found = lanes.check(self.client, self.queue_ms(), "chaos")
        except AssertionError as error:
            if not any(one.promise == "keys" for one in self.violations):
                self.violations.append(Violation("keys", "", str(error)))
            return
        for name in found.hash("use"):
            most = SIMULATED.most_of(name)
            if most is not None and found.limit(name).use > most and not self._loses:
                self.violations.append(Violation("crowded", "", f"{found.limit(name).use} tasks of {name} run"))

    def _look_for_waits(self) -> None:
        """Note tasks that wait for nothing: their tenant goes on, their limits have room, and workers have slots."""
        found, now = lanes.Lanes.read(self.client, "chaos"), self.queue_ms()
        live = {node: scheduler for node, scheduler in self.workers.values() if not node.dead}
        functions = {name for node in live for name in self.functions[node]}
        slots = sum(scheduler.config.threadpool.concurrency for scheduler in live.values())
        waits: dict[str, float] = {}
        if self.plan.batches:  # a batch has many leases, and one slot
            live = {node: one for node, one in live.items() if self.busy[node] < one.config.threadpool.concurrency / 2}
            functions = {name for node in live for name in self.functions[node]}
            slots = math.inf
        for key, entries in found.lanes.items() if len(found.zset("leases")) < slots / 2 else ():
            index, _, lane = key.partition("|")
            tenant, *limits = lane.partition("|")[0], *lanes.limits_of(lane)
            is_open = all(found.limit(name).opens(now) <= now for name in limits)
            if is_open and not found.is_paused(tenant) and (index.split(":")[1:2] or [""])[0] in functions:
                waits |= dict.fromkeys(entries, self.loop.now)
        self._waits = {task_id: self._waits.get(task_id, now) for task_id, now in waits.items()}
        for task_id, since in self._waits.items():
            if self.loop.now - since > MOST_WAIT:
                self.violations.append(Violation("stuck", task_id, "its limits have room, and it does not start"))

    # The history

    async def run(self) -> None:
        if self.plan.has_tenants:
            await self._set_shares(self.scheduler())
            self.network.when_changed = self._look
        for place in range(self.plan.workers):
            await self.start_worker(place)
        producers = [self.scheduler(), self.scheduler()]
        kinds = [{name: self._declare(one, name) for name in FUNCTIONS if name} for one in producers]
        of_batches = self.plan.batches.kinds if self.plan.batches else ()
        for one, own in zip(producers, kinds, strict=True):
            own |= {kind.name: declare(self, one, kind) for kind in of_batches}
        if self.look is not None:
            looks = self.loop.spawn(None, self.look.run())
        if self.plan.has_streams:
            self.readers = Readers(self, self.scheduler()._client.store.streams)
        nodes = [self.new_node(f"producer-{n}/") for n in range(2)]
        start = self.loop.now
        for step in self.plan.steps:
            await asyncio.sleep(max(0.0, start + step.at - self.loop.now))
            if self._has_shown_enough():
                return
            choice = random.Random(step.seed + step.what)
            if step.what in self._changes:
                self.faults[step.what] += 1
                change = self._changes[step.what](producers[0], choice)
                self._creating.append(self.loop.spawn(nodes[0], change))
            elif step.what == "join":
                assert self.plan.batches is not None
                n = choice.randrange(2)
                kind, number = self.plan.batches.group(choice)
                for m in range(number):
                    task_id = f"{step.seed}-{m}"
                    creation = self._create(producers[n], kinds[n], task_id, random.Random(task_id), kind)
                    self._creating.append(self.loop.spawn(nodes[n], creation))
            elif step.what == "create":
                n = choice.randrange(2)
                self._creating.append(
                    self.loop.spawn(nodes[n], self._create(producers[n], kinds[n], step.seed, choice))
                )
            else:
                self.faults[step.what] += 1
                if self.look is not None:
                    self.look.disturb()
                getattr(self, f"fault_{step.what}")(choice)
        await asyncio.sleep(3 * LEASE)  # the longest fault
        self._heal()
        await asyncio.gather(*self._creating)
        reader = self.scheduler()
        await self._drain(reader)
        self.worker_seconds = (self.loop.now - start) * self.plan.workers
        if self.look is not None:
            looks.cancel()
        if not self._has_shown_enough():
            await self._judge(reader)

    def _has_shown_enough(self) -> bool:
        return self._stops_early and bool(self.violations)

    async def _create(
        self,
        scheduler: TaskBackoffScheduler,
        kinds: Mapping[str, TaskKind[Any, Any]],
        task_id: str,
        choice: random.Random,
        batch: BatchKind | None = None,
    ) -> None:
        """Create one task, and change one's mind about some, as chaos/producer.py does."""
        kind = choice.choices(list(KINDS), list(KINDS.values()))[0]
        fails = {"flaky": choice.randint(1, 2), "doomed": 99}.get(kind, 0)
        seconds = 40.0 if kind == "interrupted" else choice.choice([0.0, choice.uniform(0, 1), choice.uniform(0, 80)])
        delay = choice.uniform(0.3, 60) if kind in {"delayed", "regretted"} else 0.0
        params = {"kind": kind, "seconds": round(seconds, 3), "fails": fails}
        limits: dict[str, Any] = {}
        if kind == "limited":
            names = choice.choice([["start_within"], ["complete_within"], ["start_within", "complete_within"]])
            limits = {name: round(choice.choice([1, 10, 100]) * choice.uniform(0.5, 2), 3) for name in names}
        function = function_of_task(random.Random(f"function {task_id}")) if self.plan.homes else ""
        share = share_of_task(random.Random(f"share {task_id}"), SIMULATED) if self.plan.has_tenants else {}
        if share.get("limits"):
            params["seconds"] = round(min(seconds, 20), 3)
        about = noted(share)
        if batch is not None:
            function = batch.name
            how = choice.choices(list(HOW), list(HOW.values()))[0]
            params["how"] = "returns" if how == "hangs" and kind == "doomed" else how
            params["seconds"] = round(params["seconds"] * batch.pace / 2, 3)
            if not share and batch.max_cost is not None:
                share = about = {"cost": choice.choice([1, 1, 3, 11])}
        if batch is not None and self.look is not None:
            self.look.lanes[task_id] = bool(share.get("tenant") or share.get("limits"))
            self.look.costs[task_id] = share.get("cost", 1)
        self.note("invoke", id=task_id, kind=kind, delay=delay, fails=fails, function=function, **limits, **about)
        while True:
            try:
                options: dict[str, Any] = {"max_lost": POISON_MAX_LOST} if kind == "poison" else {"delay": delay}
                options |= limits | share
                if batch is not None:
                    await kinds[function].options(task_id=task_id, **options).create(params)
                elif function:
                    await kinds[function].options(task_id=task_id, **options).create(**params)
                else:
                    await scheduler.create_task(params, task_id, **options)
            except StorageError:
                self.note("unknown", id=task_id)
                if choice.random() < 0.5:
                    return
                await asyncio.sleep(0.5)
            else:
                self.note("acked", id=task_id)
                break
        if self.readers is not None and batch is None:
            self.readers.follow(task_id)
        if kind in {"regretted", "interrupted"}:
            await asyncio.sleep(choice.uniform(0, 20))
            try:
                answer = await scheduler.cancel_task(task_id, running=kind == "interrupted")
            except StorageError:
                answer = None
            self.note("cancel", id=task_id, answer=answer if kind == "regretted" else None)

    # Faults

    def _some_worker(self, choice: random.Random) -> Node | None:
        there = [node for node, _ in self.workers.values() if not node.dead and not node.still]
        return choice.choice(there) if there else None

    def fault_kill(self, choice: random.Random) -> None:
        if (node := self._some_worker(choice)) is not None:
            self.die(node)

    def fault_poweroff(self, choice: random.Random) -> None:
        """All workers of a host die at once."""
        if (one := self._some_worker(choice)) is not None:
            host = one.name.partition("/")[0]
            for node, _ in list(self.workers.values()):
                if node.name.partition("/")[0] == host and not node.dead:
                    self.die(node)

    def fault_stop(self, choice: random.Random) -> None:
        """A worker stands still, mostly for longer than its leases, and often just until a reaper sees their end."""
        if (node := self._some_worker(choice)) is not None:
            node.still = True
            self.note("stop", worker=node.number)
            if choice.random() < 0.6:
                self.network.still_until_look[node] = self._renewed.get(node, self.loop.now) + LEASE
            self._outside(choice.uniform(0.2, 2.5) * LEASE, lambda: self.loop.go_on(node))

    def fault_drain(self, choice: random.Random) -> None:
        """A worker drains, and another takes its place."""
        node = self._some_worker(choice)
        for place, (other, _) in list(self.workers.items()):
            if other is node:
                self._replace(place)

    def fault_deploy(self, choice: random.Random) -> None:
        """All workers are replaced, one after the other, by workers that may have other kinds."""
        pause = choice.uniform(0, 0.5) * LEASE
        for n, place in enumerate(sorted(self.workers)):
            self._outside(n * pause, partial(self._replace, place))

    def _replace(self, place: int) -> None:
        node, scheduler = self.workers[place]
        if not node.dead:
            self._dismissed.add(node.number)
            self.loop.spawn(node, scheduler.shutdown())
            self.loop.spawn(None, self.start_worker(place))

    def fault_cut(self, choice: random.Random) -> None:
        if (node := self._some_worker(choice)) is not None:
            self.network.cut.add(node)
            self._outside(choice.uniform(0.1, 2.5) * LEASE, lambda: self.network.cut.discard(node))

    def fault_slow(self, choice: random.Random) -> None:
        self.network.slowness = choice.uniform(10, 200)
        self._outside(choice.uniform(1, 60), lambda: setattr(self.network, "slowness", 1.0))

    def fault_outage(self, choice: random.Random) -> None:
        """The server is away for longer than a lease."""
        self.network.down = True
        self.network.reset_all()
        self._outside(choice.uniform(0.5, 2.5) * LEASE, lambda: setattr(self.network, "down", False))

    def fault_restart(self, choice: random.Random) -> None:
        self.network.down = True
        self.network.reset_all()

        def up() -> None:
            self.server.forget_scripts()
            self.network.down = False

        self._outside(choice.choice([0.05, 2, 20]) * choice.random(), up)

    def fault_lose_writes(self, choice: random.Random) -> None:
        """The server comes back as it was a moment ago."""
        self._loses = True
        before = self.server.snapshot()

        def down() -> None:
            self.server.restore(before)
            self.fault_restart(choice)

        self._outside(choice.uniform(0.01, 1), down)

    def fault_flush(self, choice: random.Random) -> None:
        self.server.forget_scripts()

    def fault_clock(self, choice: random.Random) -> None:
        self._jumps = True
        self.network.offset_ms += choice.choice([-1, 1]) * choice.choice([50, 1500, 20_000, 200_000])

    def fault_deny(self, choice: random.Random) -> None:
        self.network.denied = True
        self._outside(choice.uniform(0.1, 30), lambda: setattr(self.network, "denied", False))

    def _heal(self) -> None:
        self.network.noise, self.network.slowness = 0.0, 1.0
        self.network.denied = self.network.down = False
        self.network.cut.clear()
        self._is_well = True
        for place, (node, _) in list(self.workers.items()):
            if not self._needed_at(place) <= set(self.functions[node]):
                self._replace(place)

    # The end

    async def _drain(self, reader: TaskBackoffScheduler) -> None:
        deadline = self.loop.now + PATIENCE
        while self.loop.now < deadline and not self._has_shown_enough():
            stats = await reader.get_queue_stats()
            if not stats.pending_count and not stats.processing_count:
                return
            if self.plan.has_tenants:
                self._look_for_waits()
            await asyncio.sleep(2)

    async def _judge(self, reader: TaskBackoffScheduler) -> None:
        finals = self.finals
        for task_id in sorted({event["id"] for event in self.events if "id" in event}):
            task = await reader.get_task(task_id)
            if task is not None:
                finals[task_id] = final_of(task)
        found = check(self.events, finals)
        texts = await self.readers.judge(finals, loses=self._loses) if self.readers is not None else []
        if self._loses:
            # Acknowledged writes are gone. Still nothing is stuck, and each worker runs tasks of its kinds only.
            found = [one for one in found if one.promise in {"stuck", "foreign"}]
        else:
            found += late_starts(self.events)
            found += crowded(self.events, SIMULATED)
            found += rushed(self.events, SIMULATED)
            if self.plan.batches:
                kinds_of_batches = {kind.name: kind for kind in self.plan.batches.kinds}
                found += oversized(self.events, kinds_of_batches)
                found += gathered(self.events, kinds_of_batches)
                found += halved(self.events)
                if not self._jumps:
                    found += hasty(self.events, kinds_of_batches)
            if not self._jumps:
                found += robbed(self.events)
                found += woken(self.events)
            if self._flood:
                found += unfair(self.events, self._flood, self._flooded, self._places, SHARE_TOLERANCE)
        if self._jumps:
            found = [one for one in found if one.promise not in {"early", "overdue"}]
        kinds = {event["kind"] for event in self.events if event["event"] == "invoke"}
        if self.faults.keys() <= MILD and "poison" not in kinds:
            lost = [task_id for task_id, final in finals.items() if final.lost and not self._went_unheard(task_id)]
            found += [Violation("needless", task_id, "lost, although no worker was") for task_id in lost]
        self.violations += [*found, *texts]
        stats = await reader.get_queue_stats()
        names = ("pending", "processing", "completed", "failed", "cancelled")
        self.violations += check_counts(finals, {name: getattr(stats, f"{name}_count") for name in names}, "stats")
        if not self._loses:
            totals = {name: int(self.server.one("HGET", "maas:{chaos}:meta", name) or 0) for name in names[2:]}
            self.violations += check_counts(finals, totals, "totals")
        functions = (
            [*FUNCTIONS[1:], *(kind.name for kind in self.plan.batches.kinds)] if self.plan.batches else FUNCTIONS[1:]
        )
        of_kinds = [f"k:{kind}:{name}" for kind in functions for name in ("ready", "suspects")]
        for name in ("ready", "suspects", "scheduled", "leases", "external", "deadlines", *of_kinds):
            if self.server.one("ZCARD", f"maas:{{chaos}}:{name}"):
                self.violations.append(Violation("counts", "", f"{name} is not empty"))


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
    dead = {event["worker"]: event["time"] for event in events if event["event"] == "died"}
    until: dict[int, float] = {}
    before: dict[str, Event] = {}
    for event in events:
        if event["event"] == "renewed":
            until[event["token"]] = event["until"]
        elif event["event"] == "start":
            first = before.get(event["id"])
            before[event["id"]] = event
            if first is None or event["lost"] <= first["lost"] or first["attempt"] + 1 != event["attempt"]:
                continue
            if dead.get(first["worker"], math.inf) > event["time"] < until.get(first["token"], 0) - TOLERANCE:
                yield Violation("robbed", event["id"], f"attempt {first['attempt']} had a lease, and was lost")


class OwnLoopHere:
    """Stands in for worker/own_loop.py: runs the coroutine on the loop of the simulation, and not in a thread."""

    def __init__(self, main: Callable[[], Any], name: str, when_failed: str) -> None:
        self._main = main
        self.stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._main())

    async def stop(self) -> None:
        self.stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


@contextlib.contextmanager
def simulated(world: World) -> Iterator[None]:
    """Put the world in the place of clocks, threads, the network and chance."""
    chance = random.Random(f"chance {world.plan.seed}")
    report = exchange.report

    def note_settle(attempt: Attempt, settlement: Settlement, answer: str, *more: str) -> None:
        status = "cancelled" if answer == "cancelled" else str(settlement.status)
        error = None if settlement.error is None else settlement.error.type
        world.note("settle", id=attempt.task.task_id, token=attempt.token, status=status, error=error, answer=answer)
        report(attempt, settlement, answer, *more)

    put, renewed = Outbox.put, Attempt.renewed

    def kept(self: Attempt, lease: Lease) -> None:
        world.note_renewal(self, START_MS / 1000 + lease.until)
        renewed(self, lease)

    def sent(self: Outbox, settle: Settle, attempt: Attempt) -> None:
        settlement = settle.settlement
        error = None if settlement.error is None else settlement.error.type
        world.note("sent", id=settle.task_id, token=attempt.token, status=str(settlement.status), error=error)
        put(self, settle, attempt)

    async def nothing(*_: object, **__: object) -> list[object]:
        return []

    SimulatedLink.network = world.network
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (time, "monotonic", world.monotonic),
            (time, "time", world.time),
            (secrets, "token_hex", lambda size: f"{chance.getrandbits(8 * size):0{2 * size}x}"),
            (secrets, "token_bytes", lambda size: chance.getrandbits(8 * size).to_bytes(size)),
            (secrets, "randbits", chance.getrandbits),
            (exchange, "report", note_settle),
            (QueueStore, "check", nothing),
            (Outbox, "put", sent),
            (Attempt, "renewed", kept),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        for place, value in (
            ("maas_backoff.worker.loops.heartbeat.OwnLoop", OwnLoopHere),
            ("maas_backoff.worker.loops.orphans.check", nothing),
            ("maas_backoff.worker.loops.neighbours.os", SimpleNamespace(pidfd_open=_no_pidfd, close=lambda _: None)),
            ("maas_backoff.common.orphans.Origin.has_ended", lambda origin: world.has_ended(origin)),  # noqa: PLW0108 - as a method
            ("maas_backoff.worker.service.this_process", world.origin),
            ("maas_backoff.worker.executors.call.Context", empty_context),
            ("maas_backoff.worker.service.in_thread", _here),
            ("maas_backoff.worker.loops.neighbours.in_thread", _here),
            ("maas_backoff.store.location.Location.link", lambda _self, _address, timeout: SimulatedLink(timeout)),
        ):
            stack.enter_context(mock.patch(place, value))
        # Tasks of dead nodes print errors when they are collected. Nobody needs the log of a whole fleet.
        stack.enter_context(mock.patch.object(sys, "unraisablehook"))
        library = logging.getLogger("maas_backoff")
        stack.callback(library.setLevel, library.level)
        library.setLevel(logging.CRITICAL + 1)
        stack.callback(random.setstate, random.getstate())
        random.seed(f"jitter {world.plan.seed}")
        yield


async def _here(read: Callable[[], object]) -> object:
    return read()


def _no_pidfd(_: int) -> int:
    raise OSError(38, "a simulated process has no file")


def run(plan: Plan, server: RealServer, mutant: str = "") -> Outcome:
    """Run one history; with a `mutant`, of a library with that fault, until a promise is seen to be broken."""
    server.one("FLUSHALL")
    server.forget_scripts()
    world = World(plan, server, stops_early=bool(mutant))
    with simulated(world), MUTANTS[mutant]() if mutant else contextlib.nullcontext():
        try:
            world.loop.run_until_complete(world.run())
        except NothingLeft:
            world.violations.append(Violation("stuck", "", "nothing is left that could happen"))
        statuses = Counter(str(final.status) for final in world.finals.values())
        for task in world.loop.kept:
            task._log_destroy_pending = False  # type: ignore[attr-defined] - what dead nodes have left
        world.loop.kept.clear()
        world.client.close()
        gc.collect()
    return Outcome(plan, world.violations, world.events, statuses, world.worker_seconds, world.faults)


def shrink(plan: Plan, breaks: Callable[[Plan], bool]) -> Plan:
    """Return a smaller plan that still breaks a promise: steps are left out as long as that holds."""
    size = len(plan.steps)
    while size:
        at = 0
        while at < len(plan.steps):
            smaller = attrs.evolve(plan, steps=plan.steps[:at] + plan.steps[at + size :])
            if breaks(smaller):
                plan = smaller
            else:
                at += size
        size //= 2
    simpler = [
        attrs.evolve(plan, **changes)
        for changes in ({"noise": 0.0}, {"homes": ()}, {"has_tenants": False}, {"has_streams": False})
    ]
    for smaller in (*simpler, plan.without_batches()):
        if smaller != plan and breaks(smaller):
            plan = smaller
    return plan
