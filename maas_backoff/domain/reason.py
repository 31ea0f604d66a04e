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
    leased: int = 0,
) -> str:
    """Return the reason. `next_due` is in seconds; `waiting` are demands with their number of due tasks.

    The demands are without those of paused kinds.
    `suspects_running` is the number of running tasks that came back in halves.
    `paused_tenants` has the number of waiting tasks of each. `shut` are limits for which tasks wait. `leased` is the
    number of running tasks that workers have claimed; 0: unknown.
    """
    due = stats.pending_count - stats.scheduled_count
    paused = f"{_paused(stats)}{_paused_tenants(paused_tenants)}{_shut(shut)}"
    running = f"{_tasks(stats.processing_count)} running" if stats.processing_count else "nothing runs"
    if stats.paused:
        return f"The queue is paused: {_tasks(due)} due, {running}. Resume it to go on."
    if due and not fleet:
        return f"No worker is running: {_tasks(due)} due{_lost(leased)}."
    awake = [worker for worker in fleet if not worker.quiet]
    if due and not awake:
        who = "The only worker is" if len(fleet) == 1 else f"All {len(fleet)} workers are"
        return f"{who} quiet: {_tasks(due)} due, {running}."
    if not due:
        lost = "" if fleet else _lost(leased)
        return f"{_nothing_due(stats, next_due, running, has_workers=bool(fleet))}{lost}{paused}."
    has_batches = any(worker.batches for worker in fleet)
    suspects = _suspects(stats.suspect_count, suspects_running, has_batches=has_batches) if stats.suspect_count else ""
    wanted = _wanted(stats)
    able = [worker for worker in awake if not wanted.keys().isdisjoint(worker.kinds)]
    slots = sum(worker.slots for worker in able)
    taken = _taken(able, fleet, leased)
    unserved = f"{_unserved(stats, fleet)}{_not_ready(able)}"
    claimable = due - sum(map(stats.due_of, stats.paused_kinds))
    held = sum(limit.waiting_tasks for limit in shut)
    holds = held + sum(paused_tenants.values())
    if not stats.scheduled_count:  # else some of the waiting tasks of paused tenants are not due
        held = holds
    batches = _batches(stats, stats.kinds, able, holds)
    if waiting and claimable > held and sum(number for _, number in waiting) == claimable:
        demand, number = max(waiting, key=lambda one: one[1])
        why = gpu_reason(demand, able or awake)
        batches = _batches(stats, stats.gpu_kinds, able, holds) if why == NOT_YET else ""
        if why not in {NOT_YET, NO_SLOT} or (taken < slots and not suspects and not batches):
            return (
                f"{_tasks(due)} due, {running}: {number:,} need a GPU with {demand}, {why}{suspects}{paused}{unserved}."
            )
    workers = _in_words(able, awake)
    # If `leased`, no heartbeat has told of some running tasks yet. In batches, several of them have one slot.
    matters = stats.suspect_count < due and not (has_batches and leased)
    at_it = "" if claimable <= held else _busy(taken, slots, workers, matters=matters)
    return f"{_tasks(due)} due, {running}{at_it}{suspects}{batches if taken < slots else ''}{paused}{unserved}."


def _nothing_due(stats: QueueStats, next_due: float | None, running: str, *, has_workers: bool) -> str:
    """Return in words that no task is due, and when the next one is."""
    later = f"; {_tasks(stats.scheduled_count)} scheduled" if stats.scheduled_count else ""
    if next_due:  # else the next one is past its deadline: it will be cancelled
        later = f"; the next of {_tasks(stats.scheduled_count)} is due in {span(next_due)}"
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


def _wanted(stats: QueueStats) -> Mapping[str, int]:
    """Return the number of due tasks of each kind that has some and is not paused."""
    due = {kind: stats.due_of(kind) for kind in stats.kinds.keys() | stats.gpu_kinds.keys()}
    without_kind = stats.pending_count - stats.scheduled_count - sum(due.values())
    wanted = {kind: number for kind, number in due.items() if number > 0 and kind not in stats.paused_kinds}
    return wanted | {NAMELESS: without_kind} if without_kind > 0 else wanted


