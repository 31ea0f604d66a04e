"""Admission to GPUs: read the demands of waiting tasks, reserve room, and claim exactly the tasks that have room.

Room is reserved before tasks are claimed: a full GPU causes no writes, and a busy machine leaves tasks to others.
"""

import math
import time
from collections.abc import Sequence

import anyio
import attrs

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.demand import Waiting
from maas_backoff.errors import StorageError
from maas_backoff.gate.gate import HOLD, Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.placement import Placement, Plan
from maas_backoff.store.batch import BatchRequest, Claimed
from maas_backoff.worker.batch_learning import BatchLearning
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.loops.exchange import ExchangeLoop
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.requests import BatchRequests
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.wake_ups import WakeUps

log: Log = log_for("gpu")

PAUSE = 1.0
"""Seconds between two checks while a task waits that does not fit. A new GPU sample comes as often."""


class Admission:
    """Starts tasks that need a GPU where there is room. One for each worker; idle while no task waits for a GPU."""

    def __init__(
        self,
        context: WorkerContext,
        requests: BatchRequests,
        slots: Slots,
        wake_ups: WakeUps,
        gate: Gate,
        exchange: ExchangeLoop,
        learning: BatchLearning,
    ) -> None:
        """`exchange` is an exchange loop that nothing else uses."""
        self._worker = context.name
        self._kinds = context.kinds
        self._store = context.store
        self._interval = context.interval
        self._requests = requests
        self._slots = slots
        self._wake_ups = wake_ups
        self._gate = gate
        self._exchange = exchange
        self._usable = False
        self._held = ""
        self._sizes = dict[str, int]()
        """For how many tasks of a batch there is room, by the name of the demand's set."""
        self._learning = learning
        self._batch_due = math.inf
        """When the next batch is due that waits for more tasks, on the event loop's clock."""
        self._patience = Patience("a worker's admission to GPUs", context.store.connection.server.outage)

    async def run(self) -> None:
        """Check what can start, again after each change."""
        while True:
            self._wake_ups.gpu.clear()
            try:
                waiting = await self._check()
                self._patience.restored()
            except StorageError as error:
                await self._patience.after(error)
                continue
            if self._gate.grants.needs_tidy:
                self._gate.grants.soon()
            await self._pause(waiting=waiting)

    async def _pause(self, *, waiting: bool) -> None:
        """Wait until the next check is due. While nothing waits, a new GPU sample alone is no reason for a check."""
        longest = anyio.current_time() + self._interval
        while True:
            with anyio.move_on_after(min(PAUSE, self._batch_due - anyio.current_time())):
                await self._wake_ups.gpu.wait()
            self._wake_ups.gpu.clear()
            if (
                waiting
                or anyio.current_time() >= self._batch_due
                or self._must_check()
                or anyio.current_time() >= longest
            ):
                return

    def _must_check(self) -> bool:
        """Return whether the state here may have changed for waiting tasks, or no wake-up would report a new task."""
        gate, wake_ups = self._gate, self._wake_ups
        return (
            gate.grants.needs_tidy
            or gate.grants.reports.are_due
            or gate.grants.have_warm_children
            or wake_ups.gpu_marked
            or bool(gate.devices.usable) != self._usable
            # While the worker has other tasks it does not sleep on the server, and no marker can wake it.
            or (self._usable and wake_ups.has_work)
        )

    async def _check(self) -> bool:
        """Start the tasks that fit; return whether a task still waits."""
        await self._gate.tidy()
        self._usable = bool(self._gate.devices.usable)
        able = self._usable and not self._slots.shut
        if not able:
            self._slots.keep_for_gpu(0)
        waiting = able and await self._start_what_fits()
        useless = waiting or not able
        self._wake_ups.listens_for_gpu = not useless
        if not useless and not self._wake_ups.hears_gpu and not self._wake_ups.has_work:
            await self._store.markers.wake(self._worker)  # its present sleep does not end for a task that needs a GPU
        if useless and self._wake_ups.gpu_marked:
            await self._store.markers.wake_for_gpu(self._kinds)  # another worker may have room
        self._wake_ups.gpu_marked = False
        return waiting

    async def _start_what_fits(self) -> bool:
        """Start the tasks that fit, the oldest first; return whether a task still waits."""
        slots = self._slots
        waiting, first_ready, held = await self._demands()
        while waiting:
            made = await self._plan(waiting, max(1, slots.free), held)
            await self._post(made)
            free = slots.free  # the answer of a claim may have come meanwhile
            # While all slots are taken, the next free slot goes to the task that comes first, with a GPU or without.
            first = made.starts[0].waiting.rank if made.starts else math.inf
            slots.keep_for_gpu(len(made.starts) if free else int(bool(made.starts) and first <= first_ready))
            if not free:
                if slots.spare and self._requests.sleeps_on_slots:
                    await self._store.markers.wake(self._worker)
                return True
            starts = [one for one in made.starts[: slots.free] if one.grant is not None or slots.may_start_child()]
            started = bool(starts) and await self._start(starts)
            slots.keep_for_gpu(0)
            if not started:
                return True
            waiting, first_ready, held = await self._demands()
        slots.keep_for_gpu(0)
        return False

    async def _plan(self, waiting: Sequence[Waiting], slots: int, held: str) -> Plan:
        """Plan for batches that are as large as there is room for."""
        sizes = self._sizes = {one.name: await self._most_tasks(one) for one in waiting} if self._kinds.batches else {}
        while True:
            sized = [self._sized(one) for one in waiting] if sizes else waiting
            made = await self._gate.plan(sized, slots=slots, held=held)
            started = {start.waiting.name for start in made.starts}
            large = [name for name, number in sizes.items() if number > 1 and name not in started]
            if not large or len(made.starts) >= slots:
                return made
            for name in large:
                sizes[name] //= 2

    async def _most_tasks(self, waiting: Waiting) -> int:
        """Return how many tasks of a batch the reservation should be for; 1: as many as there are."""
        batching = self._kinds.batches.get(kind_of(waiting))
        if batching is None or not batching.gpu_memory_per_task:
            return 1
        return max(1, min(await self._store.reader.count_of_demand(waiting.name), batching.max_size))

    def _sized(self, waiting: Waiting) -> Waiting:
        batching, number = self._kinds.batches.get(kind_of(waiting)), self._sizes[waiting.name]
        if batching is None or number == 1:
            return waiting
        return attrs.evolve(waiting, demand=batching.demand(waiting.demand, number))

    async def _demands(self) -> tuple[Sequence[Waiting], float, str]:
        waiting, first_ready, held = await self._store.reader.demands(self._requests.suspects_on_gpus(), self._kinds)
        if self._kinds.batches:
            self._batch_due = math.inf
            waiting = [one for one in waiting if await self._is_due(one)]
        return waiting, first_ready, held

    async def _is_due(self, waiting: Waiting) -> bool:
        """Return whether tasks may start: all but those that wait for others of their batch."""
        batching = self._kinds.batches.get(kind_of(waiting))
        if batching is None or waiting.suspect or waiting.age >= batching.max_wait:
            return True
        if await self._store.reader.count_of_demand(waiting.name) >= batching.max_size:
            return True
        self._batch_due = min(self._batch_due, anyio.current_time() + batching.max_wait - waiting.age)
        return False

    async def _post(self, made: Plan) -> None:
        value = ""
        if made.hold is not None:
            value = f"{made.hold.waiting.name} {made.hold.sample.uuid} {self._worker}"
            if not await self._store.writer.hold(value, HOLD):
                made.hold = None
            elif value != self._held:
                log.info("GPU %s is held for tasks that need %s", made.hold.sample.uuid, made.hold.waiting.demand)
        self._held = value if made.hold is not None else ""
        await self._gate.post(made)

    async def _start(self, starts: list[Placement]) -> bool:
        """Reserve room, claim tasks, and give back unused reservations; return whether a task was started."""
        grants: list[Grant] = []
        alone: list[Grant] = []
        fits: list[str] = []
        started = False
        try:
            for start in starts:
                grant = await self._gate.reserve(start)
                if grant is None:
                    continue
                grants.append(grant)
                fit, kind = _fit(start, grant), kind_of(start.waiting)
                if kind in self._kinds.batches:
                    batching = self._kinds.batches[kind]
                    most = self._sizes[start.waiting.name] if batching.gpu_memory_per_task else batching.max_size
                    batch = self._learning.claim_on_gpu(kind, grant.uuid, most)
                    request = self._requests.for_gpu_batch(fit, kind, batch, self._exchange.number)
                    started |= request is not None and await self._claim(request, [grant])
                else:
                    alone.append(grant)
                    fits.append(fit)
            request = self._requests.for_gpus(fits, self._exchange.number)
            return (request is not None and await self._claim(request, alone)) or started
        finally:
            # Reservations that no task has taken, also if the server did not answer.
            for grant in grants:
                if not grant.task_id:
                    grant.attempt_ended()

    async def _claim(self, request: BatchRequest, grants: list[Grant]) -> bool:
        """Claim tasks for the reservations; return whether there were any, or entries that the claim has dropped."""
        sent = time.monotonic()
        reply = await self._exchange.send(request)
        if request.batch and reply.claimed:
            self._note_batch(request.kind, reply.claimed, grants[0])
        else:
            for claimed in reply.claimed:
                grants[claimed.fit].claimed(claimed.task.task_id, claimed.demand)
        self._exchange.apply(request, reply, sent, grants)
        await self._gate.tidy()  # so that the ledger names the tasks
        return bool(reply.claimed) or reply.hit

    def _note_batch(self, kind: str, batch: Sequence[Claimed], grant: Grant) -> None:
        """Have the reservation name the first task, and be no larger than what the batch needs."""
        demands = [one.demand for one in batch if one.demand is not None]
        largest = max(demands, key=lambda demand: demand.memory, default=None)
        needed = None if largest is None else self._kinds.batches[kind].demand(largest, len(batch))
        grant.claimed(batch[0].task.task_id, needed)


def kind_of(waiting: Waiting) -> str:
    """Return the kind of waiting tasks, by the name of their set."""
    return waiting.name.rpartition("/")[0]


def _fit(start: Placement, grant: Grant) -> str:
    return f"{start.waiting.name} {grant.uuid} {grant.index} {start.waiting.demand.memory}"
