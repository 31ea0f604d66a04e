"""The loop that sends what a worker has settled, by kind and by tenant, once a second."""

import time

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.writer import ANSWER_KEPT, new_call
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.sums import SettleSums

PAUSE = 1.0
"""Seconds between two calls. A worker that is killed takes the sums of this time with it."""


class SumsLoop:
    """Sends sums, one call after the other. A call whose answer is lost is repeated, and counts once.

    After half of the time for which the server keeps the answer, it is not repeated: it could count twice. Its sums may
    be lost then.
    """

    def __init__(self, sums: SettleSums, store: QueueStore) -> None:
        self._sums = sums
        self._store = store
        self._patience = Patience("a worker's loop of sums", store.connection.server.outage)
        self._unanswered: tuple[str, str] | None = None
        self._first_sent = 0.0

    async def run(self) -> None:
        """Send the sums whenever there are some."""
        while True:
            if self._unanswered is None:
                await self._sums.waiting.wait()
            try:
                await self.send()
                self._patience.restored()
            except StorageError as error:
                self._patience.failed(error)
            await anyio.sleep(PAUSE)

    async def send(self) -> None:
        """Send all sums. If StorageError is raised, or this is cancelled, the next call sends what is left."""
        while True:
            if self._unanswered is None:
                taken = self._sums.take()
                if not taken:
                    return
                self._unanswered, self._first_sent = (taken, new_call()), time.monotonic()
            elif time.monotonic() - self._first_sent > ANSWER_KEPT / 2:
                self._unanswered = None
                continue
            await self._store.writer.count_settles(*self._unanswered)
            self._unanswered = None
