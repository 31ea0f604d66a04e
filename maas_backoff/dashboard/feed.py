"""What all open pages show: read once for all of them, by whoever asks first."""

import json
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs

from maas_backoff.dashboard.views import gpus_view, history_view, queue_view, workers_view
from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.scheduler import TaskBackoffScheduler

log = logging.getLogger("maas_backoff.dashboard")

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
        self._unreadable: set[str] = set()
        self._due = 0.0
        self.version = 0

    async def changes(self, since: int) -> dict[str, str]:
        """Return the parts that have become others since a version, as JSON; 0: all that could be read so far."""
        async with self._lock:
            if self._due <= time.monotonic():
                await self._refresh()
                self._due = time.monotonic() + PERIOD / 2
        changed = {name: part.text for name, part in self._parts.items() if part.version > since}
        if not since or self._trouble.version > since:
            changed["trouble"] = self._trouble.text
        return changed

    def spoil(self) -> None:
        """Have everything read anew: somebody has changed the queue from here."""
        self._due = 0
        for part in self._parts.values():
            part.due = 0

    async def _refresh(self) -> None:
        trouble = None
        try:
            with anyio.fail_after(PATIENCE):
                for name, part in self._parts.items():
                    if part.due <= time.monotonic():
                        part.due = time.monotonic() + part.period
                        trouble = await self._read(name, part) or trouble
        except (StorageUnavailableError, TimeoutError) as error:
            trouble = str(error) or "the server does not answer"
        self._set(self._trouble, trouble)

    async def _read(self, name: str, part: Part) -> str | None:
        """Read a part; what cannot be read, as somebody has written over it, keeps no other from being shown."""
        try:
            self._set(part, await part.read())
        except (StorageUnavailableError, TimeoutError):
            part.due = 0
            raise
        except StorageError as error:
            return str(error)
        except Exception as error:
            if name not in self._unreadable:
                self._unreadable.add(name)
                log.exception("%s of queue %r cannot be shown", name, self._scheduler.config.task.biz_prefix)
            return f"{name} cannot be shown: {type(error).__name__}"
        return None

    def _set(self, part: Part, value: object) -> None:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        if text != part.text:
            self.version += 1
            part.text, part.version = text, self.version

    async def _queue(self) -> object:
        return queue_view(await self._scheduler.get_queue_stats(), await self._scheduler.explain())

    async def _workers(self) -> object:
        return workers_view(await self._scheduler.workers())

    async def _gpus(self) -> object:
        return gpus_view(await self._scheduler.gpus())

    async def _upcoming(self) -> object:
        return {"step": STEP, "counts": await self._scheduler.get_upcoming(STEP, STEPS)}

    async def _history(self) -> object:
        return history_view(await self._scheduler.get_history(MINUTES))
