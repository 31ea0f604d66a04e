"""The decision where a waiting task may start: pure, from samples, ledgers and what this worker holds itself.

The room of a device is its free memory by NVML, less reserved memory that is not seen in use yet. The task that waits
longest comes first. A smaller task may pass a larger one that does not fit. When the larger task has starved, a device
is held for it.
"""

from collections.abc import Iterable, Mapping, Sequence

import attrs

from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import DeviceLedger


@attrs.frozen
class Placement:
    """The place of the first task that waits with a demand: on a device, in the memory of a grant if one is named."""

    waiting: Waiting
    sample: GpuSample
    grant: Grant | None = None


@attrs.define
class Plan:
    """The next steps: tasks to start, idle children to end, room to ask others for, a device to hold."""

    starts: list[Placement]
    evictions: list[Grant]
    needs: list[tuple[str, int]]
    hold: Placement | None


def unseen(ledger: DeviceLedger, sample: GpuSample) -> int:
    """Return the MiB that are reserved and that NVML does not show in use by their owners yet."""
    return sum(max(0, one.mib - sample.used.get(one.owner, 0)) for one in ledger.reservations.values())


def room_of(ledger: DeviceLedger, sample: GpuSample) -> int:
    """Return the MiB that a new task could be given; below 0 where more was used than reserved."""
    return sample.free - unseen(ledger, sample)


def most_of(ledger: DeviceLedger, sample: GpuSample) -> int:
    """Return the MiB that a task could be given if nothing of ours ran on the device.

    NVML does not split the memory of a worker's own process by task. The reservations of its tasks count instead.
    """
    ours = (one.mib if one.owner == "-" else sample.used.get(one.owner, 0) for one in ledger.reservations.values())
    return min(sample.total, sample.free + sum(ours))


def used_by_other_processes(ledger: DeviceLedger, sample: GpuSample, own: int = 0) -> int:
    """Return the MiB in use that are neither of processes with a reservation, nor the `own` ones of the worker."""
    owners = {one.owner for one in ledger.reservations.values()}
    return max(0, sample.total - sample.free - own - sum(sample.used.get(owner, 0) for owner in owners))


def plan(
    waiting: Sequence[Waiting],
    samples: Iterable[GpuSample],
    ledgers: Mapping[str, DeviceLedger],
    grants: Sequence[Grant],
    *,
    queue: str,
    slots: int,
    limit: int,
    starts_children: bool,
    starvation_after: float,
    held: str,
) -> Plan:
    """Return what to do now. At most one task of each demand starts; the caller plans again after each start.

    `samples` are of the devices that may be used, `grants` this worker's. `limit` tasks run on a device at once (0: no
    matter). `starts_children` says that a task without a grant starts a process. `held` is the queue's own hold, "name
    uuid worker", or "".
    """
    devices = [_Device(sample, ledgers[sample.uuid], grants, starts_children=starts_children) for sample in samples]
    made = Plan([], [], [], None)
    hold: Placement | None = None
    for one in sorted(waiting, key=lambda one: one.rank):
        holder = f"{queue} {one.name}"
        open_ones = [device for device in devices if device.open_to(one.demand, holder, limit)]
        found = _best(one, open_ones, starts_children=starts_children)
        if found is not None:
            if len(made.starts) < slots:
                device, grant = found
                device.take(one.demand, grant, starts=starts_children)
                made.starts.append(Placement(one, device.sample, grant))
        elif not _make_room(one, open_ones, made) and hold is None and one.age >= starvation_after:
            hold = _hold(one, devices, held)
    made.hold = hold
    return made


