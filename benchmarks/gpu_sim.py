"""Three ways to admit tasks to GPUs, on the same arrivals, in virtual time.

`python benchmarks/gpu_sim.py` prints a table, and writes gpu_sim.svg beside this file (`--output`). The first way is
the real gate: its plan, its grants, and the scripts of its ledger on a real server, whose clock is the virtual one. The
others are what people do without it: a fixed number of tasks for each GPU, and looking at the free memory first.

A task allocates half of its memory after half of its delay, the rest after all of it; it fails if there is no room
then, and comes back after 5 s. NVML is read once a second. Other processes come, take what is free, and go.
"""

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs
from server import started_server

from maas_backoff import GpuConfig, StorageConfig
from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.gate import HOLD, Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.placement import Placement
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import Ledgers
from maas_backoff.store.server import Server

GIB = 1024
TOTAL = 16 * GIB
TICK = 0.5
HOSTS, DEVICES, SLOTS = 3, 2, 8
TASKS = 400
LEASE = 30.0
PER_GPU = 2
BACKOFF = 5.0
POLICIES = ("gate", "fixed number", "look only")


@attrs.define(eq=False)
class Task:
    number: int
    arrival: float
    declared: int
    actual: int
    honest: bool
    delay: float
    duration: float
    begun: float = 0.0
    used: int = 0
    failures: int = 0
    started: float | None = None
    """When the attempt began that completed."""
    not_before: float = 0.0
    device: "Device | None" = None
    grant: Grant | None = None

    pid: int = 0
    """The one of its attempt's process."""

    @property
    def owner(self) -> str:
        return owner_of(self.pid)


@attrs.define(eq=False)
class Device:
    uuid: str
    host: int
    tasks: list[Task] = attrs.field(factory=list)
    other_processes: int = 0
    other_until: float = 0.0
    other_since: float = -1.0

    @property
    def free(self) -> int:
        return TOTAL - self.other_processes - sum(task.used for task in self.tasks)

    @property
    def promised(self) -> int:
        """Return the memory that all honest tasks here may use, and that of other processes."""
        return self.other_processes + sum(max(task.used, task.declared) for task in self.tasks)


@attrs.frozen
class Mix:
    """A load: sizes in GiB, delays until the memory is allocated, how many lie, and what other processes do."""

    name: str
    sizes: Sequence[float]
    delays: tuple[float, float]
    durations: tuple[float, float]
    every: float
    liars: float = 0.0
    other_processes: float = 0.0


MIXES = (
    Mix("small, quick", (1, 2, 3, 4), (0.5, 2), (4, 15), every=0.55),
    Mix("sizes from 2 to 14, slow to allocate", (2, 2, 3, 4, 6, 8, 10, 14), (5, 20), (20, 60), every=2.9),
    Mix(
        "the same, with other processes and 5 % that lie",
        (2, 2, 3, 4, 6, 8, 10, 14),
        (5, 20),
        (20, 60),
        4.0,
        0.05,
        0.004,
    ),
)


