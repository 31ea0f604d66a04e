"""The numbers on all open pages, read once for all pages when the first one asks."""

import json
import time
from collections.abc import Awaitable, Callable

import anyio
import attrs

from maas_backoff.common.guard import Log, log_for
from maas_backoff.dashboard.views import gpus_view, history_view, queue_view, shares_view, workers_view
from maas_backoff.domain.stats import QueueStats
from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.scheduler import TaskBackoffScheduler

log: Log = log_for("dashboard")

PERIOD = 1.0
"""Seconds between two reads of the parts that change quickly."""

PATIENCE = 5.0
"""Seconds after which a read is given up and reported on the page."""

STEP, STEPS = 30, 20
"""The seconds of one step of the timeline, and the number of steps."""

MINUTES = 60
"""The minutes of history on the page."""


@attrs.define
class VersionedText:
    """A JSON text, and the version of the feed that changed it last; 0 if it was not read yet."""

    text: str = "null"
    version: int = 0


@attrs.define
class Part(VersionedText):
    """A part of the page: its period and read function, the time of its next read, the trouble of its last read."""

    period: float = attrs.field(kw_only=True)
    read: Callable[[], Awaitable[object]] = attrs.field(kw_only=True)
    due: float = 0
    trouble: str | None = None


class Feed:
    """The parts of the page. Nothing is read while no page is open, so there is no start and no stop."""

    def __init__(self, scheduler: TaskBackoffScheduler) -> None:
        self._scheduler = scheduler
        self._lock = anyio.Lock()
        self._trouble = VersionedText()
        self._read_at: float | None = None
        self._stats: QueueStats | None = None
        self._parts = {
            "queue": Part(period=PERIOD, read=self._queue),
            "shares": Part(period=2 * PERIOD, read=self._shares),
            "workers": Part(period=PERIOD, read=self._workers),
            "gpus": Part(period=PERIOD, read=self._gpus),
            "upcoming": Part(period=2 * PERIOD, read=self._upcoming),
            "history": Part(period=5 * PERIOD, read=self._history),
        }
        self._due = 0.0
        self.version: int = 0

    async def changes(self, since: int) -> dict[str, str]:
        """Return the parts that have changed after version `since`, as JSON; for 0, all parts that were read so far."""
        async with self._lock:
            if self._due <= time.monotonic():
                await self._refresh()
                self._due = time.monotonic() + PERIOD / 2
        changed = {name: part.text for name, part in self._parts.items() if part.version > since}
        if not since or self._trouble.version > since:
            changed["trouble"] = self._trouble.text
        return changed

    def read_again(self) -> None:
        """Read all parts again at the next call of `changes`: the page has changed the queue."""
        self._due = 0
        for part in self._parts.values():
            part.due = 0

    async def _refresh(self) -> None:
        outage = None
        try:
            with anyio.fail_after(PATIENCE):
                for name, part in self._parts.items():
                    if part.due <= time.monotonic():
                        part.trouble = await self._read(name, part)
                        part.due = time.monotonic() + part.period
        except (StorageUnavailableError, TimeoutError) as error:
            outage = str(error) or "the server does not answer"
        trouble = next(filter(None, [outage, *(part.trouble for part in self._parts.values())]), None)
        if trouble is None:
            self._read_at = round(time.time(), 1)
        self._set(self._trouble, trouble and {"reason": trouble.rstrip("."), "since": self._read_at})

    async def _read(self, name: str, part: Part) -> str | None:
        """Read a part and return its trouble. A part that other code has overwritten must not hide the other parts."""
        try:
            self._set(part, await part.read())
        except (StorageUnavailableError, TimeoutError):
            raise
        except StorageError as error:
            return str(error)
        except Exception as error:
            if part.trouble is None:
                log.exception("%s of queue %r cannot be shown", name, self._scheduler.config.task.biz_prefix)
            return f"{name} cannot be shown: {type(error).__name__}"
        return None

    def _set(self, stored: VersionedText, value: object) -> None:
        text = json.dumps(value, separators=(",", ":"), allow_nan=False)
        if text != stored.text or not stored.version:
            self.version += 1
            stored.text, stored.version = text, self.version

    async def _queue(self) -> object:
        self._stats = await self._scheduler.get_queue_stats()
        return queue_view(self._stats, await self._scheduler.explain())

    async def _shares(self) -> object:
        """Read the tenants and the limits, if the last counts say that there are any."""
        stats = self._stats
        has_tenants = stats is None or stats.tenant_count or stats.paused_tenants
        tenants = await self._scheduler.tenants() if has_tenants else ()
        limits = await self._scheduler.limits() if stats is None or stats.limit_count else ()
        return shares_view(tenants, limits)

    async def _workers(self) -> object:
        return workers_view(await self._scheduler.workers())

    async def _gpus(self) -> object:
        return gpus_view(await self._scheduler.gpus())

    async def _upcoming(self) -> object:
        return {"step": STEP, "counts": await self._scheduler.get_upcoming(STEP, STEPS)}

    async def _history(self) -> object:
        return history_view(await self._scheduler.get_history(MINUTES))
