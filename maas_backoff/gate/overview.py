"""The devices of one worker as the registry has them, and what tasks can be given there. Read-only."""

from collections.abc import Iterable

from maas_backoff.domain.worker import Device
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.devices import Devices
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.grants import Grants
from maas_backoff.gate.known import KnownLedgers
from maas_backoff.gate.others import with_reported
from maas_backoff.gate.own import OwnProcess
from maas_backoff.gate.owner import owner_in_session
from maas_backoff.gate.placement import most_of, room_of, used_by_other_processes
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import DeviceLedger, holder


class Overview:
    """Combines the newest GPU samples with the ledgers. Only `describe` is for other threads."""

    def __init__(
        self, devices: Devices, grants: Grants, known: KnownLedgers, own: OwnProcess, context: GateContext
    ) -> None:
        self._devices = devices
        self._grants = grants
        self._known = known
        self._own = own
        self._context = context

    def describe(self) -> list[dict[str, object]]:
        """Return the devices for the registry of workers."""
        return [self._described(one).to_entry() for one in self._devices.all]

    @property
    def most(self) -> int:
        """MiB that a task could be given at best on any device here."""
        devices = self._devices.usable
        return max((self._most_on(one, self._with_own_grants(one.uuid)) for one in devices), default=0)

    def is_crowded(self, grant: Grant, pids: Iterable[int]) -> bool:
        """Whether other processes use memory that was reserved for an attempt.

        `pids` are the processes that the attempt's error names, our own children among them. Otherwise the newest GPU
        sample decides, if NVML says how much the attempt's process uses.
        """
        reservations = self._known[grant.uuid].reservations.values()
        owners = {self._own.owner, grant.owner, *(one.owner for one in reservations)}
        owners.update(one.owner for one in self._grants)
        if any(owner_in_session(pid) not in owners for pid in pids):
            return True
        sample = self._devices.usable_one(grant.uuid)
        used = 0 if sample is None else sample.used.get(grant.owner, 0)
        return sample is not None and used > 0 and sample.free + used < grant.mib

    def _described(self, one: GpuSample) -> Device:
        ledger = self._with_own_grants(one.uuid)
        shown = with_reported(one, ledger)
        age = self._devices.age(one)
        stale = f"the last GPU sample is {age:.0f} s old" if self._devices.is_old(one) else ""
        return Device(
            uuid=one.uuid,
            index=one.index,
            name=one.name,
            total=one.total,
            free=one.free,
            room=max(0, room_of(ledger, shown)),
            most=self._most_on(one, ledger),
            utilization=one.utilization,
            temperature=one.temperature,
            health=one.trouble or stale or (f"quarantine: {ledger.quarantine}" if ledger.quarantine else "ok"),
            age=round(age, 3),
            closed=self._closed(ledger),
            other_processes=used_by_other_processes(ledger, shown, self._own.used(one)),
        )

    def _with_own_grants(self, uuid: str) -> DeviceLedger:
        """Return the known ledger of a device, with the grants that this worker got since it read the ledger."""
        ledger = self._known[uuid]
        mine = {one.id: one.reservation for one in self._grants if one.uuid == uuid}
        return ledger._replace(reservations={**ledger.reservations, **mine})

    def _most_on(self, sample: GpuSample, ledger: DeviceLedger) -> int:
        """Return the MiB of `most_of`; the memory that this worker's own process uses counts as free for its tasks."""
        if self._context.in_children:
            return most_of(ledger, with_reported(sample, ledger))
        # Its tasks and what they leave behind are all in its own process.
        mine = {one.id: one.mib for one in self._grants if one.uuid == sample.uuid}
        others = {name: one for name, one in ledger.reservations.items() if name not in mine}
        ledger = ledger._replace(reservations=others)
        own = max(self._own.used(sample), sum(mine.values()))
        return min(sample.total, most_of(ledger, with_reported(sample, ledger)) + own)

    def _closed(self, ledger: DeviceLedger) -> str:
        """Return what keeps all tasks, or all but one kind, from a device that is well."""
        running, limit = ledger.running, self._context.config.tasks_per_gpu
        if limit and running >= limit:
            return f"runs {running} tasks, which is tasks_per_gpu"
        return f"is held for {holder(ledger.held_for)}" if ledger.held_for else ""