class World:
    """Arrivals, devices and other processes; the same for each policy, by its seed."""

    def __init__(self, mix: Mix, seed: int) -> None:
        chance = random.Random(seed)
        self.mix = mix
        self.now = 0.0
        self.devices = [
            Device(f"GPU-{seed}-{mix.name[:3]}-{host}{n}", host) for host in range(HOSTS) for n in range(DEVICES)
        ]
        self.future: list[Task] = []
        arrival = 0.0
        for number in range(TASKS):
            arrival += chance.expovariate(1 / mix.every)
            declared = int(chance.choice(mix.sizes) * GIB)
            lie = 1.3 if chance.random() < mix.liars else chance.uniform(0.85, 1)
            delay, duration = chance.uniform(*mix.delays), chance.uniform(*mix.durations)
            actual = min(int(declared * lie), 15 * GIB)
            self.future.append(Task(number, arrival, declared, actual, actual <= declared, delay, delay + duration))
        self._other_processes = random.Random(seed + 1)
        self._pids = 0
        self.waiting: list[Task] = []
        self.done: list[Task] = []
        self.oversubscribed = 0
        self.failed_honest = 0
        self.failed_innocent = 0
        self.busy = 0.0
        self.samples: list[GpuSample] = []

    @property
    def over(self) -> bool:
        return len(self.done) == TASKS

    def start(self, task: Task, device: Device) -> None:
        self.waiting.remove(task)
        self._pids += 1
        task.device, task.begun, task.used, task.pid = device, self.now, 0, self._pids
        device.tasks.append(task)
        # Only what honest tasks are told of can be counted on.
        if device.promised > TOTAL and all(one.honest for one in device.tasks):
            self.oversubscribed += 1

    def step(self) -> list[Task]:
        """Let time pass; returns the tasks whose attempt has ended."""
        self.now += TICK
        while self.future and self.future[0].arrival <= self.now:
            self.waiting.append(self.future.pop(0))
        self._let_other_processes_act()
        ended: list[Task] = []
        for device in self.devices:
            for task in list(device.tasks):
                ended += self._go_on(task, device)
        self.busy += sum(task.used for device in self.devices for task in device.tasks) * TICK
        if self.now % 1.0 < TICK:
            self.samples = [self._read(index, device) for index, device in enumerate(self.devices)]
        return ended

    def _go_on(self, task: Task, device: Device) -> Iterable[Task]:
        age = self.now - task.begun
        wanted = task.actual if age >= task.delay else task.actual // 2 if age >= task.delay / 2 else 0
        if wanted - task.used > device.free:
            self._blame(task, device)
            return [self._end(task, device, failed=True)]
        task.used = max(task.used, wanted)
        return [self._end(task, device, failed=False)] if age >= task.duration else []

    def _blame(self, task: Task, device: Device) -> None:
        if not task.honest:
            return
        self.failed_honest += 1
        liars = any(one.used > one.declared for one in device.tasks)
        if not liars and device.other_since < task.begun:
            self.failed_innocent += 1

    def _end(self, task: Task, device: Device, *, failed: bool) -> Task:
        device.tasks.remove(task)
        self.busy -= task.used * (self.now - task.begun) * 0.5 if failed else 0  # about what was wasted
        if failed:
            task.failures += 1
            task.not_before = self.now + BACKOFF
            self.waiting.append(task)
            self.waiting.sort(key=lambda one: one.arrival)
        else:
            task.started = task.begun
            self.done.append(task)
        return task

    def _let_other_processes_act(self) -> None:
        chance = self._other_processes
        for device in self.devices:
            comes, size, stays = (
                chance.random() < self.mix.other_processes * TICK,
                chance.randint(3, 10),
                chance.uniform(60, 240),
            )
            if device.other_processes and self.now >= device.other_until:
                device.other_processes = 0
            elif not device.other_processes and comes:
                device.other_processes = max(0, min(size * GIB, device.free))
                device.other_since, device.other_until = self.now, self.now + stays

    def _read(self, index: int, device: Device) -> GpuSample:
        used = {task.owner: task.used for task in device.tasks if task.used}
        return GpuSample(device.uuid, index, "simulated", TOTAL, max(0, device.free), self.now, used, 0.0)


class SimProbe:
    """The samples of one host."""

    trouble = ""
    has_answered = True
    patience = 3.0

    def __init__(self, world: World, host: int) -> None:
        self._world = world
        self._uuids = {device.uuid for device in world.devices if device.host == host}

    def start(self, changed: Callable[[], None]) -> None:
        changed()

    def stop(self) -> None:
        pass

    def poke(self) -> None:
        pass

    def samples(self) -> list[GpuSample]:
        return [sample for sample in self._world.samples if sample.uuid in self._uuids]


def ready(world: World) -> list[Task]:
    return [task for task in world.waiting if task.not_before <= world.now]


