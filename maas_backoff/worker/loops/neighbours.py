"""The watch over neighbours: workers of this queue whose processes this one can see.

A worker that is killed renews nothing, and others learn that when its leases end. Its neighbours see at once that its
process has ended: such a worker has no leases. The heartbeat runs the watch in its thread.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.orphans import Origin
from maas_backoff.common.threads import in_thread
from maas_backoff.errors import StorageError
from maas_backoff.store.connect import Client
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.loops.reap import Reaper

log: Log = log_for("worker")

POLL = 1.0
"""Seconds between two looks at processes that the kernel does not report, and between two tries after an error."""


class Neighbours:
    """Watches the neighbours of one worker, and takes the leases of each that has ended."""

    def __init__(self, context: WorkerContext, reaper: Reaper, ended: Callable[[str], None]) -> None:
        """Call `ended` with the name of each worker whose process has ended."""
        self._context = context
        self._reaper = reaper
        self._report = ended
        self._processes: dict[str, Origin] = {}
        self._pidfds: dict[str, int] = {}
        """The kernel reports the end of these. There may be more neighbours than open files."""
        self._ended: set[str] = set()
        self._changed = asyncio.Event()

    def note(self, found: Mapping[str, Origin]) -> None:
        """Note the processes of all workers of this host, as the last heartbeat has found them."""
        found = {worker: process for worker, process in found.items() if worker != self._context.name}
        for worker in self._processes.keys() - found.keys():
            self._forget(worker)
        if found.keys() - self._processes.keys():
            self._changed.set()
        self._processes = {**found, **self._processes}

    async def run(self, client: Client) -> None:
        """Take the leases of neighbours that end, for ever. `client` is for nothing else."""
        try:
            while True:
                is_polled = self._ended or self._processes.keys() - self._pidfds.keys()
                with anyio.move_on_after(POLL if is_polled else None):
                    await self._changed.wait()
                self._changed.clear()
                await self._look()
                for worker in list(self._ended):
                    await self._take_leases(worker, client)
        finally:
            for worker in list(self._pidfds):
                self._unwatch(worker)

    async def _look(self) -> None:
        """Watch new neighbours, and look which of those that are not watched have ended."""
        unwatched = {worker: one for worker, one in self._processes.items() if worker not in self._pidfds}
        for worker, process in unwatched.items():
            self._watch(worker, process)
        # Also those that are watched from now on: the number of an ended process may be that of another one by now.
        ended = await in_thread(lambda: [worker for worker, process in unwatched.items() if process.has_ended()])
        for worker in ended or ():
            self._note_end(worker)

    def _watch(self, worker: str, process: Origin) -> None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # it has ended, or there are too many open files
                pidfd = self._pidfds[worker] = os.pidfd_open(process.pid)
                asyncio.get_running_loop().add_reader(pidfd, self._note_end, worker)

    def _note_end(self, worker: str) -> None:
        self._unwatch(worker)
        if worker not in self._ended:
            self._ended.add(worker)
            self._report(worker)
        self._changed.set()

    def _unwatch(self, worker: str) -> None:
        pidfd = self._pidfds.pop(worker, None)
        if pidfd is not None:
            asyncio.get_running_loop().remove_reader(pidfd)
            os.close(pidfd)

    def _forget(self, worker: str) -> None:
        self._unwatch(worker)
        self._processes.pop(worker, None)
        self._ended.discard(worker)

    async def _take_leases(self, worker: str, client: Client) -> None:
        """Let the leases of an ended worker run out, and settle its lost attempts. After an error, try again later."""
        try:
            with anyio.fail_after(self._context.lease):
                count = await self._context.store.over(client).registry.expire(worker)
            if count:
                log.warning("the process of worker %s has ended: its %d tasks come back", worker, count)
            self._reaper.due = 0.0
            while self._reaper.due <= time.monotonic():
                await self._reaper.look(client, self._context.lease)
        except (StorageError, TimeoutError) as error:
            log.info("the leases of worker %s cannot be taken now: %s", worker, error)
        except Exception:
            log.exception("the leases of worker %s run out by themselves", worker)
            self._forget(worker)
        else:
            self._forget(worker)