class _Device:
    """A device while a plan is made for it."""

    def __init__(
        self, sample: GpuSample, ledger: DeviceLedger, grants: Sequence[Grant], *, starts_children: bool
    ) -> None:
        self.sample = sample
        self.ledger = ledger
        self.room = room_of(ledger, sample)
        self.most = most_of(ledger, sample)
        self.running = ledger.running
        self.starting = any(
            one.starting and (not one.mib or sample.used.get(one.owner, 0) < 0.5 * one.mib)
            for one in ledger.reservations.values()
        )
        self.idle = [grant for grant in grants if grant.uuid == sample.uuid and grant.state == "idle"]
        self.kept = False  # for one that comes first and does not fit yet
        own = set[str]() if starts_children else {grant.id for grant in grants}
        self.taken_by = {name for name in ledger.reservations if name not in own} if sample.exclusive else set[str]()
        """Reservations of other processes, on a device that takes one process at a time."""

    def seen(self, grant: Grant) -> int:
        return self.sample.used.get(grant.owner, 0)

    def open_to(self, demand: Demand, holder: str, limit: int) -> bool:
        """Whether anything but memory keeps a task from starting here."""
        ledger = self.ledger
        return not (
            self.kept
            or (ledger.quarantine and (ledger.quarantine_for > 0 or ledger.tried))
            or (ledger.held_for and ledger.held_for != holder)
            or (limit and self.running >= limit)
            or self.too_busy(demand)
        )

    def takes(self, grant: Grant | None) -> bool:
        """Whether a process may come here: that of a grant, or a new one."""
        return not (self.taken_by - (set() if grant is None else {grant.id}))

    def too_busy(self, demand: Demand) -> bool:
        """Whether its utilisation is not below a demand's ceiling."""
        load = self.sample.utilization
        return bool(demand.ceiling) and load is not None and load >= demand.ceiling

    def room_in(self, grant: Grant) -> int:
        """MiB for a task that takes over a grant: what its process uses already is free for it."""
        return self.room + max(0, grant.mib - self.seen(grant)) + self.seen(grant)

    def room_freed(self, grant: Grant) -> int:
        """MiB that the end of a warm child gives back, at most. Without a report of NVML: its largest reservation."""
        return self.seen(grant) or grant.child.kept

    def take(self, demand: Demand, grant: Grant | None, *, starts: bool) -> None:
        self.running += 1
        self.kept = self.kept or (self.sample.exclusive and starts)
        if grant is None:
            self.room -= demand.memory
            self.starting = self.starting or starts
        else:
            self.idle.remove(grant)
            self.room += max(0, grant.mib - self.seen(grant)) - max(0, demand.memory - self.seen(grant))


def _best(one: Waiting, devices: Sequence[_Device], *, starts_children: bool) -> tuple[_Device, Grant | None] | None:
    """Return where a task fits best: not where it failed, in a warm child, and where the least is left over."""
    choices: list[tuple[bool, bool, int, int, Grant | None]] = []
    for number, device in enumerate(devices):
        elsewhere = device.sample.uuid == one.avoid
        for grant in device.idle:
            room = device.room_in(grant)
            if not device.seen(grant):  # what NVML attributes to nobody may be this child's: it stays its own
                room = max(room, grant.mib)
            if one.demand.memory <= room and device.takes(grant):
                choices.append((elsewhere, False, room - one.demand.memory, number, grant))
        starting = starts_children and device.starting
        if one.demand.memory <= device.room and not starting and device.takes(None):
            choices.append((elsewhere, True, device.room - one.demand.memory, number, None))
    if not choices:
        return None
    best = min(choices, key=lambda choice: choice[:4])
    return devices[best[3]], best[4]


def _make_room(one: Waiting, devices: Sequence[_Device], made: Plan) -> bool:
    """End idle children where that makes room, or have other workers end theirs; True where room is on its way."""
    for device in devices:
        if one.demand.memory <= device.room and device.takes(None):
            return True  # another start must be over first
    for device in devices:
        going = _in_the_way(one.demand, device)
        if going is not None:
            made.evictions.extend(going)
            device.kept = True
            return True
    for device in devices:
        idle = [r for r in device.ledger.reservations.values() if r.state == "idle"]
        if device.taken_by - {r.id for r in idle}:
            continue
        if device.room + sum(max(r.mib, device.sample.used.get(r.owner, 0)) for r in idle) >= one.demand.memory:
            needed = device.sample.total if device.taken_by else one.demand.memory
            made.needs.append((device.sample.uuid, needed))
            device.kept = True
            return True
    return False


def _in_the_way(demand: Demand, device: _Device) -> list[Grant] | None:
    """Return the fewest idle children that have to end for a task to start in another one, or in none; None: no use."""
    mine = sorted((grant for grant in device.idle if grant.is_warm), key=device.room_freed, reverse=True)
    choices: list[list[Grant]] = []
    for stays in (*mine, None):
        room = device.room if stays is None else device.room_in(stays)
        rest, going = [grant for grant in mine if grant is not stays], list[Grant]()
        while rest and (room < demand.memory or device.taken_by):
            going.append(rest.pop(0))
            room += device.room_freed(going[-1])
        left = {grant.id for grant in (*going, stays) if grant is not None}
        if room >= demand.memory and not device.taken_by - left:
            choices.append(going)
    return min(choices, key=len, default=None)


def _hold(one: Waiting, devices: Sequence[_Device], held: str) -> Placement | None:
    """Return the device to hold for a task that has starved: one that could fit it if nothing of ours ran there."""
    name, _, rest = held.partition(" ")
    if held and name != one.name:
        return None
    mine = rest.partition(" ")[0]
    able = [device for device in devices if device.most >= one.demand.memory and not device.ledger.quarantine]
    able = [device for device in able if not device.too_busy(one.demand)]
    if mine:
        able = [device for device in able if device.sample.uuid == mine]
    if not able:
        return None
    # The one where the least is in the way.
    best = max(able, key=lambda device: device.room)
    best.kept = True
    return Placement(one, best.sample)
