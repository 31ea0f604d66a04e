"""Reports to workers in other containers how much memory child processes here use: they cannot see these processes."""

from collections.abc import Iterable, Mapping

from maas_backoff.gate.grant import Grant
from maas_backoff.gate.known import KnownLedgers
from maas_backoff.gate.owner import is_contained, is_elsewhere
from maas_backoff.gate.sample import GpuSample


class UseReports:
    """The use of memory that the ledgers do not have yet, and other workers need."""

    def __init__(self, held: Mapping[str, Grant], known: KnownLedgers) -> None:
        """`held` are the worker's grants, by id."""
        self._held = held
        self._known = known

    def note_use(self, samples: Iterable[GpuSample]) -> None:
        """Note from new GPU samples how much memory the processes use."""
        by_uuid = {one.uuid: one for one in samples}
        for grant in self._held.values():
            if sample := by_uuid.get(grant.uuid):
                grant.child.shown(sample, in_attempt=grant.state == "running")

    @property
    def are_due(self) -> bool:
        """Whether the use of some process here must be reported."""
        return any(self.is_due(grant) for grant in self._held.values())

    def is_due(self, grant: Grant) -> bool:
        """Whether the use of a grant's process must be reported."""
        child = grant.child
        return child.seen > 0 and not child.reported and (is_contained() or self._is_shared(grant.uuid))

    def _is_shared(self, uuid: str) -> bool:
        """Whether workers in other containers use the device, too."""
        return any(is_elsewhere(one.owner) for one in self._known[uuid].reservations.values())
