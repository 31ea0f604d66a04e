"""A scheduler with a clock that the test moves: a day of retries passes in the milliseconds of its handlers."""

import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

import anyio
import attrs

from maas_backoff.client.client import QueueClient
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.config.storage import StorageConfig
from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.signals import seconds_of
from maas_backoff.domain.status import TaskStatus
from maas_backoff.errors import HandlerError, MaasBackoffError
from maas_backoff.scheduler import TaskBackoffScheduler
from maas_backoff.testing.gpu import FakeGpu, FakeGpuProbe

PATIENCE = 60.0
"""The most real seconds of handlers before `drain` gives up."""

_ALL = 1_000_000
"""Shut limits that are looked at: all of a test."""

_LEASE = 86_400.0
"""The longest lease in seconds: a jump of the clock must not look like the death of a worker."""


class SimulatedScheduler(TaskBackoffScheduler):
    """Runs the real worker on a private embedded server (extra `embedded`), with a clock that the test moves.

    `advance` moves the clock from one due time to the next, and lets all due tasks run. Delays, retries, snoozes,
    priorities, rates of limits and times to live of finished tasks follow this clock. A wait inside a handler, and
    `exec_timeout`, take real time.
    """

    def __init__(
        self,
        config: TaskBackoffConfig | None = None,
        *,
        gpus: Sequence[FakeGpu] = (),
        kinds_of: TaskBackoffScheduler | None = None,
    ) -> None:
        """Copy `config`, but with another storage and lease.

        `kinds_of` is a scheduler whose kinds this one runs: until `shutdown`, their `create` reaches this scheduler.
        """
        mine = TaskBackoffConfig() if config is None else config.copy()
        mine.storage = StorageConfig(type="embedded")
        mine.scheduler.lease = _LEASE
        mine.task.biz_prefix = mine.task.biz_prefix or "simulated"
        super().__init__(mine, gpu_probe=FakeGpuProbe(gpus))
        self._now_ms = float(int(time.time() * 1000))
        self._runs = False
        self._give_back: Callable[[], object] = _nothing
        if kinds_of is not None:
            kinds = kinds_of._kinds  # noqa: SLF001 - a scheduler, too
            for kind in kinds:
                self._kinds.add(kind)
            self._hooks += kinds_of._hooks  # noqa: SLF001 - as above
            self._give_back = partial(kinds.redirect, kinds.redirect(lambda: self._client))

    @property
    def now(self) -> datetime:
        """The simulated time."""
        return datetime.fromtimestamp(self._now_ms / 1000, UTC)

    @property
    def _client(self) -> QueueClient:
        # Each call is 1 ms later than the one before: tasks run in the order of their creation.
        client = super()._client
        self._set(client, self._now_ms + 1)
        return client

    def _set(self, client: QueueClient, now_ms: float) -> None:
        self._now_ms = now_ms
        client.store.connection.clock = f"{now_ms:.0f}"

    async def start(self, *, run_tasks: bool = True) -> None:
        """Start, as every scheduler does."""
        await super().start(run_tasks=run_tasks)
        self._runs = True

    async def shutdown(self) -> None:
        """Stop, as every scheduler does, and give the kinds of `kinds_of` back."""
        give_back, self._give_back, self._runs = self._give_back, _nothing, False
        try:
            await super().shutdown()
        finally:
            give_back()

    async def drain(self) -> None:
        """Wait until no task runs, and no due task can start.

        Due tasks of a paused queue, kind or tenant, those whose limits are shut, and those without room on a GPU stay
        pending. Raises HandlerError if the scheduler is not started, and MaasBackoffError after a minute, for example
        if a handler hangs.
        """
        self._check_started("drain")
        with anyio.move_on_after(PATIENCE):
            await self._expire()
            while not await self._is_quiet():  # noqa: ASYNC110 - the state is on the server
                await anyio.sleep(0.001)
            return
        raise MaasBackoffError(f"drain: tasks still run after {PATIENCE:g} s: {await self.explain()}")

    def _check_started(self, what: str) -> None:
        if not self._runs:
            raise HandlerError(f"{what}: the scheduler is not started, so no task would run; call start() before")

    async def _expire(self) -> None:
        """End tasks whose deadline has passed by this clock, and delete finished ones whose time to live is over."""
        store = self._client.store
        overdue = store.connection.keys("deadlines")
        while ids := await store.connection.server.execute(
            "ZRANGEBYSCORE", overdue, "-inf", f"{self._now_ms:.0f}", "LIMIT", "0", "100"
        ):
            await store.lost.end_overdue([task_id.decode() for task_id in ids])
        for status in TaskStatus:
            if not status.finished:
                continue
            index = store.connection.keys(status)
            for task_id in await store.connection.server.execute("ZRANGEBYSCORE", index, "-inf", f"{self._now_ms:.0f}"):
                key = store.connection.keys.task(task_id.decode())
                # A new task under the same id is not finished, or in another state.
                if await store.connection.server.execute("HGET", key, "s") == status.encode():
                    await store.connection.server.execute("UNLINK", key)
                await store.connection.server.execute("ZREM", index, task_id)

    async def _is_quiet(self) -> bool:
        if self._service is None:
            return True
        self._service.parts.wake_ups.wake()
        self._service.parts.wake_ups.gpu.set()
        stats = await self.get_queue_stats()
        if stats.processing_count > await self._client.store.reader.count_external():
            return False
        due = stats.pending_count - stats.scheduled_count - sum(map(stats.due_of, stats.paused_kinds))
        if not due or stats.paused:
            return True
        gpu_count = stats.gpu_count - sum(stats.gpu_kinds.get(kind, 0) for kind in stats.paused_kinds)
        held, held_for_gpu = await self._held(stats.paused_kinds)
        if held == due:
            # Nothing was claimed between the two reads.
            return attrs.evolve(await self.get_queue_stats(), oldest_pending_age=stats.oldest_pending_age) == stats
        return gpu_count - held_for_gpu == due - held and await self._finds_no_room(stats.gpu_count)

    async def _held(self, paused_kinds: Collection[str]) -> tuple[int, int]:
        """Return how many due tasks are held back, and how many of them wait for a GPU.

        They wait for a batch or a limit, or their tenant is paused. Tasks of paused kinds are left out.
        """
        store = self._client.store
        keys, ask = store.connection.keys, store.connection.server.execute
        lanes = await ask("ZRANGE", keys("lanes"), "0", "-1")
        paused, shut = set[bytes](await ask("HKEYS", keys("paused_tenants"))), set[bytes]()
        for limit in await store.shares.limits(_ALL) if lanes else ():
            if limit.shut and limit.waiting_lanes:
                for tenant in await ask("ZRANGE", keys(f"shut:{limit.name}"), "0", "-1"):
                    waiting = keys(f"shut_lanes:{limit.name}|{tenant.decode()}")
                    shut |= set(await ask("ZRANGE", waiting, "0", "-1"))
        held = held_for_gpu = 0
        waiting_kinds = {kind for kind, until in (await self._batches()).items() if until > self._now_ms}
        for kind in waiting_kinds - set(paused_kinds):
            held += await ask("ZCARD", keys(keys.of_kind(kind, "ready")))
        for name in lanes:
            index, _, lane = name.partition(b"|")
            kind, is_gpu = _kind_and_gpu(index.decode())
            is_held = kind in waiting_kinds or lane.partition(b"|")[0] in paused or name in shut
            if kind not in paused_kinds and is_held:
                number = await ask("ZCARD", keys(name.decode()))
                held, held_for_gpu = held + number, held_for_gpu + (number if is_gpu else 0)
        return held, held_for_gpu

    async def _batches(self) -> dict[str, float]:
        """Return the kinds whose tasks wait for a batch, and until when at most, in ms."""
        ask, keys = self._client.store.connection.server.execute, self._client.store.connection.keys
        names: list[bytes] = await ask("HKEYS", keys("kinds"))
        stored: list[bytes | None] = await ask("HMGET", keys("kinds"), *names) if names else []
        pairs = zip(names, stored, strict=True)
        return {kind.decode(): float(waits.split()[2]) for kind, waits in pairs if waits and waits.startswith(b"~")}

    async def _finds_no_room(self, gpu_count: int) -> bool:
        """Return whether none of the tasks that wait for a GPU starts within 0.2 s."""
        for _ in range(20):
            await anyio.sleep(0.01)
            if (await self.get_queue_stats()).gpu_count != gpu_count:
                return False
        return True

    async def advance(self, by: float | timedelta) -> None:
        """Move the clock by seconds, or a timedelta: from 0 to ten years.

        Each task that becomes due meanwhile runs at its due time, and each that waits for a rate when there is room.
        Raises InvalidValueError, and the errors of `drain`.
        """
        seconds = seconds_of(by, "by")
        self._check_started("advance")
        await self.drain()
        end = self._now_ms + 1000 * seconds
        while True:
            client = self._client
            moments = [due_in for due_in in await self._next_moments(client) if self._now_ms + 1000 * due_in < end]
            if not moments:
                break
            self._set(client, self._now_ms + 1000 * min(moments) + 1)
            await self.drain()
        self._set(self._client, max(end, self._now_ms))
        await self.drain()

    async def _next_moments(self, client: QueueClient) -> list[float]:
        """Return the seconds to the next due task, limit that opens, and batch that is due, if there are any."""
        due_in = await client.store.reader.next_due()
        moments = [] if due_in is None else [due_in]
        ask, opens = client.store.connection.server.execute, client.store.connection.keys("opens")
        # A limit that has opened before is none to wait for: nobody takes the tasks.
        limits = await ask("ZRANGEBYSCORE", opens, f"({self._now_ms:.0f}", "(inf", "LIMIT", "0", "1")
        scores = [float(await ask("ZSCORE", opens, limit)) for limit in limits]
        scores += [until for until in (await self._batches()).values() if until > self._now_ms]
        return moments + [(score - self._now_ms) / 1000 for score in scores]


def _kind_and_gpu(index: str) -> tuple[str, bool]:
    """Return the kind of the tasks of an index, and whether they need a GPU."""
    if index.startswith("gpu:"):
        return index.removeprefix("gpu:").rpartition("/")[0], True
    return index[len("k:") : -len(":ready")] if index.startswith("k:") else NAMELESS, False


def _nothing() -> None:
    pass


class Simulate(Protocol):
    """The type of the fixture `simulate` of `maas_backoff.testing.fixtures`."""

    def __call__(
        self,
        config: TaskBackoffConfig | None = None,
        *,
        gpus: Sequence[FakeGpu] = (),
        kinds_of: TaskBackoffScheduler | None = None,
    ) -> SimulatedScheduler:
        """Return a scheduler that is not started. Set its handlers, then `await scheduler.start()`."""
        ...
