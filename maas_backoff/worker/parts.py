"""The parts of one worker, and how they are put together."""

import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Self

import anyio
import attrs

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.process_name import process_name
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.config.peer import peer_of
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.kind import ONLY_NAMELESS, Kinds
from maas_backoff.domain.tally import Tally
from maas_backoff.domain.tracing import Tracing
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.gate import Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.sample import Probe
from maas_backoff.store.connect import Client
from maas_backoff.store.ledger import Ledgers
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.attempts import Attempts
from maas_backoff.worker.batch_learning import BatchLearning
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.exception_handling import ExceptionHandling
from maas_backoff.worker.executors.base import ExceptionHandler, Executor
from maas_backoff.worker.loops import children, poll, progress, sweep, timeouts
from maas_backoff.worker.loops.admission import Admission
from maas_backoff.worker.loops.batches import BatchLoop
from maas_backoff.worker.loops.emit import EmitLoop
from maas_backoff.worker.loops.exchange import ExchangeLoop
from maas_backoff.worker.loops.orphans import Orphans
from maas_backoff.worker.loops.sums import SumsLoop
from maas_backoff.worker.loops.wake import Wake
from maas_backoff.worker.outbox import Outbox
from maas_backoff.worker.requests import BatchRequests
from maas_backoff.worker.setback import Setback
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.sums import SettleSums
from maas_backoff.worker.suspects import Suspects
from maas_backoff.worker.wake_ups import WakeUps
from maas_backoff.worker.work import Work

log: Log = log_for("worker")

EXCHANGES = 2
"""The number of exchange loops: the server handles the request of one while this process handles the other's reply."""

Loop = Callable[[], Awaitable[None]]


@attrs.frozen
class Parts:
    """The parts of one worker. Each part has references to the parts that it needs. `Service` starts and stops them."""

    config: TaskBackoffConfig
    context: WorkerContext
    executor: Executor
    setback: Setback | None
    """The record of failed starts of children or threads; None if handlers need neither."""
    wake_ups: WakeUps
    slots: Slots
    deadlines: Deadlines
    attempts: Attempts
    requests: BatchRequests
    gate: Gate
    work: Work
    orphans: Orphans
    sums: SumsLoop

    @classmethod
    def of(
        cls,
        config: TaskBackoffConfig,
        store: QueueStore,
        executor: Executor,
        exception_handler: ExceptionHandler | None,
        probe: Probe,
        tracing: Tracing | None = None,
        kinds: Kinds = ONLY_NAMELESS,
    ) -> Self:
        """Return the parts of a worker with a new name. `executor` runs the tasks of all `kinds`."""
        given = config.scheduler.worker_name or process_name()
        name = f"{given}-{secrets.token_hex(3)}"
        in_children = config.threadpool.proc_mode == "process"
        context = WorkerContext.of(name, store, config, kinds)
        setback = executor.setback
        wake_ups = WakeUps(kinds.batches, only_batches=not kinds.alone)
        slots = Slots(config.threadpool.concurrency, wake_ups, setback)
        deadlines = Deadlines(by_lease=executor.stoppable, stops=executor.stops)
        outbox, tally, sums = Outbox(), Tally(), SettleSums()
        attempts = Attempts(context, slots, outbox, wake_ups, deadlines, tally)
        suspects = Suspects(has_both=bool(kinds.batches) and not wake_ups.only_batches)
        requests = BatchRequests(slots, outbox, wake_ups, suspects, tally, sums, batch_size=config.task.batch_size)
        queue, server = config.task.biz_prefix, store.connection.server
        gate = Gate(
            probe,
            Ledgers(config.storage, server, lease=config.scheduler.lease, queue=queue),
            GateContext(config.gpu, worker=name, queue=queue, in_children=in_children, changed=wake_ups.gpu),
            hand_back=slots.attempts.hand_back,
        )
        work = Work(
            attempts,
            slots,
            executor,
            config.task.custom_backoff,
            ExceptionHandling(exception_handler, config.task.max_payload_bytes),
            config.task.max_payload_bytes,
            gate,
            BatchLearning(kinds.batches, config.threadpool.concurrency),
            None if tracing is None else tracing.of_worker(queue, name, peer_of(config.storage)),
        )
        orphans = Orphans(executor.child_ended, gate)
        return cls(
            config, context, executor, setback, wake_ups, slots, deadlines, attempts, requests, gate, work, orphans,
            SumsLoop(sums, store),
        )  # fmt: skip

    def loops(self, waker: Client) -> list[tuple[str, Loop]]:
        """Return the loops of the worker with their names. `waker` is the client that sleeps on the server."""
        context, slots, wake_ups, requests = self.context, self.slots, self.wake_ups, self.requests
        *exchanges, for_sleep, for_gpu, for_batches = (
            ExchangeLoop(number, context, requests, wake_ups, self.work) for number in range(EXCHANGES + 3)
        )
        named: list[tuple[str, Loop]] = [
            *((f"exchange {each.number}", each.run) for each in exchanges),
            ("poll", partial(poll.run, wake_ups)),
            ("wake-up", Wake(context, requests, slots, wake_ups, waker, for_sleep).run),
            ("admission", Admission(context, requests, slots, wake_ups, self.gate, for_gpu, self.work.learning).run),
            ("timeouts", partial(timeouts.run, self.deadlines, slots)),
            ("progress", partial(progress.run, self.attempts.notes, context.store)),
            ("sums", self.sums.run),
            ("emit", EmitLoop(self.attempts.emissions, context.store).run),
            ("sweep", partial(sweep.run, self.work.sweep, context.lease)),
            *(("lifespan", group.watch) for group in self.executor.groups),
            ("orphans", self.orphans.run),
        ]
        if context.kinds.batches:
            named.append(
                ("batches", BatchLoop(context, requests, slots, wake_ups, for_batches, self.work.learning).run)
            )
        starting = {group.starting for group in self.executor.groups}
        named += [("children", partial(children.run, one, slots, context)) for one in starting if one is not None]
        return named

    async def start_executor(self) -> None:
        """Start the executor. If a lifespan needs a GPU, its first child starts on one."""
        for group in self.executor.groups:
            grant = await self._grant_to_start_on(group.start_demand)
            try:
                await group.start(grant)
            finally:
                if grant is not None:
                    grant.attempt_ended()

    async def _grant_to_start_on(self, demand: Demand | None) -> Grant | None:
        """Return a grant on a GPU for the first child; None if the lifespan needs no GPU, or no GPU has room."""
        if demand is None:
            return None
        with anyio.move_on_after(self.config.threadpool.start_timeout):
            grant = await self.gate.first_grant(demand)
            if grant is not None:
                return grant
        log.warning("no GPU has room for the worker_lifespan now; it is entered when the first task gets a device")
        return None

    def troubles(self, now: float) -> list[str]:
        """Return the reasons why attempts do not run as they should, at the time `now` of time.monotonic()."""
        found = [f"task {one.task.task_id!r} ignores its timeout" for one in self.slots.attempts.stuck(now, grace=5)]
        if self.gate.devices.trouble is not None:
            found.append(self.gate.devices.trouble)
        if self.setback is not None and self.setback.trouble is not None:
            found.append(self.setback.trouble)
        if self.slots.lingering:
            found.append(f"{self.slots.lingering} threads outlive their timeout and take a slot each")
        return found
