"""The gate of one worker: which tasks may start on which of its devices."""

import asyncio
import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import attrs

from maas_backoff.common.guard import log_for
from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.domain.worker import Device
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.devices import Devices
from maas_backoff.gate.faults import Faults
from maas_backoff.gate.fit import Plan, Start, most_of, plan, room_of, used_by_other_processes
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.grants import Grants
from maas_backoff.gate.others import Others, with_told
from maas_backoff.gate.owner import owner_in_session
from maas_backoff.gate.sample import GpuSample, Probe
from maas_backoff.gate.upkeep import Upkeep
from maas_backoff.store.ledger import ONE_PROCESS, ONE_WORKER, DeviceLedger, Ledgers, holder

log = log_for("gpu")

HOLD = 5.0
"""Seconds that a hold, or a call for room, lasts without being said again."""

_UNREAD = DeviceLedger()


class Gate:
    """Admits tasks to devices, for one worker of one queue. Only `describe` is for other threads."""

    def __init__(
        self,
        probe: Probe,
        ledgers: Ledgers,
        context: GateContext,
        hand_back: Callable[[Grant], None],
    ) -> None:
        """`hand_back` is called to end the attempt that has a grant, and to hand its task back."""
        config = context.config
        self.devices = Devices(probe, config.gpus, context.clock)
        self._faults = Faults(ledgers, config)
        self._ledgers = ledgers
        self._config = config
        self._context = context
        self._queue = context.queue
        self._in_children = context.in_children
        self._owner = owner_in_session(os.getpid())
        self._read: dict[str, DeviceLedger] = {}
        self._others: defaultdict[str, Others] = defaultdict(Others)
        self._resident: dict[str, int] = {}
        """MiB that this process used of a device before its first task there: a model of the worker_lifespan, say."""
        self.grants = Grants(self.devices, ledgers, context)
        self._upkeep = Upkeep(self.devices, self.grants, ledgers, self._faults, self._read, hand_back)

    def start(self) -> None:
        """Begin to read devices, unless none are wanted."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(self._changed)

        self.devices.start(changed)

    def _changed(self) -> None:
        self.grants.note_use()
        self._context.changed.set()

    async def aclose(self) -> None:
        """Give everything back, and stop reading. The attempts and their processes have ended."""
        self.devices.stop()
        await self.grants.release_all()
        await self._ledgers.aclose()

    # Devices

    @property
    def most(self) -> int:
        """MiB that a task could be given at best on any device here."""
        return max((self._most_on(one) for one in self.devices.usable), default=0)

    def _most_on(self, sample: GpuSample) -> int:
        """As `most_of`, with what this worker was granted since it read the ledger, and what it uses itself."""
        ledger = self._read.get(sample.uuid, _UNREAD)
        mine = {one.id: one.reservation for one in self.grants if one.uuid == sample.uuid}
        known = attrs.evolve(ledger, reservations={**ledger.reservations, **mine})
        sample = with_told(sample, ledger)
        if self._in_children:
            return most_of(known, sample)
        # Its tasks and what they leave behind are all in its own process.
        others = attrs.evolve(known, reservations={k: v for k, v in known.reservations.items() if k not in mine})
        own = max(sample.used.get(self._owner, 0), sum(one.mib for one in mine.values()))
        return min(sample.total, most_of(others, sample) + own)

    def describe(self) -> list[dict[str, object]]:
        """Return the devices for the registry of workers."""
        found = list[Device]()
        for one in self.devices.all:
            ledger = self._read.get(one.uuid, _UNREAD)
            shown = with_told(one, ledger)
            own = 0 if self._in_children else one.used.get(self._owner, 0)
            age = self.devices.age(one)
            stale = f"the last reading is {age:.0f} s old" if self.devices.is_old(one) else ""
            health = one.trouble or stale or (f"quarantine: {ledger.quarantine}" if ledger.quarantine else "ok")
            device = Device(
                uuid=one.uuid,
                index=one.index,
                name=one.name,
                total=one.total,
                free=one.free,
                room=max(0, room_of(ledger, shown)),
                most=self._most_on(one),
                utilization=one.utilization,
                temperature=one.temperature,
                health=health,
                age=round(age, 3),
                closed=self._closed(ledger),
                strangers=used_by_other_processes(ledger, shown, own),
            )
            found.append(device)
        return [attrs.asdict(device) for device in found]

    def _closed(self, ledger: DeviceLedger) -> str:
        """Return what keeps all tasks, or all but one kind, from a device that is well."""
        running = sum(one.state == "running" for one in ledger.reservations.values())
        if self._config.tasks_per_gpu and running >= self._config.tasks_per_gpu:
            return f"runs {running} tasks, which is tasks_per_gpu"
        return f"is held for {holder(ledger.held_for)}" if ledger.held_for else ""

    # Admission

    async def plan(self, waiting: Sequence[Waiting], *, slots: int, held: str) -> Plan:
        """Return what to do for those that wait, by the ledgers as they are now."""
        samples = list[GpuSample]()
        for one in map(self._with_own_cache, self.devices.usable):
            ledger = self._read[one.uuid] = await self._ledgers.read(one.uuid)
            self.grants.reports.note_others(one.uuid, ledger)
            samples.append(self._others[one.uuid].believed(one, ledger))
        self.devices.warn_without_load(waiting)
        return plan(
            waiting,
            samples,
            self._read,
            list(self.grants),
            queue=self._queue,
            slots=slots,
            limit=self._config.tasks_per_gpu or 0,
            starts_children=self._in_children,
            starvation_after=self._config.starvation_after,
            held=held,
        )

    def _with_own_cache(self, sample: GpuSample) -> GpuSample:
        """Return a sample in which the memory that earlier tasks left in this process is free, for its next ones.

        A caching allocator, as PyTorch has, gives nothing back. Child processes have no such memory here: each has a
        grant of its own.
        """
        if self._in_children:
            return sample
        used = sample.used.get(self._owner, 0)
        cached = max(0, used - self._resident.get(sample.uuid, used))
        return attrs.evolve(sample, free=min(sample.total, sample.free + cached))

    async def first_grant(self, demand: Demand) -> Grant | None:
        """Return a place for a child that is started before there is a task; None where no device has room for it.

        Waits for the first samples, and for start-ups of others to be over. No child of another worker ends for it.
        """
        while True:
            self._context.changed.clear()
            made = await self.plan([Waiting(demand.name, demand, rank=0, age=0)], slots=1, held="")
            grant = await self.reserve(made.starts[0]) if made.starts else None
            if grant is not None or not (self.devices.awaited or self._has_room_for(demand)):
                return grant
            await self._context.changed.wait()

    def _has_room_for(self, demand: Demand) -> bool:
        return any(
            room_of(ledger, with_told(one, ledger)) >= demand.memory
            for one in self.devices.usable
            if (ledger := self._read.get(one.uuid)) is not None
        )

    async def reserve(self, start: Start) -> Grant | None:
        """Have a task's memory promised; None where somebody else was faster."""
        demand, sample, grant = start.waiting.demand, start.sample, start.grant
        if grant is not None:
            # What a warm child uses stays its own.
            resident = sample.used.get(grant.owner, 0)
            mib = max(demand.memory, resident)
            ledger = self._read.get(sample.uuid, _UNREAD)
            # One task may start on a device that is held, or tried after a quarantine: the ledger decides which.
            if demand.memory <= grant.mib and not (self._limit(sample) or ledger.quarantine or ledger.held_for):
                grant.take_for(demand, mib)
                return grant
            wanted = grant
            reservation = attrs.evolve(grant.reservation, mib=mib)
        else:
            index = 0 if self._in_children else self.devices.index(sample)
            wanted = self.grants.new(sample, index, demand)
            reservation = wanted.reservation
        answer = await self._ledgers.reserve(
            sample.uuid,
            reservation,
            free=sample.free,
            used=sample.used,
            limit=self._limit(sample),
            start_grace=self._config.gpu_settle_time if self._in_children and grant is None else 0,
            holder=f"{self._queue} {start.waiting.name}",
        )
        if answer != "ok":
            log.debug("GPU %s: %s", sample.uuid, answer)
            return None
        if grant is not None:
            grant.take_for(demand, reservation.mib)
            return grant
        # As a plan's sample has it; from now on, what this process uses more is its tasks' memory.
        self._resident.setdefault(sample.uuid, sample.used.get(self._owner, 0))
        self.grants.add(wanted)
        return wanted

    def _limit(self, sample: GpuSample) -> int:
        if not sample.exclusive:
            return self._config.tasks_per_gpu or 0
        return ONE_PROCESS if self._in_children else ONE_WORKER

    async def post(self, made: Plan, name: str) -> None:
        """End idle children that are in the way, and tell other workers what is needed or held here."""
        for grant in made.evictions:
            log.info("GPU %s: an idle child ends to make room", grant.uuid)
            grant.end_child()
        for uuid, mib in made.needs:
            await self._ledgers.need(uuid, mib, HOLD)
        if made.hold is not None:
            mib = made.hold.waiting.demand.memory
            await self._ledgers.hold(made.hold.sample.uuid, f"{self._queue} {name}", mib, HOLD)

    # What was granted

    def is_crowded(self, grant: Grant, pids: Iterable[int]) -> bool:
        """Whether other programs use memory that was promised to an attempt.

        Its error may name them by their `pids`, our own children among them; else the last sample tells, if NVML says
        what the attempt's process uses.
        """
        ledger = self._read.get(grant.uuid, _UNREAD)
        owners = {self._owner, grant.owner, *(one.owner for one in ledger.reservations.values())}
        owners.update(one.owner for one in self.grants)
        if any(owner_in_session(pid) not in owners for pid in pids):
            return True
        sample = next((one for one in self.devices.usable if one.uuid == grant.uuid), None)
        used = 0 if sample is None else sample.used.get(grant.owner, 0)
        return sample is not None and used > 0 and sample.free + used < grant.mib

    def failed(self, grant: Grant, task_id: str, why: str) -> None:
        """Note that a task failed as on a broken device."""
        self._faults.failed(grant.uuid, task_id, why)
        self._context.changed.set()

    def succeeded(self, grant: Grant) -> None:
        """Note that a task succeeded: its device works."""
        ledger = self._read.get(grant.uuid, _UNREAD)
        if ledger.quarantine or ledger.doubted:
            self._faults.succeeded(grant.uuid)
            self._context.changed.set()

    async def tidy(self) -> None:
        """Bring the ledgers up to date with what has ended, and with what NVML shows."""
        await self._upkeep.tidy(self._queue)
