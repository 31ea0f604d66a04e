"""The indexes of the tasks of one state."""

from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.page import Listing
from maas_backoff.domain.status import TaskStatus
from maas_backoff.store.connection import QueueConnection

_ALL = Listing()
MOST_LANES = 10_000
"""Lanes that a listing looks at. A queue may have more: one for each tenant and set of limits with due tasks."""
_GPU = "gpu:"
"""The beginning of the names of GPUs' indexes, and of their lanes."""

_NAMES: dict[TaskStatus, tuple[str, ...]] = {
    TaskStatus.PROCESSING: ("leases", "external"),
    TaskStatus.COMPLETED: ("completed",),
    TaskStatus.FAILED: ("failed",),
    TaskStatus.CANCELLED: ("cancelled",),
}


async def indexes(queue: QueueConnection, status: TaskStatus, listing: Listing = _ALL) -> tuple[str, ...]:
    """Return the names of the indexes of a listing's tasks. Indexes of due tasks come first."""
    if status is not TaskStatus.PENDING:
        return _NAMES[status]
    if listing.due_from is not None:
        return ("scheduled",)
    for_gpu: list[str] = []
    if listing.waiting_for != "slot":
        demands = await queue.server.execute("HKEYS", queue.keys("demands"))
        for_gpu = sorted(queue.keys.ready_for_gpu(name.decode()) for name in demands)
    lanes = [
        name.decode() for name in await queue.server.execute("ZRANGE", queue.keys("lanes"), "0", f"{MOST_LANES - 1}")
    ]
    if listing.waiting_for:
        is_gpu = listing.waiting_for != "slot"
        lanes = [name for name in lanes if name.startswith(_GPU) == is_gpu]
        if is_gpu:
            return (*for_gpu, *lanes)
    kinds = [NAMELESS, *sorted(name.decode() for name in await queue.server.execute("HKEYS", queue.keys("kinds")))]
    for_slot = (queue.keys.of_kind(kind, name) for kind in kinds for name in ("ready", "suspects"))
    return (*for_slot, *for_gpu, *lanes, "scheduled")
