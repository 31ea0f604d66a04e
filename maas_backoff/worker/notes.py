"""The reports of handlers: the newest progress of each attempt, until it is sent, and what each attempt has used."""

import asyncio
from collections.abc import Mapping

from maas_backoff.domain.emission import Emission
from maas_backoff.worker.attempt import COST, Attempt
from maas_backoff.worker.emissions import Emissions
from maas_backoff.worker.slots import Slots

Note = tuple[str, int, float, str | None]
"""A task's id and token, its progress in percent, and a message."""


class Notes:
    """Progress notes, and the receiver of all handlers' reports, which may come from any thread."""

    def __init__(self, slots: Slots, emissions: Emissions) -> None:
        self.waiting: asyncio.Event = asyncio.Event()
        """Set when there is a note to send."""
        self._slots = slots
        self._emissions = emissions
        self._noted: dict[int, Attempt] = {}
        self._loop = asyncio.get_running_loop()

    def progressed(self, token: int, progress: float, message: str | None) -> None:
        """Note the progress of an attempt, to be sent soon; without a message, the last message is kept."""
        attempt = self._slots.attempts.get(token)
        if attempt is None or attempt.over:
            return
        last = attempt.progress
        attempt.progress = (progress, message if message is not None or last is None else last[1])
        if token not in self._noted:
            self._noted[token] = attempt
            self._loop.call_soon_threadsafe(self.waiting.set)

    def used(self, token: int, cost: float | None, limits: Mapping[str, float]) -> None:
        """Note what an attempt has used, for its settlement; what is not given stays as it was."""
        attempt = self._slots.attempts.get(token)
        if attempt is None or attempt.over:
            return
        # Threads may report at the same time: each step changes the dict as a whole.
        used: dict[str, float] = attempt.__dict__.setdefault("used", {})
        used.update(limits)
        if cost is not None:
            used[COST] = cost

    def emission(self, token: int) -> Emission | None:
        """Return what an attempt emits; None if the attempt has ended."""
        return self._emissions.of(token)

    def drop(self, attempt: Attempt) -> None:
        """Forget the note of an attempt that has ended: its settlement carries the last note."""
        self._noted.pop(attempt.token, None)

    def newest(self) -> list[Note]:
        """Return the newest note of each attempt that has made one since the last call."""
        self.waiting.clear()
        noted, self._noted = self._noted, {}
        return [(a.task.task_id, a.token, *a.progress) for a in noted.values() if a.progress and not a.over]
