"""Memory that children of workers in other containers use: NVML shows a container its own processes only.

Their workers write what they see into the device's ledger. A child's memory then counts once: as used, and no longer as
promised and not used yet. The ledger's number is up to SEEN_FOR old, and the free memory is of another moment. Memory
that a child has just given back must not count as free and as used at the same time.
"""

from collections import deque

import attrs

from maas_backoff.gate.owner import is_elsewhere
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import SEEN_FOR, DeviceLedger

WATCHED_FOR = SEEN_FOR + 1.0
"""The free memory counts as the least of so many seconds. The ledger reports the end of a child earlier than that."""


def with_reported(sample: GpuSample, ledger: DeviceLedger) -> GpuSample:
    """Return a sample that also shows the memory that workers of other containers report of their children."""
    reported = {one.owner: one.seen for one in ledger.reservations.values() if is_elsewhere(one.owner)}
    return attrs.evolve(sample, used={**sample.used, **reported}) if reported else sample


class Others:
    """The memory that others report on one device, as far as it can be relied on."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        """By moments of samples: what was free, or in use by owners that are known."""

    def believed(self, sample: GpuSample, ledger: DeviceLedger) -> GpuSample:
        """Return the sample with the reported memory, and no more free than was free or known to be used all the while.

        A child that gives memory back makes that sum larger until its worker reports it: too large. A child that takes
        more makes it smaller: then less is given for a while.
        """
        shown = with_reported(sample, ledger)
        if shown is sample:
            self._seen.clear()
            return sample
        owners = {one.owner for one in ledger.reservations.values()}
        known = shown.free + sum(shown.used.get(owner, 0) for owner in owners)
        if self._seen and sample.at - self._seen[-1][0] > SEEN_FOR:
            self._seen.clear()  # no sample came for a while
        least = known
        if self._seen and self._seen[-1][0] == sample.at:
            least = min(known, self._seen.pop()[1])  # the same sample, with a newer ledger
        self._seen.append((sample.at, least))
        begin = sample.at - WATCHED_FOR
        while len(self._seen) > 1 and self._seen[1][0] <= begin:
            self._seen.popleft()
        if self._seen[0][0] > begin:
            return sample  # not watched for long enough
        return attrs.evolve(shown, free=shown.free - (known - min(before for _, before in self._seen)))
