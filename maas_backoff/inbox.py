"""Where claimed attempts wait for a slot, and slots for an attempt."""

import asyncio
from collections import deque

from maas_backoff.leased import Attempt


class Inbox:
    """First come, first served; the slot that was idle last is the first to be woken."""

    def __init__(self) -> None:
        self._attempts: deque[Attempt] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._loop = asyncio.get_running_loop()

    def put(self, attempt: Attempt) -> None:
        """Hand an attempt to a slot."""
        if not self._attempts:
            self._rouse(1)
        self._attempts.append(attempt)

    async def take(self) -> Attempt:
        """Return the next attempt for a slot; waits for one."""
        if not self._attempts:
            while not self._attempts:
                waiter = self._loop.create_future()
                self._idle.append(waiter)
                await waiter
            self._rouse(min(2, len(self._attempts) - 1))
        return self._attempts.popleft()

    def _rouse(self, slots: int) -> None:
        """Wake idle slots: one for what has come, and each of them two more while there is enough for them.

        So a slot whose handlers await nothing works on all of it, without the price of waking another for each.
        """
        for _ in range(min(slots, len(self._idle))):
            waiter = self._idle.pop()
            if not waiter.done():
                waiter.set_result(None)
