"""All that one worker was granted of its devices: named, renewed, watched, and given back."""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from maas_backoff.domain.demand import Demand
from maas_backoff.gate.devices import Devices
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.owner import is_contained, is_elsewhere
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.connect import Client
from maas_backoff.store.ledger import DeviceLedger, Ledgers, Reservation

SOON = 2.0
"""Seconds after its end for which a grant asks for samples out of turn."""


class Grants:
    """The grants that stand, and what the ledgers say of them. Only `held` and `renew` are for other threads."""

    def __init__(
        self,
        devices: Devices,
        ledgers: Ledgers,
        *,
        worker: str,
        queue: str,
        release_timeout: float,
        pulse: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`release_timeout`: seconds until a grant whose process has ended is given up, whatever NVML shows.

        `pulse` is set when something may have changed. `clock` is that of the samples.
        """
        self._devices = devices
        self._ledgers = ledgers
        self._worker = worker
        self._queue = queue
        self._release_timeout = release_timeout
        self._pulse = pulse
        self._clock = clock
        self._held: dict[str, Grant] = {}
        self._numbers = itertools.count(1)
        self._missing: set[str] = set()
        self._shared: set[str] = set()
        """Devices that workers in other containers use: they do not see the processes of this one."""

    def __iter__(self) -> Iterator[Grant]:
        return iter(list(self._held.values()))

    def new(self, sample: GpuSample, index: int, demand: Demand) -> Grant:
        """Return what could be granted of a device; it stands when it is added."""
        name = f"{self._worker}/{next(self._numbers)}"
        return Grant(name, sample.uuid, index, demand.memory, demand, sample.cuda_name, clock=self._clock)

    def add(self, grant: Grant) -> None:
        """Keep what the ledger has accepted."""
        self._held[grant.id] = grant

    def reservation(self, grant: Grant) -> Reservation:
        """Return a grant as it stands in its device's ledger."""
        return Reservation(
            *(grant.id, grant.mib, grant.state, grant.owner, self._worker, self._queue, grant.task_id or "-"),
            seen=grant.seen,
        )

    @property
    def awaits_sample(self) -> bool:
        """Whether some wait for a sample: of memory that comes back, or of what a warm child keeps."""
        read = {one.uuid: one.at for one in self._devices.all}
        return any(
            grant.changed
            or grant.id in self._missing
            or grant.state == "ending"
            or (grant.state == "idle" and (grant.evict is None or read.get(grant.uuid, 0) <= grant.since))
            for grant in self
        )

    @property
    def keep_children(self) -> bool:
        """Whether warm children wait for tasks, and others may want their room."""
        return any(grant.state == "idle" and grant.evict is not None for grant in self)

    def note_use(self) -> None:
        """Note from new samples how much memory the processes use."""
        samples = {one.uuid: one for one in self._devices.all}
        for grant in self:
            if grant.uuid in samples:
                grant.shown(samples[grant.uuid])

    def note_others(self, uuid: str, ledger: DeviceLedger) -> None:
        """Note from a device's ledger whether workers in other containers use the device."""
        if any(is_elsewhere(one.owner) for one in ledger.reservations.values()):
            self._shared.add(uuid)
        else:
            self._shared.discard(uuid)

    @property
    def untold(self) -> bool:
        """Whether others are to be told what processes here use."""
        return any(self._is_untold(grant) for grant in self)

    def _is_untold(self, grant: Grant) -> bool:
        return grant.seen > 0 and not grant.told and (is_contained() or grant.uuid in self._shared)

    def soon(self) -> None:
        """Have the devices read again soon, for what has just ended; what takes longer waits for the usual sample."""
        now = self._clock()
        if any(now - grant.since < SOON and grant.state != "running" for grant in self):
            self._devices.soon()

    # By the heartbeat, in its own thread

    def held(self) -> dict[str, list[Reservation]]:
        """Return what has to be renewed, by device."""
        found: dict[str, list[Reservation]] = {}
        for grant in self:
            found.setdefault(grant.uuid, []).append(self.reservation(grant))
        return found

    async def renew(self, uuid: str, reservations: Sequence[Reservation], client: Client) -> list[str]:
        """Renew reservations by the heartbeat's client; the ids of those that are not there."""
        return await self._ledgers.renew(uuid, reservations, client)

    def missing(self, ids: Iterable[str]) -> None:
        """Note reservations that are not in the ledger: this worker stood still for longer than a lease."""
        self._missing.update(name for name in ids if name in self._held)
        if self._missing:
            self._pulse.set()

    @property
    def lapsed(self) -> list[Grant]:
        """The grants of child processes that are not in the ledger any more: others may have their memory."""
        return [grant for grant in self if grant.id in self._missing and grant.owner != "-"]

    def reclaimed(self, grant: Grant) -> None:
        """Note that it is decided what becomes of a grant that had lapsed."""
        self._missing.discard(grant.id)
        grant.changed = True

    # Given back

    async def tidy(self) -> None:
        """Bring the ledgers up to date with what has ended, and with what NVML shows."""
        samples = {one.uuid: one for one in self._devices.all}
        gone: dict[str, list[Grant]] = {}
        changed: dict[str, list[Grant]] = {}
        for grant in self:
            if self._is_over(grant, samples.get(grant.uuid)):
                del self._held[grant.id]
                gone.setdefault(grant.uuid, []).append(grant)
            elif grant.changed or self._is_lapsed_thread(grant) or self._is_untold(grant):
                changed.setdefault(grant.uuid, []).append(grant)
        try:
            while gone:
                uuid, grants = next(iter(gone.items()))
                await self._ledgers.release(uuid, [grant.id for grant in grants])
                del gone[uuid]
        finally:
            # Without an answer, or stopped meanwhile, they are still to be given back.
            self._held |= {grant.id: grant for grants in gone.values() for grant in grants}
        for uuid, grants in changed.items():
            await self._keep(uuid, grants)

    async def _keep(self, uuid: str, grants: Sequence[Grant]) -> None:
        """Have a device's ledger say what is so. Without an answer, it is said again."""
        lapsed = [grant for grant in grants if self._is_lapsed_thread(grant)]
        present = [grant for grant in grants if grant not in lapsed]
        for grant in grants:
            grant.changed, grant.told = False, True
        try:
            if present:
                await self._ledgers.keep(uuid, map(self.reservation, present))
            if lapsed:
                await self._ledgers.keep(uuid, map(self.reservation, lapsed), again=True)
        except BaseException:
            for grant in grants:
                grant.changed = True
            raise
        self._missing.difference_update(grant.id for grant in lapsed)

    def _is_lapsed_thread(self, grant: Grant) -> bool:
        """Whether a reservation of a thread has lapsed: a thread cannot be stopped, so it is entered again."""
        return grant.id in self._missing and grant.owner == "-"

    def _is_over(self, grant: Grant, sample: GpuSample | None) -> bool:
        """Learn from a sample what a grant still stands for; True where nothing is left of it."""
        used = 0 if sample is None else sample.used.get(grant.owner, 0)
        fresh = sample is not None and not sample.trouble and sample.at > grant.since
        overdue = self._clock() - grant.since > self._release_timeout
        match grant.state:
            case "running":
                return False
            case "idle" if grant.evict is not None:
                if sample is None or sample.trouble:
                    grant.end_child()
                elif fresh and used and grant.mib != used:
                    # Its next task is judged by what it uses now. What NVML attributes to nobody stays reserved.
                    grant.mib, grant.changed = used, True
                return False
            case "idle" if grant.owner == "-":
                return fresh or overdue
            case _:
                # The process has ended, or is about to: until NVML shows its memory back, nobody else counts on it.
                return (fresh and not used) or overdue

    async def release_all(self) -> None:
        """Give everything back. The attempts and their processes have ended."""
        by_device: dict[str, list[str]] = {}
        for grant in self:
            by_device.setdefault(grant.uuid, []).append(grant.id)
        for uuid, ids in by_device.items():
            await self._ledgers.release(uuid, ids)
        self._held.clear()
