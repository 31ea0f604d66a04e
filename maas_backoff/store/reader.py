"""Reading a queue, without changing it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import attrs

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.history import Activity, History
from maas_backoff.domain.page import Listing, TaskPage
from maas_backoff.domain.reason import reason
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.task import TaskEntity, TaskStatus
from maas_backoff.domain.waiting import at, waiting_for
from maas_backoff.domain.worker import Worker
from maas_backoff.store import scripts
from maas_backoff.store.codec import by_server_clock, counts_of, decode, demand_of, now_and_ahead
from maas_backoff.store.connect import Client
from maas_backoff.store.creation import Creation
from maas_backoff.store.embedded import EmbeddedServer
from maas_backoff.store.keys import Keys
from maas_backoff.store.policies import Policies
from maas_backoff.store.scripts import Script
from maas_backoff.store.server import Server

LARGEST_FLEET = 1000
_ALL = Listing()

_STATES: dict[TaskStatus, tuple[str, ...]] = {
    TaskStatus.PROCESSING: ("leases", "external"),
    TaskStatus.COMPLETED: ("completed",),
    TaskStatus.FAILED: ("failed",),
    TaskStatus.CANCELLED: ("cancelled",),
}


class Reader:
    """The state of one queue, as one process reads it."""

    def __init__(self, config: TaskBackoffConfig, embedded: EmbeddedServer | None = None) -> None:
        """`embedded`: a server that is shared with others, and that they stop."""
        self._config = config
        self.keys = Keys(config.task.biz_prefix)
        self.server = Server(config.storage, self.keys.prefix, embedded)
        self._policies = Policies(config.task.policy)
        self.clock = ""
        """The time for scripts, in ms; empty for the server's own. Only tests set it."""

    def over(self, client: Client) -> Self:
        """Return this store, reached by one client: that of another event loop, say."""
        other = copy.copy(self)
        other.server = self.server.over(client)
        return other

    async def aclose(self) -> None:
        """Close the connections, and leave the embedded server. The next call connects again."""
        await self.server.aclose()

    async def _run(self, script: Script, args: Sequence[Any], **own: str) -> Any:
        return await self.server.run(script, self.keys.all(script.keys, **own), args)

    async def _learn(self, creations: Iterable[Creation]) -> None:
        """Read the policies of other configurations that these tasks were created under."""
        unknown = self._policies.unknown(creation.policy for creation in creations)
        if unknown:
            self._policies.add(unknown, await self.server.execute("HMGET", self.keys("policies"), *unknown))

    async def get(self, task_id: str, *, watch: float = 0) -> TaskEntity | None:
        """Return a task; `watch` seconds long its changes are published."""
        args = [self.clock, task_id, f"{watch * 1000:.0f}"]
        now, ahead, flat, paused = await self._run(scripts.GET, args, task=self.keys.task(task_id))
        fields = _mapping(flat)
        if b"p" not in fields:
            return None
        return (await self._entities([(task_id, fields)], now, ahead, paused=bool(paused)))[0]

    async def page(self, status: TaskStatus, listing: Listing) -> TaskPage:
        """Return some tasks in one state, in the order of its indexes."""
        names = await self._indexes(status, listing)
        place, score, skip = listing.start(names)
        if place == len(names):
            return TaskPage([], None)
        args = [self.clock, self.keys.prefix, listing.limit, place + 1, score, skip]
        args += [int(listing.reverse), int(listing.brief), int(listing.due_only)]
        script = attrs.evolve(scripts.LIST, keys=(*scripts.LIST.keys, *names))
        now, rows, index, score, skip, paused = await self._run(script, args)
        found = [(row[0].decode(), _mapping(row[1])) for row in rows]
        found = [(task_id, fields) for task_id, fields in found if b"p" in fields]
        tasks = await self._entities(found, now, paused=bool(paused))
        if listing.brief:
            # What a Retry has put in the place of the first params comes with the overrides.
            tasks = [attrs.evolve(task, task_params={}) if task.task_params else task for task in tasks]
        return TaskPage([*tasks], f"{names[index - 1]} {score.decode()} {skip}" if index else None)

    async def _indexes(self, status: TaskStatus, listing: Listing = _ALL) -> tuple[str, ...]:
        """Return the names of the indexes that the tasks are in; what is due comes before what is not."""
        if status is not TaskStatus.PENDING:
            return _STATES[status]
        if listing.due_from is not None:
            return ("scheduled",)
        if listing.waiting_for == "slot":
            return "ready", "suspects", "scheduled"
        listed = await self.server.execute("HKEYS", self.keys("demands"))
        for_gpu = sorted(self.keys.ready_for_gpu(name.decode()) for name in listed)
        return tuple(for_gpu) if listing.waiting_for else ("ready", "suspects", *for_gpu, "scheduled")

    async def stats(self) -> QueueStats:
        """Return the queue's counts."""
        stats, waiting, _, _ = await self._counts()
        if not waiting:
            return stats
        return _with_unfit(stats, waiting, await self.fleet())

    async def next_due(self) -> float | None:
        """Return in how many seconds the next task becomes due that is not yet; None if there is none."""
        return (await self._counts())[2]

    async def count_external(self) -> int:
        """Return how many tasks were marked processing from outside, and run nowhere."""
        return int(await self.server.execute("ZCARD", self.keys("external")))

    async def explain(self) -> str:
        """Return why nothing runs, or not all that waits, in one sentence."""
        stats, waiting, next_due, suspects_running = await self._counts()
        return reason(stats, await self.fleet(), next_due, waiting, suspects_running)

    async def _counts(self) -> tuple[QueueStats, list[tuple[Demand, int]], float | None, int]:
        """Return the counts, due tasks by what they need of a GPU, seconds to the next due task, suspects that run."""
        told = await self._run(scripts.STATS, [self.clock, self.keys.prefix])
        _, *counts, age_ms, listed, paused, next_due, suspects, suspects_running = told
        # Of a set that several demands share, the size that none of them is above stands for all.
        names = [name.decode().removeprefix("~") for name in listed[::2]]
        waiting = [(Demand.parse(name), count) for name, count in zip(names, listed[1::2], strict=True)]
        pending, scheduled, processing, completed, failed, cancelled = map(int, counts)
        stats = QueueStats(
            pending,
            scheduled,
            processing,
            completed,
            failed,
            cancelled,
            oldest_pending_age=int(age_ms) / 1000,
            gpu_count=sum(count for _, count in waiting),
            paused=bool(paused),
            suspect_count=suspects,
        )
        return stats, waiting, None if next_due == b"-1" else int(next_due) / 1000, suspects_running

    async def upcoming(self, step: float, steps: int) -> list[int]:
        """Return how many tasks become due in each of the next steps of so many seconds."""
        _, counts = await self._run(scripts.UPCOMING, [self.clock, f"{step * 1000:.0f}", steps])
        return list(map(int, counts))

    async def history(self, minutes: int) -> History:
        """Return what has happened in the last minutes, this one included, and in all time."""
        args = [self.clock, self.keys.prefix, minutes]
        now, totals, finished, rows = await self._run(scripts.HISTORY, args)
        ends = dict(zip(("completed", "failed", "cancelled"), (int(number or 0) for number in finished), strict=True))
        now_ms, ahead_ms = now_and_ahead(now)
        begin = now_ms // 60_000
        found = [Activity.of(_numbers(row), at((begin - back) * 60_000 - ahead_ms)) for back, row in enumerate(rows)]
        return History(Activity.of({**_numbers(totals), **ends}), found[::-1])

    async def _entities(
        self, found: Sequence[tuple[str, Mapping[bytes, bytes]]], now: bytes, ahead: int = -1, *, paused: bool
    ) -> Sequence[TaskEntity]:
        """Return tasks of their stored fields; `ahead`: how many come before the first of them, or -1."""
        now_ms, ahead_ms = now_and_ahead(now)
        found = [(task_id, by_server_clock(fields, ahead_ms)) for task_id, fields in found]
        await self._learn(Creation.of(fields[b"p"]) for _, fields in found)
        due = any(b"s" not in fields or fields[b"s"] == b"pending" for _, fields in found)
        fleet: Sequence[Worker] = await self.fleet() if due else ()
        now_ms -= ahead_ms
        return [self._entity(task_id, fields, now_ms, fleet, ahead, paused=paused) for task_id, fields in found]

    def _entity(
        self,
        task_id: str,
        fields: Mapping[bytes, bytes],
        now_ms: float,
        fleet: Sequence[Worker],
        ahead: int,
        *,
        paused: bool,
    ) -> TaskEntity:
        creation = Creation.of(fields[b"p"])
        policy, own = self._policies.effective(creation.policy, fields.get(b"o"))
        why = None
        if fields.get(b"s", b"pending") == b"pending":
            due_ms = float(fields.get(b"u") or creation.created_ms)
            demand = demand_of(fields.get(b"q"), policy)
            counts = counts_of(fields.get(b"k"), fields.get(b"c"))
            why = waiting_for(due_ms, now_ms, demand, fleet, ahead, paused=paused, counts=counts)
        return decode(task_id, self._config.task.biz_prefix, creation, fields, policy, own, why)

    async def fleet(self) -> Sequence[Worker]:
        """Return what the live workers of this queue say of themselves, at most 1000 of them."""
        told = await self._run(scripts.FLEET, [self.clock, self.keys.prefix, LARGEST_FLEET])
        return [Worker.of(name.decode(), text) for name, text in zip(told[::2], told[1::2], strict=True)]


def _mapping(flat: Any) -> dict[bytes, bytes]:
    """Lua gives names and values in turn."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _numbers(flat: Any) -> dict[str, int]:
    return {name.decode(): int(number) for name, number in _mapping(flat).items() if number.isdigit()}


def _with_unfit(stats: QueueStats, waiting: Iterable[tuple[Demand, int]], fleet: Sequence[Worker]) -> QueueStats:
    unfit = sum(count for demand, count in waiting if not any(worker.could_fit(demand) for worker in fleet))
    return attrs.evolve(stats, unfit_count=unfit)
