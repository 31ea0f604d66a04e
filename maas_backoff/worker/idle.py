"""The end of the work for now: this worker runs nothing, and nothing that it could run is due."""

import anyio

from maas_backoff.domain.kind import NAMELESS, Kinds
from maas_backoff.domain.stats import QueueStats
from maas_backoff.errors import StorageError
from maas_backoff.worker.parts import Parts

LOOK = 0.2
"""Seconds between two looks. While an attempt runs, a look asks the server nothing."""


async def until_idle(parts: Parts, within: float) -> str:
    """Wait until the worker runs nothing, can run nothing, and no task of the queue is due within `within` seconds.

    Return in words what the queue has left. Go on through failures of the server.
    """
    while True:
        given = parts.slots.given
        try:
            if await _is_idle(parts, within):
                with parts.slots.rest():
                    await _end_claims(parts)
                    left = await _left(parts)
                # A claim may have found tasks meanwhile, which may even have ended: what was read is old then.
                if not parts.slots.attempts and parts.slots.given == given:
                    return left
        except StorageError:
            pass  # the loops of the worker log it
        await anyio.sleep(LOOK)


async def _end_claims(parts: Parts) -> None:
    """Wait until no claim of this worker is on its way, or a claim has found a task. The worker rests meanwhile."""
    if parts.requests.sleeps_on_slots:
        await parts.context.store.markers.wake(parts.context.name)  # this ends the claim that sleeps on the server
    # No event tells that a task was found: look now and then.
    while not parts.slots.attempts and not parts.slots.empty.is_set():
        with anyio.move_on_after(LOOK / 20):
            await parts.slots.empty.wait()


async def _is_idle(parts: Parts, within: float) -> bool:
    if parts.slots.attempts or (not parts.slots.quiet and await _finds_task(parts)):
        return False
    reader = parts.context.store.reader
    stats = await reader.stats()
    if stats.paused or parts.slots.quiet:
        return True
    next_due = await reader.next_due()
    if next_due is not None and next_due <= within:
        return False
    if stats.gpu_count and await _waits_for_gpu(parts):
        return False
    if not _due(stats, parts.context.kinds):
        return True
    return not await reader.is_gathering(parts.context.kinds.batches) and await _are_paused(parts)


async def _are_paused(parts: Parts) -> bool:
    """Return whether the due tasks, which the last claim did not find, are paused: none waits for a limit."""
    # The limit of a task may have opened since that claim. Then there is no shut limit, and a claim finds the task.
    return not await parts.context.store.shares.shut_limits() and not await _finds_task(parts)


async def _finds_task(parts: Parts) -> bool:
    """Claim now; return whether there may be a task for a free slot. A claim respects kinds, pauses and limits."""
    slots, wake_ups = parts.slots, parts.wake_ups
    wake_ups.wake()
    # The looks for batches are requests of their own, one after the other: each kind must have been looked for. No
    # event tells of the last one, and another wake-up before it would begin all of them anew.
    while wake_ups.has_work or wake_ups.unseen:
        if slots.attempts or slots.shut:
            return True
        await anyio.sleep(LOOK / 20)
    return False


async def _waits_for_gpu(parts: Parts) -> bool:
    """Return whether a due task waits for room on a GPU that is large enough for it."""
    reader, kinds = parts.context.store.reader, parts.context.kinds
    waiting, _, _ = await reader.demands(parts.requests.suspects_on_gpus(), kinds)
    devices = parts.gate.devices
    largest = max((device.total for device in devices.usable), default=-1)
    return any(devices.awaited or one.demand.memory <= largest for one in waiting)


def _due(stats: QueueStats, kinds: Kinds) -> int:
    """Return how many due tasks of these kinds need no GPU, without those of paused kinds."""
    counts = {NAMELESS: stats.pending_count - stats.scheduled_count - stats.gpu_count - sum(stats.kinds.values())}
    counts |= stats.kinds
    return sum(max(0, counts.get(name, 0)) for name in kinds.names if name not in stats.paused_kinds)


async def _left(parts: Parts) -> str:
    reader = parts.context.store.reader
    stats, why = await reader.stats(), await reader.explain()
    due = stats.pending_count - stats.scheduled_count
    return f"{stats.scheduled_count:,} delayed and {due:,} due tasks are left. {why}"
