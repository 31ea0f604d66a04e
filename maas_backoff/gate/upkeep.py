"""Keeps the ledgers of devices true: after each GPU sample, and after a worker stood still."""

from collections.abc import Iterable

from maas_backoff.common.guard import Log, log_for
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.devices import Devices
from maas_backoff.gate.faults import Faults
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.grants import Grants
from maas_backoff.gate.known import KnownLedgers
from maas_backoff.gate.lapsed import Lapsed
from maas_backoff.gate.others import with_reported
from maas_backoff.gate.placement import room_of
from maas_backoff.gate.sample import GpuSample

log: Log = log_for("gpu")


class Upkeep:
    """The part of a worker's gate that follows what has ended, was lost, or is needed elsewhere."""

    def __init__(
        self,
        devices: Devices,
        grants: Grants,
        known: KnownLedgers,
        faults: Faults,
        lapsed: Lapsed,
        context: GateContext,
    ) -> None:
        self._devices = devices
        self._grants = grants
        self._known = known
        self._faults = faults
        self._lapsed = lapsed
        self._queue = context.queue

    async def tidy(self) -> None:
        """Bring the ledgers up to date with what has ended, and with what NVML shows."""
        await self._faults.write(self._devices.all)
        await self._lapsed.reclaim()
        await self._grants.tidy()
        await self._make_room_for_others()

    async def _make_room_for_others(self) -> None:
        """End idle children on devices where another worker waits for room."""
        samples = {one.uuid: one for one in self._devices.all}
        warm = [grant for grant in self._grants if grant.is_warm]
        for uuid in {grant.uuid for grant in warm} & samples.keys():
            if await self._others_need_room(samples[uuid]):
                log.info("GPU %s: idle children end for tasks of another worker", uuid)
                _end_children(grant for grant in warm if grant.uuid == uuid)

    async def _others_need_room(self, sample: GpuSample) -> bool:
        ledger = await self._known.read(sample.uuid)
        is_held_by_others = ledger.held_for and not ledger.held_for.startswith(f"{self._queue} ")
        needed = sample.total if is_held_by_others else ledger.needed
        return needed > max(0, room_of(ledger, with_reported(sample, ledger)))


def _end_children(grants: Iterable[Grant]) -> None:
    for grant in grants:
        grant.end_child()
