"""The watch of the worker's event loop by the thread of the heartbeat."""

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TypeVarTuple

from maas_backoff.common.guard import Log, log_for
from maas_backoff.worker.slots import Slots

log: Log = log_for("worker")

_Args = TypeVarTuple("_Args")


class LoopWatch:
    """Calls the event loop, and warns if the loop does not answer. Created in the thread of that loop."""

    def __init__(self, slots: Slots) -> None:
        """`slots` name the running tasks in the warning about a blocked event loop."""
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._asked_at: float | None = None
        self._blocked = False
        self.lag: float = 0.0
        """Seconds that the last call waited for the event loop."""

    @property
    def is_closed(self) -> bool:
        """Whether the event loop is closed."""
        return self._loop.is_closed()

    def call(self, callback: Callable[[*_Args], object], *args: *_Args) -> None:
        """Call a function in the event loop."""
        self._loop.call_soon_threadsafe(callback, *args)

    def check(self, period: float) -> None:
        """Call the event loop. Warn once per blockage, if a call has waited for two periods (seconds)."""
        now = time.monotonic()
        silent = 0.0 if self._asked_at is None else now - self._asked_at
        if silent < 2 * period:
            self._blocked = False
        elif not self._blocked:
            self._blocked = True
            self._warn(silent)
        if self._asked_at is None:
            self._asked_at = now
            self.call(self._answer, now)

    def _warn(self, silent: float) -> None:
        frame = sys._current_frames().get(self._thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - a documented function, although its name begins with _
        stack = "".join(traceback.format_stack(frame, limit=20)) if frame else ""
        running = ", ".join(repr(a.task.task_id) for a in list(self._slots.attempts.values())[:10] if not a.over)
        log.warning("the event loop has been blocked for %.1f s; running: %s\n%s", silent, running, stack)

    def _answer(self, asked_at: float) -> None:
        self.lag = round(time.monotonic() - asked_at, 6)
        self._asked_at = None
