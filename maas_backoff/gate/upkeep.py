"""Keeps the ledgers of devices true: after each sample, and after a worker stood still."""

from collections.abc import Callable, MutableMapping

from maas_backoff.common.guard import log_for
from maas_backoff.gate.devices import Devices
from maas_backoff.gate.faults import Faults
from maas_backoff.gate.fit import room_of
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.grants import Grants
from maas_backoff.gate.others import with_told
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import DeviceLedger, Ledgers

log = log_for("gpu")


class Upkeep:
    """The part of a worker's gate that follows what has ended, was lost, or is needed elsewhere."""

    def __init__(
        self,
        devices: Devices,
        grants: Grants,
        ledgers: Ledgers,
        faults: Faults,
        read: MutableMapping[str, DeviceLedger],
        hand_back: Callable[[Grant], None],
    ) -> None:
        """Take the newest ledgers, by UUID, from `read`, and renew them there.

        `hand_back` ends the attempt of a grant, and hands its task back.
        """
        self._devices = devices
        self._grants = grants
        self._ledgers = ledgers
        self._faults = faults
        self._read = read
        self._hand_back = hand_back

    async def tidy(self, queue: str) -> None:
        """Bring the ledgers up to date with what has ended, and with what NVML shows."""
        for uuid in await self._faults.tell(self._devices.all):
            self._read[uuid] = await self._ledgers.read(uuid)
        for grant in self._grants.renewal.lapsed_children:
            await self._reclaim(grant)
        await self._grants.tidy()
        if self._grants.have_warm_children:
            await self._make_room_for_others(queue)

    async def _reclaim(self, grant: Grant) -> None:
        """Ask again for memory whose reservation has lapsed, as this worker stood still for longer than a lease.

        Others may have been given that memory. Then its child is ended, and the task is handed back. The memory of a
        child that has ended needs no reservation: nobody counts on it before NVML shows it free.
        """
        sample = next((one for one in self._devices.usable if one.uuid == grant.uuid), None)
        if sample is None:
            return  # the next sample tells whether there is room
        if grant.state != "ending" and not grant.child.ended and not await self._is_reserved_again(grant, sample):
            log.warning("GPU %s: others have the room of a reservation that has lapsed: its child ends", grant.uuid)
            self._hand_back(grant)
            if grant.state == "idle":
                grant.end_child()
        self._grants.renewal.reclaimed(grant)

    async def _is_reserved_again(self, grant: Grant, sample: GpuSample) -> bool:
        ledger = self._read[grant.uuid] = await self._ledgers.read(grant.uuid)
        shown = with_told(sample, ledger)
        answer = await self._ledgers.reserve(
            grant.uuid, grant.reservation, free=shown.free, used=shown.used, limit=0, start_grace=0, holder=""
        )
        return answer == "ok"

    async def _make_room_for_others(self, queue: str) -> None:
        """End idle children on devices where another worker waits for room."""
        samples = {one.uuid: one for one in self._devices.all}
        idle = [grant for grant in self._grants if grant.is_warm]
        for uuid in {grant.uuid for grant in idle}:
            ledger = self._read[uuid] = await self._ledgers.read(uuid)
            sample = samples.get(uuid)
            if ledger.held_for and not ledger.held_for.startswith(f"{queue} "):
                needed = sample.total if sample else 0
            else:
                needed = ledger.needed
            if sample is not None and needed > max(0, room_of(ledger, with_told(sample, ledger))):
                log.info("GPU %s: idle children end for tasks of another worker", uuid)
                for grant in idle:
                    if grant.uuid == uuid:
                        grant.end_child()
