"""The reason why due tasks wait, in one sentence."""

from collections.abc import Mapping, Sequence

from maas_backoff.domain.demand import Demand
from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.seconds import moments, span
from maas_backoff.domain.shares import LimitStats
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.waiting import NO_SLOT, NOT_YET, gpu_reason
from maas_backoff.domain.worker import Worker

_NO_TENANTS: Mapping[str, int] = {}


def reason(
    stats: QueueStats,
    fleet: Sequence[Worker],
    next_due: float | None,
    waiting: Sequence[tuple[Demand, int]],
    suspects_running: int = 0,
    paused_tenants: Mapping[str, int] = _NO_TENANTS,
    shut: Sequence[LimitStats] = (),
) -> str:
    """Return the reason. `next_due` is in seconds; `waiting` are demands with their number of due tasks.

    The demands are without those of paused kinds.
    `suspects_running` is the number of running tasks that were lost with their worker more than once.
    `paused_tenants` has the number of waiting tasks of each. `shut` are limits for which tasks wait.
    """
    due = stats.pending_count - stats.scheduled_count
    paused = f"{_paused(stats)}{_paused_tenants(paused_tenants)}{_shut(shut)}"
    running = f"{_tasks(stats.processing_count)} running" if stats.processing_count else "nothing runs"
    if stats.paused:
        return f"The queue is paused: {_tasks(due)} due, {running}. Resume it to go on."
    if due and not fleet:
        return f"No worker is running: {_tasks(due)} due."
    awake = [worker for worker in fleet if not worker.quiet]
    if due and not awake:
        who = "The only worker is" if len(fleet) == 1 else f"All {len(fleet)} workers are"
        return f"{who} quiet: {_tasks(due)} due, {running}."
    if not due:
        return f"{_nothing_due(stats, next_due, running, has_workers=bool(fleet))}{paused}."
    has_batches = any(worker.batches for worker in fleet)
    suspects = _suspects(stats.suspect_count, suspects_running, has_batches=has_batches) if stats.suspect_count else ""
    slots = sum(worker.slots for worker in awake)
    taken = sum(worker.running for worker in awake)
    unserved = _unserved(stats, fleet)
    claimable = due - sum(map(stats.due_of, stats.paused_kinds))
    held = sum(limit.waiting_tasks for limit in shut)
    if not stats.scheduled_count:  # else some of the waiting tasks are not due
        held += sum(paused_tenants.values())
    if waiting and claimable > held and sum(number for _, number in waiting) == claimable:
        demand, number = max(waiting, key=lambda one: one[1])
        why = gpu_reason(demand, fleet)
        if why not in {NOT_YET, NO_SLOT} or (taken < slots and not suspects):
            return (
                f"{_tasks(due)} due, {running}: {number:,} need a GPU with {demand}, {why}{suspects}{paused}{unserved}."
            )
    workers = "1 worker" if len(awake) == 1 else f"{len(awake)} workers"
    at_it = f": {taken} of {slots} slots of {workers} are busy"
    if slots and taken >= slots:
        at_it = f": all {slots} slots of {workers} are busy"
    elif stats.suspect_count >= due or claimable <= held:
        at_it = ""
    batches = _batches(stats, fleet) if taken < slots else ""
    return f"{_tasks(due)} due, {running}{at_it}{suspects}{batches}{paused}{unserved}."


def _nothing_due(stats: QueueStats, next_due: float | None, running: str, *, has_workers: bool) -> str:
    """Return in words that no task is due, and when the next one is."""
    later = f"; the next of {_tasks(stats.scheduled_count)} is due in {span(next_due)}" if next_due else ""
    alone = "" if has_workers else ", and no worker is connected"
    is_empty = not later and not stats.processing_count and not has_workers
    return f"The queue is empty{alone}" if is_empty else f"Nothing is due: {running}{later}{alone}"


_MOST_TOLD = 5
"""Kinds, tenants and limits that the sentence names."""


def _paused(stats: QueueStats) -> str:
    """Return in words which kinds are paused, those with most due tasks first."""
    kinds = sorted(stats.paused_kinds, key=lambda kind: (-stats.due_of(kind), kind))
    told = [f"; kind {kind}: paused, {_tasks(stats.due_of(kind))} due" for kind in kinds[:_MOST_TOLD]]
    more = len(kinds) - len(told)
    return "".join(told) + (f"; {more} more kinds: paused" if more else "")


def _paused_tenants(waiting: Mapping[str, int]) -> str:
    """Return in words which tenants are paused, those with most waiting tasks first."""
    tenants = sorted(waiting, key=lambda tenant: (-waiting[tenant], tenant))
    told = [f"; tenant {tenant} is paused: {_waits(waiting[tenant])}" for tenant in tenants[:_MOST_TOLD]]
    more = len(tenants) - len(told)
    return "".join(told) + (f"; {more:,} more tenants are paused" if more else "")


def _shut(limits: Sequence[LimitStats]) -> str:
    """Return in words which limits are shut, in their order."""
    told = [f"; limit {limit.name} is shut: {_waits(limit.waiting_tasks)}" for limit in limits[:_MOST_TOLD]]
    more = len(limits) - len(told)
    return "".join(told) + (f"; {more:,} more limits are shut" if more else "")


def _waits(number: int) -> str:
    return "1 task waits" if number == 1 else f"{number:,} tasks wait"


def _unserved(stats: QueueStats, fleet: Sequence[Worker]) -> str:
    """Return in words which due tasks no worker of the fleet runs: those without a kind, and those of some kinds."""
    served = {kind for worker in fleet for kind in worker.kinds}
    due = {kind: stats.due_of(kind) for kind in stats.kinds.keys() | stats.gpu_kinds.keys()}
    without_kind = stats.pending_count - stats.scheduled_count - sum(due.values())
    told = list[str]()
    if without_kind > 0 and NAMELESS not in served:
        told.append(f"; {_tasks(without_kind)} without a kind: no running worker has a handler for such tasks")
    for kind in sorted(due.keys() - served - stats.paused_kinds.keys()):
        if due[kind]:
            told.append(f"; {_tasks(due[kind])} of kind {kind}: no running worker has it")
    return "".join(told)


def _batches(stats: QueueStats, fleet: Sequence[Worker]) -> str:
    """Return in words which kinds wait for a full batch."""
    known = {kind: one for worker in fleet for kind, one in worker.batches.items() if kind not in stats.paused_kinds}
    found = [(kind, stats.kinds.get(kind, 0), *known[kind]) for kind in sorted(known)]
    return "".join(
        f"; kind {kind} waits for a batch: {number:,} of {size:,}, at most {moments(wait)}"
        for kind, number, size, wait in found
        if 0 < number < size
    )


def _suspects(number: int, running: int, *, has_batches: bool) -> str:
    """Return in words how `number` tasks come back that lost their worker more than once, or whose batch failed."""
    if has_batches:
        what = "1 task comes" if number == 1 else f"{number:,} tasks come"
        return f"; {what} back in halves, of a failed batch or of what a worker lost: {running:,} running now"
    if number == 1:
        return f"; 1 task lost its worker again and comes back in halves: {running:,} running now"
    return f"; {number:,} tasks lost their worker again and come back in halves: {running:,} running now"


def _tasks(number: int) -> str:
    return "1 task" if number == 1 else f"{number:,} tasks"
