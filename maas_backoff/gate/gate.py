"""The gate of one worker: which tasks may start on which of its devices."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.threads import in_thread
from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.devices import Devices
from maas_backoff.gate.faults import Faults
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.grants import Grants
from maas_backoff.gate.known import KnownLedgers
from maas_backoff.gate.lapsed import Lapsed
from maas_backoff.gate.others import Others, with_reported
from maas_backoff.gate.overview import Overview
from maas_backoff.gate.own import OwnProcess
from maas_backoff.gate.owner import still_runs
from maas_backoff.gate.placement import Placement, Plan, plan, room_of
from maas_backoff.gate.sample import GpuSample, Probe
from maas_backoff.gate.upkeep import Upkeep
from maas_backoff.store.ledger import ONE_PROCESS, ONE_WORKER, DeviceLedger, Ledgers, Reservation

log: Log = log_for("gpu")

HOLD = 5.0
"""Seconds that a hold, or a call for room, lasts without being said again."""


class Gate:
    """Admits tasks to devices, for one worker of one queue."""

    def __init__(
        self, probe: Probe, ledgers: Ledgers, context: GateContext, hand_back: Callable[[Grant], None]
    ) -> None:
        """`hand_back` is called to end the attempt that has a grant, and to hand its task back."""
        self.devices: Devices = Devices(probe, context.config.gpus, context.clock)
        self._known = KnownLedgers(ledgers)
        self.grants: Grants = Grants(self.devices, ledgers, self._known, context)
        self._own = OwnProcess(in_children=context.in_children)
        self.faults: Faults = Faults(ledgers, self._known, context)
        self.overview: Overview = Overview(self.devices, self.grants, self._known, self._own, context)
        self._ledgers = ledgers
        self._context = context
        self._others: defaultdict[str, Others] = defaultdict(Others)
        lapsed = Lapsed(self.devices, self.grants, ledgers, self._known, hand_back)
        self._upkeep = Upkeep(self.devices, self.grants, self._known, self.faults, lapsed, context)

    def start(self) -> None:
        """Begin to read devices, unless none are wanted."""
        loop = asyncio.get_running_loop()

        def sampled() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(self._sampled)

        self.devices.start(sampled)

    async def aclose(self) -> None:
        """Give everything back, and stop reading. The attempts and their processes have ended."""
        self.devices.stop()
        await self.grants.release_all()
        await self._ledgers.aclose()

    async def tidy(self) -> None:
        """Bring the ledgers up to date with what has ended, and with what NVML shows."""
        await self._upkeep.tidy()

    async def plan(self, waiting: Sequence[Waiting], *, slots: int, held: str) -> Plan:
        """Return what to do for those that wait, by the ledgers as they are now."""
        samples = list[GpuSample]()
        ledgers = dict[str, DeviceLedger]()
        for one in map(self._own.with_cache_free, self.devices.usable):
            ledger = ledgers[one.uuid] = await self._known.read(one.uuid)
            samples.append(self._others[one.uuid].believed(one, ledger))
        self.devices.warn_without_load(waiting)
        config = self._context.config
        return plan(
            waiting,
            samples,
            ledgers,
            list(self.grants),
            queue=self._context.queue,
            slots=slots,
            limit=config.tasks_per_gpu or 0,
            starts_children=self._context.in_children,
            starvation_after=config.starvation_after,
            held=held,
        )

    async def reserve(self, placement: Placement) -> Grant | None:
        """Reserve the memory of a task. Return None if another worker was faster."""
        grant = placement.grant
        return await (self._reserve_anew(placement) if grant is None else self._reserve_in(grant, placement))

    async def first_grant(self, demand: Demand) -> Grant | None:
        """Return a place for a child that is started before there is a task; None where no device has room for it.

        Waits for the first samples, and for start-ups of others to be over. It ends no child of another worker.
        """
        changed = self._context.changed
        while True:
            changed.clear()
            made = await self.plan([Waiting(demand.name, demand, rank=0, age=0)], slots=1, held="")
            grant = await self.reserve(made.starts[0]) if made.starts else None
            if grant is not None or not (self.devices.awaited or self._has_room_for(demand)):
                return grant
            await changed.wait()

    async def post(self, made: Plan) -> None:
        """End idle children that are in the way, and write into the ledgers what is needed or held here."""
        for grant in made.evictions:
            log.info("GPU %s: an idle child ends to make room", grant.uuid)
            grant.end_child()
        for uuid, mib in made.needs:
            await self._ledgers.need(uuid, mib, HOLD)
        if made.hold is not None:
            waiting = made.hold.waiting
            holder = f"{self._context.queue} {waiting.name}"
            await self._ledgers.hold(made.hold.sample.uuid, holder, waiting.demand.memory, HOLD)

    async def release_ended(self, worker: str) -> bool:
        """Delete the reservations of another worker of this host, which has ended.

        Return False if a process still runs that has one of them: it may still use the memory.
        """
        done = True
        for one in self.devices.all:
            ledger = await self._known.read(one.uuid)
            theirs = [reservation for reservation in ledger.reservations.values() if reservation.worker == worker]
            free = await in_thread(partial(_ended, theirs))
            if free:
                await self._ledgers.release(one.uuid, free)
            done = done and len(free or ()) == len(theirs)
        self._context.changed.set()
        return done

    def _sampled(self) -> None:
        self.grants.note_use()
        self._context.changed.set()

    def _has_room_for(self, demand: Demand) -> bool:
        return any(
            room_of(self._known[one.uuid], with_reported(one, self._known[one.uuid])) >= demand.memory
            for one in self.devices.usable
            if one.uuid in self._known
        )

    # Reservations

    async def _reserve_in(self, grant: Grant, placement: Placement) -> Grant | None:
        """Reserve the memory for the next task of a warm child."""
        demand, sample = placement.waiting.demand, placement.sample
        mib = max(demand.memory, sample.used.get(grant.owner, 0))  # what a warm child uses stays its own
        ledger = self._known[sample.uuid]
        # One task may start on a device that is held, or tried after a quarantine: the ledger decides which.
        # A reservation that has lapsed is not there any more: others may have its memory.
        asks = demand.memory > grant.mib or self._limit(sample) or ledger.quarantine or ledger.held_for
        asks = asks or grant.id not in ledger.reservations
        if asks and not await self._is_accepted(placement, grant.reservation._replace(mib=mib)):
            return None
        grant.take_for(demand, mib)
        return grant

    async def _reserve_anew(self, placement: Placement) -> Grant | None:
        """Reserve the memory for a task in a new child, or in this process."""
        sample, in_children = placement.sample, self._context.in_children
        grant = self.grants.new(sample, 0 if in_children else self.devices.index(sample), placement.waiting.demand)
        start_grace = self._context.config.gpu_settle_time if in_children else 0
        if not await self._is_accepted(placement, grant.reservation, start_grace):
            return None
        self._own.note_first_task(sample)
        self.grants.add(grant)
        return grant

    async def _is_accepted(self, placement: Placement, wanted: Reservation, start_grace: float = 0) -> bool:
        sample = placement.sample
        answer = await self._ledgers.reserve(
            sample.uuid,
            wanted,
            free=sample.free,
            used=sample.used,
            limit=self._limit(sample),
            start_grace=start_grace,
            holder=f"{self._context.queue} {placement.waiting.name}",
        )
        if answer != "ok":
            log.debug("GPU %s: %s", sample.uuid, answer)
        return answer == "ok"

    def _limit(self, sample: GpuSample) -> int:
        """Return how many tasks may run on a device at once, as `Ledgers.reserve` takes it."""
        if not sample.exclusive:
            return self._context.config.tasks_per_gpu or 0
        return ONE_PROCESS if self._context.in_children else ONE_WORKER


def _ended(reservations: Iterable[Reservation]) -> list[str]:
    """Return the ids of reservations whose process has ended. Reads files."""
    return [one.id for one in reservations if not still_runs(one.owner)]
