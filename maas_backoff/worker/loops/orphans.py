"""The loop that ends processes which handlers of killed workers and of ended children left on this machine."""

import asyncio

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.orphans import end_orphans
from maas_backoff.common.threads import in_thread
from maas_backoff.errors import StorageError
from maas_backoff.gate.gate import Gate

log: Log = log_for("worker")

PERIOD = 60.0
"""Seconds between two checks, while no child of this worker and no neighbour ends."""

REST = 1.0
"""The least seconds between two checks."""


class Orphans:
    """Ends left processes, and then gives back the GPU memory that was reserved for neighbours that have ended."""

    def __init__(self, soon: asyncio.Event, gate: Gate) -> None:
        """`soon` is set when a child of this worker has ended."""
        self._soon = soon
        self._gate = gate
        self._ended: set[str] = set()

    def neighbour_ended(self, worker: str) -> None:
        """Note that the process of another worker of this host has ended."""
        self._ended.add(worker)
        self._soon.set()

    async def run(self) -> None:
        """Check when a child or a neighbour has ended, and every PERIOD: another worker may have been killed."""
        while True:
            with anyio.move_on_after(REST if self._ended else PERIOD):
                await self._soon.wait()
            self._soon.clear()
            await check()
            await self._release()
            await anyio.sleep(REST)

    async def _release(self) -> None:
        for worker in list(self._ended):
            try:
                if not await self._gate.release_ended(worker):
                    continue  # a process of it is still ending
            except StorageError as error:
                log.info("the GPU memory reserved for worker %s cannot be given back: %s", worker, error)
            self._ended.discard(worker)  # its reservations end with their lease


async def check() -> None:
    """End the left processes. An error of the check is logged, and does not stop the worker."""
    for origin, pids in (await in_thread(end_orphans) or {}).items():
        log.warning(
            "ended %d processes that handlers of process %d had started, which has ended: %s",
            len(pids),
            origin,
            ", ".join(map(str, pids)),
        )
