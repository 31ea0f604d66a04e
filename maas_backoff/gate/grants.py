"""All that one worker was granted of its devices: named, watched, and given back."""

import itertools
from collections.abc import Iterator, Sequence

from maas_backoff.domain.demand import Demand
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.devices import Devices
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.known import KnownLedgers
from maas_backoff.gate.renewal import Renewal
from maas_backoff.gate.reports import UseReports
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import Ledgers

SOON = 2.0
"""Seconds after its end for which a grant asks for GPU samples out of turn."""


class Grants:
    """The grants of one worker, and what the ledgers say of them."""

    def __init__(self, devices: Devices, ledgers: Ledgers, known: KnownLedgers, context: GateContext) -> None:
        self._devices = devices
        self._ledgers = ledgers
        self._context = context
        self._held: dict[str, Grant] = {}
        self._numbers = itertools.count(1)
        self.renewal: Renewal = Renewal(self._held, ledgers, context.changed)
        self.reports: UseReports = UseReports(self._held, known)

    def __iter__(self) -> Iterator[Grant]:
        """Iterate over a copy: also for other threads."""
        return iter(list(self._held.values()))

    def new(self, sample: GpuSample, index: int, demand: Demand) -> Grant:
        """Return a grant on the device of a GPU sample. The grant counts when it is added."""
        return Grant(f"{self._context.worker}/{next(self._numbers)}", self._context, sample, index, demand)

    def add(self, grant: Grant) -> None:
        """Keep a grant that the ledger has accepted."""
        self._held[grant.id] = grant

    @property
    def needs_tidy(self) -> bool:
        """Whether `tidy` has work left: a write, a lapsed reservation, or memory that a GPU sample must show first."""
        read = {one.uuid: one.at for one in self._devices.all}
        return any(
            grant.changed
            or self.renewal.has_lapsed(grant)
            or grant.state == "ending"
            or (grant.state == "idle" and (not grant.is_warm or read.get(grant.uuid, 0) <= grant.since))
            for grant in self
        )

    @property
    def have_warm_children(self) -> bool:
        """Whether warm children wait for tasks, and others may want their room."""
        return any(grant.is_warm for grant in self)

    def note_use(self) -> None:
        """Note from new GPU samples how much memory the processes use."""
        self.reports.note_use(self._devices.all)

    def soon(self) -> None:
        """Have the devices read again soon, for what has just ended; what takes longer waits for the usual sample."""
        now = self._context.clock()
        if any(now - grant.since < SOON and grant.state != "running" for grant in self):
            self._devices.soon()

    # Given back

    async def tidy(self) -> None:
        """Bring the ledgers up to date with what has ended, and with what NVML shows."""
        samples = {one.uuid: one for one in self._devices.all}
        gone: dict[str, list[Grant]] = {}
        changed: dict[str, list[Grant]] = {}
        for grant in self:
            if self._follow(grant, samples.get(grant.uuid)):
                del self._held[grant.id]
                gone.setdefault(grant.uuid, []).append(grant)
            elif grant.changed or self.renewal.is_lapsed_thread(grant) or self.reports.is_due(grant):
                changed.setdefault(grant.uuid, []).append(grant)
        await self._release(gone)
        for uuid, grants in changed.items():
            await self._write(uuid, grants)

    async def release_all(self) -> None:
        """Give everything back. The attempts and their processes have ended."""
        by_device: dict[str, list[str]] = {}
        for grant in self:
            by_device.setdefault(grant.uuid, []).append(grant.id)
        for uuid, ids in by_device.items():
            await self._ledgers.release(uuid, ids)
        self._held.clear()

    def _follow(self, grant: Grant, sample: GpuSample | None) -> bool:
        """Apply a GPU sample to a grant. Return whether the grant has ended.

        The grant of a warm child becomes as large as its use.
        """
        used = 0 if sample is None else sample.used.get(grant.owner, 0)
        fresh = sample is not None and not sample.trouble and sample.at > grant.since
        overdue = self._context.clock() - grant.since > self._context.config.gpu_release_timeout
        if grant.state == "running":
            return False
        if grant.is_warm:
            if sample is None or sample.trouble:
                grant.end_child()
            elif fresh and used and grant.mib != used:
                # Its next task is judged by its use now. Memory that NVML assigns to no process stays reserved.
                grant.resize(used)
            return False
        if grant.state == "idle" and grant.owner == "-":
            return fresh or overdue
        # The process has ended, or is about to: until NVML shows its memory back, no other task gets it.
        return (fresh and not used) or overdue

    async def _release(self, gone: dict[str, list[Grant]]) -> None:
        """Take grants out of the ledgers. Without an answer, or when cancelled, they stay for the next time."""
        try:
            while gone:
                uuid, grants = next(iter(gone.items()))
                await self._ledgers.release(uuid, [grant.id for grant in grants])
                del gone[uuid]
        finally:
            self._held |= {grant.id: grant for grants in gone.values() for grant in grants}

    async def _write(self, uuid: str, grants: Sequence[Grant]) -> None:
        """Have a device's ledger say what is so. Without an answer, it is said again."""
        lapsed = [grant for grant in grants if self.renewal.is_lapsed_thread(grant)]
        present = [grant for grant in grants if grant not in lapsed]
        for grant in grants:
            grant.written()
        try:
            if present:
                await self._ledgers.keep(uuid, [grant.reservation for grant in present])
            if lapsed:
                await self._ledgers.keep(uuid, [grant.reservation for grant in lapsed], again=True)
        except BaseException:
            for grant in grants:
                grant.write_again()
            raise
        self.renewal.entered(lapsed)
