"""Reservations that have lapsed, as this worker stood still for longer than a lease: reserved again, or given up."""

from collections.abc import Callable

from maas_backoff.common.guard import Log, log_for
from maas_backoff.gate.devices import Devices
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.grants import Grants
from maas_backoff.gate.known import KnownLedgers
from maas_backoff.gate.others import with_reported
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import Ledgers

log: Log = log_for("gpu")


class Lapsed:
    """The lapsed reservations of child processes. Others may have their memory by now."""

    def __init__(
        self,
        devices: Devices,
        grants: Grants,
        ledgers: Ledgers,
        known: KnownLedgers,
        hand_back: Callable[[Grant], None],
    ) -> None:
        """`hand_back` ends the attempt of a grant, and hands its task back."""
        self._devices = devices
        self._grants = grants
        self._ledgers = ledgers
        self._known = known
        self._hand_back = hand_back

    async def reclaim(self) -> None:
        """Reserve the memory again. If others have the memory, end the child, and hand the task back."""
        for grant in self._grants.renewal.lapsed_children:
            await self._reclaim(grant)

    async def _reclaim(self, grant: Grant) -> None:
        sample = self._devices.usable_one(grant.uuid)
        if sample is None:
            return  # the next sample shows whether there is room
        # The memory of a child that has ended needs no reservation: no task gets it before NVML shows it free.
        lives = grant.state != "ending" and not grant.child.ended
        if lives and not await self._is_reserved_again(grant, sample):
            log.warning("GPU %s: others have the room of a reservation that has lapsed: its child ends", grant.uuid)
            self._hand_back(grant)
            if grant.state == "idle":
                grant.end_child()
        self._grants.renewal.reclaimed(grant)

    async def _is_reserved_again(self, grant: Grant, sample: GpuSample) -> bool:
        shown = with_reported(sample, await self._known.read(grant.uuid))
        answer = await self._ledgers.reserve(
            grant.uuid, grant.reservation, free=shown.free, used=shown.used, limit=0, start_grace=0, holder=""
        )
        return answer == "ok"
