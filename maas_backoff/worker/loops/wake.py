"""The wake-up: sleeps on the server, on its own connection, until a task becomes ready, and claims the task.

The claim waits on the server behind the blocking command: no message is needed between wake-up and claim.
"""

import asyncio
import time

from maas_backoff.domain.kind import Kinds
from maas_backoff.errors import StorageError
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.connect import Client
from maas_backoff.store.markers import is_for_gpu, is_for_slots, kind_of
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.loops.exchange import ExchangeLoop
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.requests import BatchRequests
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.wake_ups import WakeUps

NO_KINDS = Kinds(())

LONGEST_BLOCK = 5.0
"""The longest sleep in seconds. A marker can be lost with a connection, so no sleep is longer."""


class Wake:
    """Takes the marker when it is set, and claims the tasks that have become ready.

    The marker is a hint: the worker looks for tasks after every return, timeout or error. The blocking call is never
    cancelled, because a cancelled call may lose the marker. Its own timeout may be up to 100 ms late. At a shutdown
    the worker's own marker ends the call.
    """

    def __init__(
        self,
        context: WorkerContext,
        requests: BatchRequests,
        slots: Slots,
        wake_ups: WakeUps,
        client: Client,
        exchange: ExchangeLoop,
    ) -> None:
        """`client` has its own connection. `exchange` is a loop that nothing else uses, which sends a claim again."""
        self._context = context
        self._store = context.store
        self._requests = requests
        self._slots = slots
        self._wake_ups = wake_ups
        self._client = client
        self._exchange = exchange
        # Short, as the lease of a claimed task may have begun when the sleep began.
        self._block = min(LONGEST_BLOCK, context.lease / 3)
        self._patience = Patience("a worker's wake-up", context.store.connection.server.outage)
        self._slept = True

    async def run(self) -> None:
        """Sleep on the server whenever there is nothing to claim, until the worker is closing."""
        while True:
            await self._wake_ups.idle.wait()
            if self._slots.closing:
                return
            request = self._requests.sleeping(self._exchange.number)
            slept_before, self._slept = self._slept, True
            try:
                if request is None:
                    await self._sleep()
                else:
                    await self._sleep_before(request)
                # A replica refuses each sleep, and answers each claim that finds nothing: the outage goes on.
                if self._slept or slept_before:
                    self._patience.restored()
            except StorageError as error:
                self._slept = self._wake_ups.hears_gpu = False
                await self._patience.after(error)
                self._wake_ups.wake()

    async def _sleep(self) -> None:
        context, quiet = self._context, self._slots.quiet
        gpu = self._wake_ups.hears_gpu = self._wake_ups.listens_for_gpu and not quiet
        kinds = NO_KINDS if quiet else context.kinds  # the markers of tasks are for other workers
        marker = await self._store.markers.sleep(self._client, context.name, self._block, gpu=gpu, kinds=kinds)
        self._note(marker)
        if is_for_slots(marker) and self._slots.claimable <= self._slots.spare:
            # No slot is free: let another worker have the marker.
            await self._store.markers.wake_next(self._client, marker)
        self._wake_ups.wake()

    async def _sleep_before(self, request: BatchRequest) -> None:
        sent, marker = time.monotonic(), ""
        gpu = self._wake_ups.hears_gpu = self._wake_ups.listens_for_gpu
        try:
            marker, reply = await self._store.exchange.send_after_sleep(
                self._client, request, self._context.name, self._block, gpu=gpu, kinds=self._context.kinds
            )
            self._note(marker)
        except StorageError as error:
            self._slept = self._wake_ups.hears_gpu = False
            await self._patience.after(error)
            self._wake_ups.look_for_batches(self._wake_ups.batches)  # the marker may be lost
            # The server may have run the claim: send it again for its reply.
            reply = await self._exchange.send(request)
        self._exchange.apply(request, reply, sent)
        if is_for_slots(marker) and not reply.claimed and not request.may_claim_suspect:
            self._wake_ups.look_again()  # the marker may tell of a suspect, which a claim takes that does not sleep
        await asyncio.sleep(0)  # lets the handlers begin before the next sleep

    def _note(self, marker: str) -> None:
        self._wake_ups.hears_gpu = False
        if is_for_gpu(marker):
            self._wake_ups.mark_gpu()
        elif is_for_slots(marker) and (kind := kind_of(marker)) in self._wake_ups.batches:
            # The claim behind the sleep takes no batches.
            self._wake_ups.look_for_batches([kind])