def _taken(able: Sequence[Worker], fleet: Sequence[Worker], leased: int) -> int:
    """Return how many slots of some workers are taken.

    Heartbeats tell it late. Until then, running tasks that have no place in the other workers are theirs. In a fleet
    with batches, several tasks may have one slot.
    """
    told = sum(worker.running for worker in able)
    if any(worker.batches for worker in fleet):
        return told
    slots = sum(worker.slots for worker in able)
    elsewhere = sum(worker.slots for worker in fleet) - slots
    return max(told, min(leased - elsewhere, slots))


def _busy(taken: int, slots: int, workers: str, *, matters: bool) -> str:
    """Return in words how many slots are taken. If some are free, and that does not matter, return nothing."""
    if slots and taken >= slots:
        return f": all {slots} slots of {workers} are busy"
    return f": {taken} of {slots} slots of {workers} are busy" if matters and slots else ""


def _in_words(able: Sequence[Worker], awake: Sequence[Worker]) -> str:
    """Return in words the workers that run the kinds of the due tasks."""
    if len(able) < len(awake):
        return "the only worker for these tasks" if len(able) == 1 else f"the {len(able)} workers for these tasks"
    return "1 worker" if len(able) == 1 else f"{len(able)} workers"


def _lost(leased: int) -> str:
    """Return in words how many running tasks have no worker any more."""
    if leased <= 0:
        return ""
    if leased == 1:
        return "; 1 task has lost its worker, and comes back when a worker starts"
    return f"; {leased:,} tasks have lost their worker, and come back when a worker starts"


def _not_ready(able: Sequence[Worker]) -> str:
    """Return in words how many workers are not ready, and why the first one is not."""
    troubles = [worker.trouble.partition("; ")[0] for worker in able if not worker.ready]
    if not troubles:
        return ""
    workers = "1 worker is" if len(troubles) == 1 else f"{len(troubles)} workers are"
    return f"; {workers} not ready: {troubles[0]}"


def _unserved(stats: QueueStats, fleet: Sequence[Worker]) -> str:
    """Return in words which due tasks no worker claims: those without a kind, and those of some kinds."""
    served = {kind for worker in fleet for kind in worker.kinds}
    claimed = {kind for worker in fleet if not worker.quiet for kind in worker.kinds}
    wanted, told = _wanted(stats), list[str]()
    for kind in sorted(wanted.keys() - claimed):
        tasks = f"{_tasks(wanted[kind])} {'without a kind' if kind == NAMELESS else f'of kind {kind}'}"
        if kind in served:
            told.append(f"; {tasks}: all workers that could run them are quiet")
        elif kind == NAMELESS:
            told.append(f"; {tasks}: no running worker has a handler for such tasks")
        else:
            told.append(f"; {tasks}: no running worker has it")
    return "".join(told)


def _batches(stats: QueueStats, due: Mapping[str, int], fleet: Sequence[Worker], holds: int) -> str:
    """Return in words which kinds wait for a full batch. `due` has the number of due tasks by kind."""
    known = {kind: one for worker in fleet for kind, one in worker.batches.items() if kind not in stats.paused_kinds}
    # Suspects, and tasks that a pause or a limit holds back, wait for no batch. Both numbers are those of all kinds
    # together, and a paused tenant may hold back delayed tasks. So a kind has only those that find no place elsewhere:
    # among the delayed tasks, and the tasks of other kinds.
    found: list[tuple[str, int, int, float]] = []
    for kind in sorted(known):
        number = due.get(kind, 0)
        held = max(0, holds - (stats.pending_count - number))
        found.append((kind, number - stats.suspect_count - held, *known[kind]))
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
