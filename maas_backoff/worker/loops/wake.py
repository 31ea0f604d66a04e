"""The wake-up: sleeps on the server until a task becomes ready, on a connection of its own, and wakes with it in hand.

The claim waits on the server behind the blocking command, so that no message goes to and fro between the two.
"""

import asyncio
import time

from maas_backoff.errors import StorageError
from maas_backoff.store.connect import Client
from maas_backoff.store.frame import Frame
from maas_backoff.store.redis import RedisStore
from maas_backoff.worker.loops.lane import Lane
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.running import Running

LONGEST_BLOCK = 5.0
"""Seconds. A marker can be lost with a connection; nobody sleeps on longer than this."""


class Wake:
    """Takes the marker when it is set, and what has become ready.

    The marker is a hint: after every return, time-out or error, tasks are looked for. The blocking call is never
    cancelled to time something: its own timeout is late by up to 100 ms, and a cancelled one may take the marker with
    it. At a shutdown the worker's own marker ends it.
    """

    def __init__(
        self,
        store: RedisStore,
        running: Running,
        client: Client,
        lane: Lane,
        *,
        lease: float,
    ) -> None:
        """`lane` is one that nobody else uses: it sends the claim again whose answer was lost."""
        self._store = store
        self._running = running
        self._client = client
        self._lane = lane
        # The lease counts from before the sleep, for all that is known here.
        self._block = min(LONGEST_BLOCK, lease / 3)
        self._patience = Patience("a worker's wake-up", store.server.outage)

    async def run(self) -> None:
        """Sleep whenever there is nothing to claim, until the worker is closing."""
        while True:
            await self._running.sated.wait()
            if self._running.closing:
                return
            frame = self._running.sleeping_frame(self._lane.number)
            try:
                if frame is None:
                    await self._sleep()
                else:
                    await self._sleep_before(frame)
                self._patience.restored()
            except StorageError as error:
                await self._patience.after(error)
                self._running.wake()

    async def _sleep(self) -> None:
        gpu = self._running.hears_gpu = self._running.listens_for_gpu
        marker = await self._store.sleep(self._client, self._running.worker, self._block, gpu=gpu)
        self._note(marker)
        if marker == "marker" and self._running.claimable <= self._running.spare_slots:
            # No slot here: let another worker have it.
            await self._store.rouse_another(self._client)
        self._running.wake()

    async def _sleep_before(self, frame: Frame) -> None:
        sent = time.monotonic()
        gpu = self._running.hears_gpu = self._running.listens_for_gpu
        try:
            marker, answer = await self._store.exchange_after_sleep(
                self._client, frame, self._running.worker, self._block, gpu=gpu
            )
            self._note(marker)
        except StorageError as error:
            await self._patience.after(error)
            # It may have been run.
            answer = await self._lane.send(frame)
        self._lane.apply(frame, answer, sent)
        await asyncio.sleep(0)  # the handlers begin before the next sleep is arranged

    def _note(self, marker: str) -> None:
        self._running.hears_gpu = False
        if marker == "gpu_marker":
            self._running.gpu_marked = True
            self._running.gpu_pulse.set()
