"""The reason why a pending task waits."""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from maas_backoff.domain.batching import HALF
from maas_backoff.domain.demand import Demand, gib
from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.lane import NO_LANE, Lane
from maas_backoff.domain.seconds import moments
from maas_backoff.domain.settlement import Counts
from maas_backoff.domain.worker import Device, Worker

_FRESH = Counts()


class Paused(NamedTuple):
    """The paused claims: those of the whole `queue`, of some `kinds`, or of some `tenants`.

    `shut` says for each shut limit why no task may start.
    """

    queue: bool = False
    kinds: Collection[str] = ()
    tenants: Collection[str] = ()
    shut: Mapping[str, str] = MappingProxyType({})


_NOTHING = Paused()


class Place(NamedTuple):
    """The place of a due task that needs no GPU: how many tasks come first; -1: unknown.

    `own` are tasks of its tenant, `others` about how many of other tenants. `tenants` take turns.
    """

    own: int = -1
    others: int = 0
    tenants: int = 1


UNKNOWN = Place()


def waiting_for(
    due_ms: float,
    now_ms: float,
    demand: Demand | None,
    fleet: Sequence[Worker],
    place: Place = UNKNOWN,
    *,
    paused: Paused = _NOTHING,
    counts: Counts = _FRESH,
    kind: str = NAMELESS,
    lane: Lane = NO_LANE,
) -> str:
    """Return the reason in words; `fleet` are the live workers."""
    if due_ms > now_ms:
        return f"due at {at(due_ms).isoformat(timespec='milliseconds')}"
    held = _held_back(paused, kind, lane)
    if held:
        return held
    able = [worker for worker in fleet if kind in worker.kinds and not worker.quiet]
    if not able:
        return _unserved(kind, fleet)
    unready = _unready(able)
    why = "" if demand is None else gpu_reason(demand, able)
    if counts.suspect and why in {"", NOT_YET, NO_SLOT}:
        return f"{_suspect_reason(counts)}{unready}"
    batch = _batch(place, kind, able, (now_ms - due_ms) / 1000) if why in {"", NOT_YET} else ""
    if batch or demand is None:
        return f"{batch or _turn(place, lane.tenant, able)}{unready}"
    return f"gpu: needs {demand}, {why}{unready}"


def _unready(able: Sequence[Worker]) -> str:
    """Return in words why the first of some workers is not ready, if none of them is."""
    if any(worker.ready for worker in able):
        return ""
    return f"; no worker that could run it is ready: {able[0].trouble.partition('; ')[0]}"


def _batch(place: Place, kind: str, fleet: Sequence[Worker], age: float) -> str:
    """Return in words that a task waits for others of its batch; empty: it does not, or no slot is free for a batch."""
    free = [worker for worker in fleet if worker.running < worker.slots]
    found = next((worker.batches[kind] for worker in free if kind in worker.batches), None)
    if found is None:
        return ""
    # Without a place, only the task itself is known. A full batch would have started.
    (size, wait), number = found, place.own + place.others + 1 if place.own >= 0 else 1
    if number >= size or age >= wait:
        return ""
    return f"batch: at least {number:,} of {size:,} tasks, at most {moments(wait - age)} more"


def _held_back(paused: Paused, kind: str, lane: Lane) -> str:
    """Return in words the pause or the shut limit for which a due task waits; empty: none."""
    if paused.queue or kind in paused.kinds:
        return "paused" if paused.queue else f"kind {kind}: paused"
    if lane.tenant in paused.tenants:
        return f"tenant {lane.tenant} is paused"
    return next((paused.shut[limit] for limit in sorted(lane.limits) if limit in paused.shut), "")


def _turn(place: Place, tenant: str, able: Sequence[Worker]) -> str:
    """Return in words which tasks come before a task that waits for a slot. A place counts the tasks of one kind."""
    if place.own < 0:
        return "slot"
    if not tenant:
        ahead = place.own + place.others
        if any(len(worker.kinds) > 1 for worker in able):
            return f"slot: {ahead} of its kind ahead of it" if ahead else "slot: next of its kind"
        return f"slot: {ahead} ahead of it" if ahead else "slot: next in line"
    if not place.own:
        turns = "next of its tasks, {:,} tenants take turns" if place.tenants > 1 else "next in line"
        return f"tenant {tenant}: {turns.format(place.tenants)}"
    own = "1 of its own tasks" if place.own == 1 else f"{place.own:,} of its own tasks"
    others = f" and about {place.others:,} of others" if place.others else ""
    return f"tenant {tenant}: {own}{others} first"


def _unserved(kind: str, fleet: Sequence[Worker]) -> str:
    """Return in words why no worker of a fleet claims tasks of a kind."""
    if any(kind in worker.kinds for worker in fleet):
        return "worker: all that could run it are quiet"
    return no_worker_for(kind) if fleet else "worker: none is running"


def no_worker_for(kind: str) -> str:
    """Return in words that no running worker runs tasks of a kind."""
    return f"kind {kind}: no running worker has it" if kind else "worker: none has a handler for tasks without a kind"


def _suspect_reason(counts: Counts) -> str:
    """Return in words how a task comes back after the loss of its worker, or the failure of its batch."""
    others = counts.cohort_size - 1
    number = "1 other task" if others == 1 else f"up to {others:,} other tasks"
    if counts.cohort.startswith(HALF):
        company = f"with {number}" if others else "alone"
        return f"suspect: its batch failed; it comes back in a half of it, {company}"
    if not others:
        return "suspect: its worker was lost again; each worker runs one such task at a time, this one alone"
    return f"suspect: its worker was lost again; it comes back in halves of what was lost, with {number}"


NOT_YET = "and others come first"
"""Why a task waits although there is room."""

NO_SLOT = "and the workers whose devices have room have no free slot"
"""Why a task waits although there is room, if all of these workers are busy."""


def gpu_reason(demand: Demand, fleet: Sequence[Worker]) -> str:
    """Return in words why no device of a fleet takes a task with this demand."""
    devices = [device for worker in fleet for device in worker.devices]
    if not devices:
        return "and no running worker has a GPU"
    if not any(worker.could_fit(demand) for worker in fleet):
        return f"more than any device has (the largest: {gib(max(device.total for device in devices))})"
    healthy = [device for device in devices if device.healthy]
    if not any(device.total >= demand.memory for device in healthy):
        health = next(device for device in devices if device.total >= demand.memory).health
        return (
            f"and no device that is large enough is well ({health})" if healthy else f"and no device is well ({health})"
        )
    roomy = [device for device in healthy if device.room >= demand.memory]
    if not roomy:
        return f"best device has {gib(max(device.room for device in healthy))} free"
    idle = [device for device in roomy if not demand.ceiling or (device.utilization or 0) < demand.ceiling]
    if not idle:
        lowest = min(device.utilization or 0 for device in roomy)
        return f"best device has a utilisation of {lowest:g} %"
    return _closed_or_busy(idle, fleet)


def _closed_or_busy(devices: Sequence[Device], fleet: Sequence[Worker]) -> str:
    """Return in words why no device with room takes a task: all are closed, or their workers are busy."""
    open_ones = [device for device in devices if not device.closed]
    if not open_ones:
        return f"and the device with room {devices[0].closed}"
    owners = [worker for worker in fleet if any(device in open_ones for device in worker.devices)]
    return NO_SLOT if all(worker.running >= worker.slots for worker in owners) else NOT_YET


def at(ms: float) -> datetime:
    """Return the aware datetime of a server time in ms."""
    return datetime.fromtimestamp(ms / 1000, UTC)
