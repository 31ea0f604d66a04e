"""A device as the probe keeps it between two samples, and how its memory is counted."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

import attrs

from maas_backoff.common.orphans import exists
from maas_backoff.gate.library import NvmlHandle
from maas_backoff.gate.owner import is_contained, owner_using

WINDOW = 5.0
"""Seconds that a utilisation is the average of; NVML's own covers the last sixth of a second to a second."""

MIB = 1_048_576


@attrs.define(eq=False)
class NvmlDevice:
    """One device of the last listing."""

    handle: NvmlHandle
    uuid: str
    index: int
    name: str
    exclusive: bool
    trouble: str
    """Why it is not to be used, as it was listed."""
    loads: deque[tuple[float, float]] = attrs.field(factory=deque[tuple[float, float]])
    """When the utilisation was read, and what it was."""
    failing_since: float = math.inf
    """When its memory could not be read for the first time since it could."""

    def note_load(self, now: float, load: float | None) -> None:
        """Note the utilisation now; None if NVML does not report it."""
        if load is None:
            self.loads.clear()
        else:
            self.loads.append((now, load))

    def average_load(self, now: float) -> float | None:
        """Return the utilisation over the last seconds: each value counts for the time since the one before."""
        while len(self.loads) > 1 and self.loads[1][0] < now - WINDOW:
            self.loads.popleft()
        if not self.loads:
            return None
        if len(self.loads) == 1:
            return self.loads[0][1]
        spans = [(until - since, load) for (since, _), (until, load) in pairwise(self.loads)]
        return sum(span * load for span, load in spans) / sum(span for span, _ in spans)


def memory_of(handle: NvmlHandle) -> tuple[int, int]:
    """Return total and free bytes. One that shares the machine's memory has what the machine has available."""
    total, free = handle.memory()
    return (total, free) if total else _machine_memory()


def by_owner(processes: Iterable[tuple[int, int]], in_use: int) -> Mapping[str, int]:
    """Return the MiB that owners use: together no more than is in use, whatever a garbled list says.

    Some drivers give a container the machine's process ids, which name other processes there, or none. A list with an
    id that names none is taken for such a one, and says nothing.
    """
    processes = list(processes)
    if is_contained() and not all(exists(pid) for pid, _ in processes):
        return {}
    used: dict[str, int] = {}
    for pid, amount in processes:
        owner = owner_using(pid)
        used[owner] = used.get(owner, 0) + amount
    reported = sum(used.values())
    share = in_use / reported if reported > in_use else 1
    return {owner: int(amount * share) // MIB for owner, amount in used.items()}


def _machine_memory() -> tuple[int, int]:
    """Return the machine's total and available bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    amounts = {words[0]: int(words[1]) * 1024 for words in lines}
    return amounts["MemTotal:"], amounts["MemAvailable:"]