class Fleet:
    """One worker a host, each with the real gate."""

    def __init__(self, world: World, ledgers: Ledgers) -> None:
        self._world = world
        self._ledgers = ledgers
        self._by_uuid = {device.uuid: device for device in world.devices}
        self._gates = [self._gate(host) for host in range(HOSTS)]
        self._held, self._held_until, self._renewed = "", 0.0, 0.0
        self._order = random.Random(1)

    def _gate(self, host: int) -> Gate:
        return Gate(
            SimProbe(self._world, host),
            self._ledgers,
            GateContext(
                GpuConfig(starvation_after=120),
                worker=f"host-{host}",
                queue="sim",
                in_children=True,
                changed=asyncio.Event(),
                clock=lambda: self._world.now,
            ),
            hand_back=lambda _: None,
        )

    async def step(self) -> None:
        """Let time pass; then each worker looks once, in no order."""
        ended = self._world.step()
        self._ledgers.clock = f"{1_800_000_000_000 + self._world.now * 1000:.0f}"
        for task in ended:
            self._end(task)
        await self._renew()
        for host, gate in self._order.sample(list(enumerate(self._gates)), HOSTS):
            await gate.tidy()
            while await self._look(host, gate):
                pass
            await gate.tidy()

    def _end(self, task: Task) -> None:
        if task.grant is not None:
            task.grant.process_ended(task.pid)
            task.grant.attempt_ended()
        if task.started is None:
            task.declared = min(int(task.declared * 1.5), 15 * GIB)  # as oom_growth has it

    async def _renew(self) -> None:
        if self._world.now - self._renewed > LEASE / 3:
            self._renewed = self._world.now
            for gate in self._gates:
                for uuid, reservations in gate.grants.renewal.by_device().items():
                    await self._ledgers.keep(uuid, reservations)

    async def _look(self, host: int, gate: Gate) -> bool:
        """Start what may start now; True where there may be more."""
        waiting = demands(self._world)
        running = sum(len(device.tasks) for device in self._world.devices if device.host == host)
        if self._world.now > self._held_until:
            self._held = ""
        made = await gate.plan(waiting, slots=max(1, SLOTS - running), held=self._held)
        if made.hold is not None:
            name = made.hold.waiting.name
            value = f"{name} {made.hold.sample.uuid} host-{host}"
            if self._held in {"", value}:
                self._held, self._held_until = value, self._world.now + HOLD
                await gate.post(made)
        return running < SLOTS and await self._start(gate, made.starts)

    async def _start(self, gate: Gate, starts: Sequence[Placement]) -> bool:
        begun = False
        for start in starts:
            grant = await gate.reserve(start)
            if grant is None:
                continue
            task = next(one for one in ready(self._world) if one.declared == grant.demand.memory)
            grant.claimed(str(task.number), None)
            self._world.start(task, self._by_uuid[grant.uuid])
            grant.used_by(task.pid, _nothing)
            task.grant = grant
            begun = True
        return begun


async def by_gate(world: World, storage: StorageConfig) -> None:
    """With the real gate."""
    server = Server(storage, "maas:gpu:{x}")
    fleet = Fleet(world, Ledgers(storage, server, lease=LEASE))
    while not world.over:
        await fleet.step()
    await server.aclose()


def demands(world: World) -> list[Waiting]:
    first: dict[int, Task] = {}
    for task in ready(world):
        first.setdefault(task.declared, task)
    return [
        Waiting(Demand(memory).name, Demand(memory), task.arrival, world.now - task.arrival)
        for memory, task in first.items()
    ]


def _nothing() -> None:
    pass


async def by_fixed_number(world: World, _: StorageConfig) -> None:
    """At most PER_GPU tasks on a device, whatever they need, first come first served."""
    while not world.over:
        world.step()
        for task in ready(world):
            device = min(world.devices, key=lambda device: len(device.tasks))
            if len(device.tasks) >= PER_GPU:
                break
            world.start(task, device)


