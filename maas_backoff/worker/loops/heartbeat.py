"""The heartbeat: renews the leases of running attempts, in a thread with its own event loop and connection.

A handler that blocks the worker's event loop keeps its lease. A cancel reaches the handler as soon as the loop runs
again. The thread also looks for tasks that other workers have lost.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.outcome import CancelReason
from maas_backoff.domain.tracing import WorkerTracing
from maas_backoff.errors import StorageError
from maas_backoff.gate.gate import Gate
from maas_backoff.store.connect import Client
from maas_backoff.store.outage import Outage
from maas_backoff.store.registry import processes
from maas_backoff.store.replies import RenewReply
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.description import Description
from maas_backoff.worker.lease import Lease
from maas_backoff.worker.loop_watch import LoopWatch
from maas_backoff.worker.loops.last_heartbeat import LastHeartbeat
from maas_backoff.worker.loops.neighbours import Neighbours
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.loops.reap import Reaper
from maas_backoff.worker.own_loop import OwnLoop
from maas_backoff.worker.running import slots_of
from maas_backoff.worker.slots import Slots

log: Log = log_for("worker")

AT_ONCE = 2000
"""The most leases of one call: with batches a worker has 1,000 for each slot, and other calls wait meanwhile."""

FAILED = "the heartbeat has ended; leases of this worker will run out"


class Heartbeat:
    """Renews leases every third of a lease, and passes lost leases and cancel requests to the worker's event loop."""

    def __init__(
        self,
        context: WorkerContext,
        slots: Slots,
        gate: Gate,
        description: Description,
        neighbour_ended: Callable[[str], object],
        tracing: WorkerTracing | None,
    ) -> None:
        """Call `description` at each heartbeat, in the heartbeat's thread; `neighbour_ended` in the event loop."""
        self._context = context
        self._slots = slots
        self._gate = gate
        self._description = description
        self._reaper = Reaper(context.store, context.name, context.lease, tracing)
        outage = context.store.connection.server.outage
        self._last = LastHeartbeat(
            Patience("a worker's heartbeat", outage),
            Patience("a worker's renewal of GPU reservations", Outage()),  # a ledger may be on another server
        )
        self._watch = LoopWatch(slots)
        self._neighbours = Neighbours(context, self._reaper, lambda worker: self._watch.call(neighbour_ended, worker))
        self._own_loop = OwnLoop(self._beat_for_ever, "maas-backoff-heartbeat", FAILED)
        self._cancelled: deque[str] = deque()
        self._failed_at: dict[str, float] = {}  # the ledgers that failed last time
        self._rival = ""
        self._announced = False
        self._quiet = False

    @property
    def trouble(self) -> str | None:
        """The reason why the leases are not kept; None if the last heartbeat was in time."""
        if self._rival:
            return f"worker {self._rival} has started under the same worker_name, and has taken this one's tasks"
        silent = self._last.silence
        if silent < self._context.lease / 2:
            return None
        return f"the last heartbeat was {silent:.0f} s ago: {self._last.error or 'the server does not answer'}"

    def start(self) -> None:
        """Start the thread."""
        self._own_loop.start()

    async def stop(self) -> None:
        """Stop the thread, and wait for its end."""
        await self._own_loop.stop()

    async def announce(self) -> None:
        """Write the worker's description to the registry, without a heartbeat. Called on the worker's event loop."""
        self._announced = True
        info = self._description.text(running=0, lag=self._watch.lag)
        await self._context.store.registry.enter(self._context.name, info)

    # In the thread

    @property
    def _longest_block(self) -> float:
        """The most seconds that one call waits for cancel requests."""
        return min(self._context.lease / 3, 5.0)

    @property
    def _deadline(self) -> float:
        """The most seconds of a server call: few, so that a dead connection is given up in time."""
        return max(1.0, self._context.lease / 10)

    @property
    def _pause(self) -> float:
        """Seconds between a failure and the next heartbeat: a connection takes time, too."""
        return min(1.0, self._context.lease / 30)

    async def _beat_for_ever(self) -> None:
        server = self._context.store.connection.server
        client = server.new_client(connections=1, timeout=self._longest_block + self._deadline)
        for_neighbours = server.new_client(connections=1, timeout=self._deadline)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._neighbours.run, for_neighbours)
                # If the event loop was closed without `shutdown`, its attempts are gone, and their leases must run out.
                while not self._own_loop.stopping and not self._watch.is_closed:
                    await self._beat(client)
                group.cancel_scope.cancel()
            if self._watch.is_closed:
                log.critical("the worker's event loop was closed without shutdown(); its leases run out")
        finally:
            with anyio.CancelScope(shield=True):
                await client.aclose()
                await for_neighbours.aclose()

    async def _beat(self, client: Client) -> None:
        period = self._context.lease / 3
        try:
            await self._renew_and_listen(client, period)
        except (StorageError, TimeoutError) as error:
            self._last.unanswered(error)
            await anyio.sleep(self._pause)
        except Exception as error:
            if self._watch.is_closed:
                return
            # After any error the heartbeat must go on: all leases of this worker depend on it.
            self._last.failed(error)
            if self._last.missed == 1:
                log.exception("a heartbeat failed; the next ones that fail are not logged")
            await anyio.sleep(1)

    async def _renew_and_listen(self, client: Client, period: float) -> None:
        next_beat = time.monotonic() + period
        self._watch.check(period)
        location = self._context.store.connection.server.location
        if not location.fixed:
            # A deposed master may still answer; writes to it are lost.
            with anyio.fail_after(self._deadline):
                await location.look()
        announced = self._announced
        await self._renew(client)
        if announced != self._announced:
            await self._renew(client)  # this one's description may have come after the announced one, and is older
        if not await self._renew_grants(client, until=next_beat):
            next_beat = min(next_beat, time.monotonic() + self._pause)
        while True:
            await self._reaper.look(client, self._deadline)
            await self._listen(client, min(next_beat, self._reaper.due) - time.monotonic())
            if next_beat <= time.monotonic():
                return

    async def _renew(self, client: Client) -> None:
        attempts = self._renewable()
        oldest = max((attempt.age for attempt in attempts), default=0)
        taken = slots_of(list(self._slots.attempts.values())) + self._slots.lingering
        info = self._description.text(taken, self._watch.lag, oldest)
        reply = await self._renew_leases(client, info, attempts[:AT_ONCE])
        for start in range(AT_ONCE, len(attempts), AT_ONCE):
            reply = await self._renew_leases(client, info, attempts[start : start + AT_ONCE])
        self._last.answered()
        self._neighbours.note(processes(reply.neighbours))
        await self._note_name(client, reply.named.decode())
        await self._note_quiet(client, bool(reply.quiet))  # the last: it may fail, and the leases are renewed

    async def _renew_leases(self, client: Client, info: str, attempts: Sequence[Attempt]) -> RenewReply:
        """Renew the leases of these attempts; stop those whose lease is lost, or whose task is to be cancelled."""
        context = self._context
        leases = [(attempt.task.task_id, attempt.token) for attempt in attempts]
        sent = time.monotonic()  # the lease begins with the renewal on the server, which is later
        # The deadline grows with each failure: on a slow network, a new connection may take longer than the first one.
        # It grows slowly, as three lost messages in a row must not cost the lease.
        with anyio.fail_after(min(self._deadline * (1 + self._last.missed / 2), context.lease)):
            reply = await context.store.registry.renew(client, context.name, info, leases)
        lease = Lease.since(sent, context.lease)
        gone = {int(token) for token in reply.lost}
        for attempt in attempts:
            if attempt.token not in gone:
                attempt.renewed(lease)
        if gone:
            self._watch.call(self._slots.attempts.cancel, list(gone), CancelReason.LEASE_LOST)
        self._pass_on(task_id.decode() for task_id in reply.cancelled)
        return reply

    def _pass_on(self, cancelled: Iterable[str]) -> None:
        """Have the event loop cancel these tasks: it looks at its attempts once for all that have come until then."""
        self._cancelled.extend(cancelled)
        if self._cancelled:
            self._watch.call(self._cancel)

    def _cancel(self) -> None:
        """Cancel what was passed on. Called on the event loop."""
        ids = {self._cancelled.popleft() for _ in range(len(self._cancelled))}
        if ids:
            self._slots.attempts.cancel_tasks(ids)

    async def _note_name(self, client: Client, named: str) -> None:
        """Note which worker has this worker's name. If none has it any more, take it again."""
        name = self._context.store.connection.config.scheduler.worker_name
        if name and not named:
            # If this fails, as while the server's memory is full, the next heartbeat tries again.
            with contextlib.suppress(StorageError), anyio.move_on_after(self._deadline):
                await self._context.store.registry.take_free_name(client, name, self._context.name)
            return
        rival = named if name and named != self._context.name else ""
        if rival and rival != self._rival:
            log.error("worker %s has started under the same worker_name; names must differ", rival)
        self._rival = rival

    async def _note_quiet(self, client: Client, quiet: bool) -> None:
        """Pass on that the worker is to claim nothing, or to claim again. The next heartbeat reports it."""
        if quiet == self._quiet:
            return
        self._quiet = quiet
        log.warning("quiet: nothing is claimed until it is undone" if quiet else "no longer quiet: tasks are claimed")
        self._watch.call(self._slots.set_quiet, quiet)
        if quiet:
            # This ends the claim that sleeps on the server.
            with anyio.fail_after(self._deadline):
                await self._context.store.markers.wake_by(client, self._context.name)

    async def _renew_grants(self, client: Client, until: float) -> bool:
        """Renew the reservations of this worker, for each GPU: in a Cluster, each ledger may be on another node.

        Return False if a ledger cannot be reached. Those that failed last time come last, the longest ago first, and
        none begins after `until`: leases, lost tasks and cancel requests must not wait for them.
        """
        failure: StorageError | TimeoutError | None = None
        by_device = self._gate.grants.renewal.by_device()
        for uuid in sorted(by_device, key=lambda uuid: self._failed_at.get(uuid, 0)):
            if failure is not None and time.monotonic() >= until:
                break
            try:
                with anyio.fail_after(self._deadline):
                    missing = await self._gate.grants.renewal.renew(uuid, by_device[uuid], client)
            except (StorageError, TimeoutError) as error:
                failure = error  # renew the other reservations all the same
                self._failed_at[uuid] = time.monotonic()
                continue
            self._failed_at.pop(uuid, None)
            if missing:
                self._watch.call(self._gate.grants.renewal.note_missing, missing)
        self._last.reserved(failure)
        return failure is None

    def _renewable(self) -> list[Attempt]:
        """Return all attempts except those that ignore their timeout, which would keep their lease for ever."""
        attempts = list(self._slots.attempts.values())
        stuck = set(self._slots.attempts.stuck(time.monotonic(), self._context.lease))
        return [attempt for attempt in attempts if attempt not in stuck]

    async def _listen(self, client: Client, seconds: float) -> None:
        """Wait for a cancel request, `seconds` at most, and pass it on."""
        block = max(0.05, min(seconds, self._longest_block))
        task_id = await self._context.store.registry.cancel_request(client, self._context.name, block)
        if task_id is not None:
            self._pass_on([task_id])
