"""Tells workers in other containers how much memory child processes here use: they do not see these processes."""

from collections.abc import Iterable, Mapping

from maas_backoff.gate.grant import Grant
from maas_backoff.gate.owner import is_contained, is_elsewhere
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import DeviceLedger


class UseReports:
    """The use of memory that others are to be told of."""

    def __init__(self, held: Mapping[str, Grant]) -> None:
        """`held` are the worker's grants, by id."""
        self._held = held
        self._shared: set[str] = set()
        """Devices that workers in other containers use, too."""

    def note_use(self, samples: Iterable[GpuSample]) -> None:
        """Note from new GPU samples how much memory the processes use."""
        by_uuid = {one.uuid: one for one in samples}
        for grant in self._held.values():
            if sample := by_uuid.get(grant.uuid):
                grant.child.shown(sample, in_attempt=grant.state == "running")

    def note_others(self, uuid: str, ledger: DeviceLedger) -> None:
        """Note from a device's ledger whether workers in other containers use the device."""
        if any(is_elsewhere(one.owner) for one in ledger.reservations.values()):
            self._shared.add(uuid)
        else:
            self._shared.discard(uuid)

    @property
    def are_due(self) -> bool:
        """Whether others are to be told what some process here uses."""
        return any(self.is_due(grant) for grant in self._held.values())

    def is_due(self, grant: Grant) -> bool:
        """Whether others are to be told what the process of a grant uses."""
        child = grant.child
        return child.seen > 0 and not child.told and (is_contained() or grant.uuid in self._shared)