async def by_looking(world: World, _: StorageConfig) -> None:
    """Wherever the last sample shows enough free memory; the oldest that fits first."""
    by_uuid = {device.uuid: device for device in world.devices}
    while not world.over:
        world.step()
        for task in ready(world):
            fits = [sample for sample in world.samples if sample.free >= task.declared]
            fits = [sample for sample in fits if len(by_uuid[sample.uuid].tasks) < SLOTS]
            if fits:
                world.start(task, by_uuid[max(fits, key=lambda sample: sample.free).uuid])


@attrs.frozen
class Row:
    mix: str
    policy: str
    oversubscribed: int
    failed: int
    innocent: int
    mean_wait: float
    p95_wait: float
    longest_wait: float
    used: float
    minutes: float


def summary(world: World, policy: str) -> Row:
    waits = sorted((task.started or 0) - task.arrival for task in world.done)
    return Row(
        world.mix.name,
        policy,
        world.oversubscribed,
        world.failed_honest,
        world.failed_innocent,
        statistics.mean(waits),
        waits[int(len(waits) * 0.95)],
        waits[-1],
        100 * world.busy / (world.now * TOTAL * len(world.devices)),
        world.now / 60,
    )


HEAD = (
    "| mix | policy | oversubscribed | failed for want of memory | … with nobody to blame | mean wait s | p95 | "
    "longest | memory in use % | minutes |\n|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    waits = f"{row.mean_wait:.0f} | {row.p95_wait:.0f} | {row.longest_wait:.0f}"
    numbers = f"{waits} | {row.used:.0f} | {row.minutes:.0f}"
    return f"| {row.mix} | {row.policy} | {row.oversubscribed} | {row.failed} | {row.innocent} | {numbers} |"


STYLE = "text{font:12px sans-serif;fill:#444}.gate{fill:#2a7}.fixed{fill:#99a}.look{fill:#d95}"


def drawing(rows: Sequence[Row]) -> str:
    """Return bars: failures, mean wait and memory in use, by mix and policy."""
    measures = (
        ("honest tasks that failed for want of memory", lambda row: row.failed, "{:.0f}"),
        ("mean wait, s", lambda row: row.mean_wait, "{:.0f}"),
        ("longest wait, s", lambda row: row.longest_wait, "{:.0f}"),
        ("memory in use, %", lambda row: row.used, "{:.0f}"),
    )
    parts: list[str] = []
    y = 20
    for title, value, form in measures:
        parts.append(f'<text x="10" y="{y}" font-weight="bold">{title}</text>')
        most = max(map(value, rows)) or 1
        for mix, group in itertools.groupby(rows, key=lambda row: row.mix):
            y += 18
            parts.append(f'<text x="10" y="{y + 11}">{mix}</text>')
            for row in group:
                width = 380 * value(row) / most
                kind = row.policy.split()[0]
                parts.append(f'<rect class="{kind}" x="270" y="{y}" width="{width:.1f}" height="11"/>')
                label = f"{form.format(value(row))} {row.policy}"
                parts.append(f'<text x="{275 + width:.1f}" y="{y + 10}" font-size="10">{label}</text>')
                y += 13
        y += 32
    box = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {y}" role="img">'
    return "\n".join(
        [box, f"<style>{STYLE}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>", ""]
    )


async def simulated(seed: int, url: str) -> list[Row]:
    rows: list[Row] = []
    ways = dict(zip(POLICIES, (by_gate, by_fixed_number, by_looking), strict=True))
    for mix in MIXES:
        for policy, way in ways.items():
            world = World(mix, seed)
            began = time.monotonic()
            await way(world, StorageConfig(url=url))
            rows.append(summary(world, policy))
            print(line(rows[-1]), f" <!-- {time.monotonic() - began:.1f} s -->", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "gpu_sim.svg")
    options = parser.parse_args()
    print(f"seed {options.seed}: {TASKS} tasks, {HOSTS} hosts of {DEVICES} devices of 16 GiB\n\n{HEAD}")
    with started_server() as url:
        rows = asyncio.run(simulated(options.seed, url))
    options.output.write_text(drawing(rows), encoding="utf-8")
    bad = sum(row.oversubscribed + row.innocent for row in rows if row.policy == "gate")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
