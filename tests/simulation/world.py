"""A simulated fleet: its nodes and workers, what they note, and the handlers that they call."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from chaos.checker import Final, Violation
from chaos.functions import FUNCTIONS, functions_of_worker
from chaos.history import Event
from chaos.setting import setting

from maas_backoff import StorageError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskKind
from maas_backoff.common.orphans import Origin
from maas_backoff.worker.attempt import Attempt
from simulation.batches import declare
from simulation.look import Look
from simulation.loop import Node, SimulatedLoop
from simulation.network import CLOCK, START_MS, Network, RealServer
from simulation.plan import LEASE, Plan
from simulation.streams import Readers, how_of, say


class World:
    """One simulated fleet with its producers, in front of a real server."""

    def __init__(self, plan: Plan, server: RealServer) -> None:
        self.plan = plan
        self.loop = SimulatedLoop()
        self.network = Network(self.loop, server, random.Random(f"network {plan.seed}"), plan.noise)
        self.server = server
        self.events: list[Event] = []
        self.workers: dict[int, tuple[Node, TaskBackoffScheduler]] = {}
        self.faults: Counter[str] = Counter()
        self.worker_seconds = 0.0
        self.violations: list[Violation] = []
        self._numbers = iter(range(100, 1_000_000))
        self._nodes: dict[int, Node] = {}
        self.functions: dict[Node, tuple[str, ...]] = {}
        self._starts: Counter[int] = Counter()
        self.is_well = False
        self.loses = False
        self.jumps = False
        self.finals: dict[str, Final] = {}
        self.dismissed: set[int] = set()
        self.renewed: dict[Node, float] = {}
        """When the leases of a worker were renewed last."""
        self.busy: Counter[Node] = Counter()
        """The calls of handlers that run in each worker."""
        self.calls = itertools.count(1)
        """The numbers of the calls for batches."""
        self.look = Look(self) if plan.batches else None
        self.readers: Readers | None = None

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
        self.renewed[node] = self.loop.now
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
                    self.declare(scheduler, name)
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
        needed = self.needed_at(place) if self.is_well else set()
        choice = random.Random(f"functions {plan.seed} {place} {self._starts[place]}")
        if plan.homes:
            found = functions_of_worker(choice, needed)
        if plan.batches:
            own = plan.batches.of_worker(choice, needed)
            # The first place keeps the tasks without a kind, if no other has a home for them.
            is_free = plan.batches.alone or (place > 0 and bool(own) and not plan.homes and choice.random() < 0.3)
            found = own if is_free else (*found, *own)
        return found

    def needed_at(self, place: int) -> set[str]:
        homes = zip(FUNCTIONS, self.plan.homes, strict=False)
        found = {name for name, home in homes if home % self.plan.workers == place}
        return found | (self.plan.batches.needed_at(place) if self.plan.batches else set())

    def declare(self, scheduler: TaskBackoffScheduler, name: str) -> TaskKind[Any, Any]:
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
        self.outside(pause, lambda: self.loop.spawn(None, self.start_worker(place)))

    def outside(self, seconds: float, callback: Callable[[], object]) -> None:
        """Call something later, whatever becomes of the node that asks for it."""
        before, self.loop.node = self.loop.node, None
        self.loop.call_later(seconds, callback)
        self.loop.node = before

    def queue_ms(self) -> float:
        return self.clock_ms(*self.server.one("HMGET", "maas:{chaos}:meta", "ahead", "reaped_at"))

    def clock_ms(self, ahead: str | bytes | None, seen: str | bytes | None) -> float:
        """Return the time of the queue's clock, by two fields of its keys."""
        return max(self.network.now_ms + float(ahead or 0), float(seen or 0))

    def replace(self, place: int) -> None:
        """Have a worker drain, and another take its place."""
        node, scheduler = self.workers[place]
        if not node.dead:
            self.dismissed.add(node.number)
            self.loop.spawn(node, scheduler.shutdown())
            self.loop.spawn(None, self.start_worker(place))

    def heal(self) -> None:
        """End all faults. From now on, each function has a worker."""
        self.network.noise, self.network.slowness = 0.0, 1.0
        self.network.denied = self.network.down = False
        self.network.cut.clear()
        self.is_well = True
        for place, (node, _) in list(self.workers.items()):
            if not self.needed_at(place) <= set(self.functions[node]):
                self.replace(place)
