"""What all open pages show: read once for all of them, by whoever asks first."""

import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs

from maas_backoff.dashboard.views import gpu_view, history_view, queue_view, worker_view
from maas_backoff.errors import StorageError
from maas_backoff.scheduler import TaskBackoffScheduler

PERIOD = 1.0
"""Seconds between two reads of what changes quickly."""

PATIENCE = 5.0
"""Seconds after which a read is given up, and the page told so."""

STEP, STEPS = 30, 20
"""The timeline: so many seconds each, so many."""

MINUTES = 60
"""Of history."""


@attrs.define
class Part:
    """A part of the page: its JSON text, and the version of the feed in which it became that."""

    period: float
    read: Callable[[], Awaitable[Any]]
    text: str = "null"
    version: int = 0
    due: float = 0


class Feed:
    """The parts of the page. Without pages there is nobody who reads, and so nothing to start or stop."""

    def __init__(self, scheduler: TaskBackoffScheduler) -> None:
        self._scheduler = scheduler
        self._lock = anyio.Lock()
        self._trouble = Part(0, self._queue)
        self._parts = {
            "queue": Part(PERIOD, self._queue),
            "workers": Part(PERIOD, self._workers),
            "gpus": Part(PERIOD, self._gpus),
            "upcoming": Part(2 * PERIOD, self._upcoming),
            "history": Part(5 * PERIOD, self._history),
        }
        self._due = 0.0
        self.version = 0

    async def changes(self, since: int) -> dict[str, str]:
        """Return the parts that have become others since a version, as JSON; 0: all."""
        async with self._lock:
            if self._due <= time.monotonic():
                await self._refresh()
                self._due = time.monotonic() + PERIOD / 2
        parts = {"trouble": self._trouble, **self._parts}
        return {name: part.text for name, part in parts.items() if part.version > since or not since}

    async def _refresh(self) -> None:
        trouble = None
        try:
            with anyio.fail_after(PATIENCE):
                for part in self._parts.values():
                    if part.due <= time.monotonic():
                        self._set(part, await part.read())
                        part.due = time.monotonic() + part.period
        except (StorageError, TimeoutError) as error:
            trouble = str(error) or "the server does not answer"
        self._set(self._trouble, trouble)

    def _set(self, part: Part, value: object) -> None:
        text = json.dumps(value, separators=(",", ":"))
        if text != part.text:
            self.version += 1
            part.text, part.version = text, self.version

    async def _queue(self) -> object:
        return queue_view(await self._scheduler.get_queue_stats(), await self._scheduler.explain())

    async def _workers(self) -> object:
        return [worker_view(worker) for worker in await self._scheduler.workers()]

    async def _gpus(self) -> object:
        return [gpu_view(gpu) for gpu in await self._scheduler.gpus()]

    async def _upcoming(self) -> object:
        return {"step": STEP, "counts": await self._scheduler.get_upcoming(STEP, STEPS)}

    async def _history(self) -> object:
        return history_view(await self._scheduler.get_history(MINUTES))
