"""The heartbeat: keeps the leases of what runs here, from a thread with a loop and a connection of its own.

That way, a handler that blocks the event loop keeps its lease, and a cancel reaches it as soon as it lets go. The
thread also looks for tasks that other workers have lost.
"""

import asyncio
import contextlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import anyio

from maas_backoff.common.guard import log_for
from maas_backoff.domain import jsontext
from maas_backoff.domain.outcome import CancelReason
from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.gate.gate import Gate
from maas_backoff.store import scripts
from maas_backoff.store.connect import Client
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.loops.reap import Reaper
from maas_backoff.worker.slots import Slots

log = log_for("worker")

LONGEST_TROUBLE = 1000
"""Characters that the registry keeps of what keeps a worker from running tasks."""


class Heartbeat:
    """Renews leases every third of a lease; hands lost leases and cancel requests to the event loop."""

    def __init__(
        self,
        context: WorkerContext,
        slots: Slots,
        gate: Gate,
        about: dict[str, object],
        troubles: Callable[[], list[str]],
    ) -> None:
        """`about` is what the worker says of itself for good; `troubles` is asked with each beat, in its thread."""
        store, lease = context.store, context.lease
        self._store = store
        self._slots = slots
        self._gate = gate
        self._lease = lease
        self._worker = context.name
        self._about = about
        self._troubles = troubles
        self._reaper = Reaper(store, context.name, lease)
        self._longest_block = min(lease / 3, 5.0)
        self._deadline = max(1.0, lease / 10)  # short, so that a dead connection is left in time
        self._missed = 0
        self._patience = Patience("a worker's heartbeat", store.server.outage)
        self._is_without_gpus = False
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._thread = threading.Thread(target=self._main, name="maas-backoff-heartbeat", daemon=True)
        self._stop = threading.Event()
        self._own_loop: asyncio.AbstractEventLoop | None = None
        self._own_scope: anyio.CancelScope | None = None
        self._asked_at: float | None = None
        self._blocked = False
        self._lag = 0.0
        self._renewed_at = time.monotonic()
        self._error = ""

    @property
    def trouble(self) -> str | None:
        """The reason why the leases are not renewed, if the last beat is missing."""
        silent = time.monotonic() - self._renewed_at
        if silent < self._lease / 2:
            return None
        return f"the last heartbeat was {silent:.0f} s ago: {self._error or 'the server does not answer'}"

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stop.set()
        loop, scope = self._own_loop, self._own_scope
        if loop is not None and scope is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(scope.cancel)
        await anyio.to_thread.run_sync(self._thread.join)

    def _main(self) -> None:
        try:
            asyncio.run(self._beat_for_ever())
        except Exception:
            log.critical("the heartbeat has ended; leases of this worker will run out", exc_info=True)

    async def _beat_for_ever(self) -> None:
        client = self._store.server.new_client(connections=1, timeout=self._longest_block + self._deadline)
        try:
            with anyio.CancelScope() as self._own_scope:
                self._own_loop = asyncio.get_running_loop()
                # A loop that was closed without `shutdown` took its attempts with it: their leases run out.
                while not self._stop.is_set() and not self._loop.is_closed():
                    await self._beat(client)
                if self._loop.is_closed():
                    log.critical("the worker's event loop was closed without shutdown(); its leases run out")
        finally:
            await client.aclose()

    async def _beat(self, client: Client) -> None:
        period = self._lease / 3
        next_beat = time.monotonic() + period
        try:
            self._watch_loop(period)
            if not self._store.server.location.fixed:
                # A master that was deposed may still answer; what it is told is lost.
                with anyio.fail_after(self._deadline):
                    await self._store.server.location.look()
            await self._renew(client)
            await self._renew_grants(client)
            while next_beat > time.monotonic():
                await self._reaper.look(client, self._deadline)
                await self._listen(client, min(next_beat, self._reaper.due) - time.monotonic())
        except (StorageError, TimeoutError) as error:
            self._missed += 1
            self._error = str(error) or "no answer in time"
            self._patience.failed(error if isinstance(error, StorageError) else StorageUnavailableError(self._error))
            # Soon again, but a connection takes time, too.
            await anyio.sleep(min(1.0, self._lease / 30))
        except Exception as error:
            if self._loop.is_closed():
                return
            # Whatever it was, all leases of this worker depend on the next beat.
            self._missed += 1
            self._error = f"{type(error).__name__}: {error}"
            if self._missed == 1:
                log.exception("a heartbeat failed; the next ones that fail are not logged")
            await anyio.sleep(1)

    async def announce(self) -> None:
        """Tell the registry at once what the next beat would. To be called on the worker's own loop."""
        await self._store.server.run(scripts.RENEW, *self._request([]))

    def _request(self, attempts: Sequence[Attempt]) -> tuple[Sequence[str], list[object]]:
        args: list[object] = [self._store.clock, self._store.keys.prefix, self._worker]
        args += [self._described(len(attempts)), f"{self._lease * 1000:.0f}"]
        for attempt in attempts:
            args += attempt.task.task_id, attempt.token
        return self._store.keys.all(scripts.RENEW.keys, info=self._store.keys.info(self._worker)), args

    def _described(self, running: int) -> str:
        """Return what the registry is told, as JSON. No reading of a device keeps leases from being renewed."""
        about = {**self._about, "running": running, "lag": self._lag}
        about["trouble"] = "; ".join(self._troubles())[:LONGEST_TROUBLE]
        try:
            return jsontext.plain({**about, "gpus": self._gate.overview.describe()})
        except Exception:
            if not self._is_without_gpus:
                log.exception("the GPUs cannot be described; the registry of workers lists none of this worker")
            self._is_without_gpus = True
            return jsontext.plain({**about, "gpus": []})

    async def _renew(self, client: Client) -> None:
        attempts = self._renewable()
        keys, args = self._request(attempts)
        sent = time.monotonic()  # the lease counts from the renewal on the server, which is later
        # Longer after each failure: on a slow network, a new connection alone may take longer than the first deadline.
        with anyio.fail_after(min(self._deadline * 2 ** min(self._missed, 10), self._lease)):
            lost, cancelled = await client.run(scripts.RENEW, keys, args)
        self._renewed_at = time.monotonic()
        self._missed = 0
        self._patience.restored()
        gone = {int(token) for token in lost}
        for attempt in attempts:
            if attempt.token not in gone:
                attempt.renewed(sent + self._lease)
        if gone:
            self._loop.call_soon_threadsafe(self._slots.cancel, list(gone), CancelReason.LEASE_LOST)
        for task_id in cancelled:
            self._loop.call_soon_threadsafe(self._slots.cancel_task, task_id.decode())

    async def _renew_grants(self, client: Client) -> None:
        """Renew what this worker was granted of GPUs; in a Cluster that lies elsewhere, for each device."""
        failure: StorageError | TimeoutError | None = None
        for uuid, reservations in self._gate.grants.renewal.by_device().items():
            try:
                with anyio.fail_after(self._deadline):
                    missing = await self._gate.grants.renewal.renew(uuid, reservations, client)
            except (StorageError, TimeoutError) as error:
                failure = error  # the others are not to run out because of this one
                continue
            if missing:
                self._loop.call_soon_threadsafe(self._gate.grants.renewal.note_missing, missing)
        if failure is not None:
            raise failure

    def _renewable(self) -> list[Attempt]:
        """All but those that ignore their timeout: they would hold their lease for ever."""
        attempts = list(self._slots.attempts.values())
        stuck = set(self._slots.stuck(time.monotonic(), self._lease))
        return [attempt for attempt in attempts if attempt not in stuck]

    async def _listen(self, client: Client, seconds: float) -> None:
        """Wait for cancel requests until the next beat is due."""
        block = max(0.05, min(seconds, self._longest_block))
        taken = await client.execute("BZPOPMIN", self._store.keys.control(self._worker), f"{block:.3f}")
        if taken is not None:
            self._loop.call_soon_threadsafe(self._slots.cancel_task, taken[1].decode())

    def _watch_loop(self, period: float) -> None:
        """Warn, once a time, when the event loop has not answered for two beats."""
        now = time.monotonic()
        silent = 0.0 if self._asked_at is None else now - self._asked_at
        if silent < 2 * period:
            self._blocked = False
        elif not self._blocked:
            self._blocked = True
            frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - documented, in spite of its name
            stack = "".join(traceback.format_stack(frame, limit=20)) if frame else ""
            running = ", ".join(repr(a.task.task_id) for a in list(self._slots.attempts.values())[:10] if not a.over)
            log.warning("the event loop has been blocked for %.1f s; running: %s\n%s", silent, running, stack)
        if self._asked_at is None:
            self._asked_at = now
            self._loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        if self._asked_at is not None:
            self._lag = round(time.monotonic() - self._asked_at, 6)
        self._asked_at = None
