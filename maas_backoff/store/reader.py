"""The reader of a queue."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import attrs

from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.domain.history import Activity, History, step_numbers
from maas_backoff.domain.kind import ONLY_NAMELESS, Kinds
from maas_backoff.domain.lane import Lane
from maas_backoff.domain.page import Listing, TaskPage
from maas_backoff.domain.reason import reason
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.waiting import UNKNOWN, Paused, Place, at, waiting_for
from maas_backoff.domain.worker import Worker
from maas_backoff.store import scripts
from maas_backoff.store.batch import Precondition
from maas_backoff.store.codec import EXTERNAL, by_server_clock, counts_of, decode, demand_of, now_and_ahead
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.counts import Counts, counts_in, with_unfit
from maas_backoff.store.creation import Creation
from maas_backoff.store.found import Found, Pending, Scan, Seen
from maas_backoff.store.indexes import indexes
from maas_backoff.store.registry import Registry
from maas_backoff.store.replies import DemandRow, GetReply, LeaseRow, ListReply, mapping, queue_time
from maas_backoff.store.shares import Shares, limit_state

READ_BYTES = 262_144
"""A reply with several tasks ends after the task that fills it: about 3 ms of the client's time."""

_LIVE: dict[str, Precondition] = {"pending": "pending", "processing": "lease", EXTERNAL: "external"}


class Look(NamedTuple):
    """A task as it was read, or None if there is none."""

    task: TaskEntity | None
    expires: float = math.inf
    """Seconds until the pending task expires if no attempt starts; infinity: never."""
    seen: Seen | None = None


class Reader:
    """The calls that read one queue."""

    def __init__(self, queue: QueueConnection, registry: Registry, shares: Shares) -> None:
        self._queue = queue
        self._registry = registry
        self._shares = shares

    async def get(self, task_id: str, *, watch: float = 0) -> TaskEntity | None:
        """Return a task. Its changes are published for `watch` seconds."""
        return (await self.get_first([task_id], watch=watch))[0].task

    async def get_first(
        self, task_ids: Sequence[str], deadline: float | None = None, *, watch: float = 0
    ) -> list[Look]:
        """Return the first of these tasks, at least one: as many as fit into READ_BYTES.

        The changes of these first tasks are published for `watch` seconds. The deadline is as in `Server.patiently`.
        """
        queue = self._queue
        args = [queue.clock, queue.keys.prefix, f"{watch * 1000:.0f}", READ_BYTES, *task_ids]
        reply = await queue.server.run(scripts.GET, queue.keys.all(scripts.GET.keys), args, deadline)
        # `task_ids` may be longer than the rows, and may have an id twice: each caller has an entity of its own.
        rows = list(zip(task_ids, map(mapping, reply.rows[1::2]), map(_place, reply.rows[::2]), strict=False))
        found = [row for row in rows if b"p" in row[1]]
        seen = iter(await self._seen(found, reply.now, _paused(reply), deadline))
        now_ms, _ = now_and_ahead(reply.now)
        return [self._look(next(seen), fields, now_ms) if b"p" in fields else Look(None) for _, fields, _ in rows]

    def _look(self, seen: Seen, fields: Mapping[bytes, bytes], now_ms: float) -> Look:
        task = seen.task
        limits = self._queue.policies.limits(fields.get(b"o")) if task.status is TaskStatus.PENDING else None
        expires = math.inf if limits is None else (limits.expiry - now_ms) / 1000
        return Look(task, expires, seen)

    async def page(self, status: TaskStatus, listing: Listing) -> TaskPage:
        """Return one page of the tasks in one state, in the order of its indexes."""
        scan = await self.scan(status, listing)
        return TaskPage([one.task for one in scan.seen], scan.cursor())

    async def scan(self, status: TaskStatus, listing: Listing) -> Scan:
        """Return the page of `page`, in order to change some of its tasks."""
        queue = self._queue
        names = await indexes(queue, status, listing)
        place, score, skip = listing.start(names)
        if place == len(names):
            return Scan((), (), datetime.now(UTC), None, ())
        args = [queue.clock, queue.keys.prefix, listing.limit, place + 1, score, skip]
        args += [int(listing.reverse), int(listing.brief), int(listing.due_only)]
        script = attrs.evolve(scripts.LIST, keys=(*scripts.LIST.keys, *names))
        reply = await queue.run(script, args)
        rows = [(task_id.decode(), mapping(fields), UNKNOWN) for task_id, fields in reply.rows]
        found = [row for row in rows if b"p" in row[1]]
        places = [place for place, row in enumerate(rows, 1) if b"p" in row[1]]
        seen = list(zip(await self._seen(found, reply.now, _paused(reply)), places, strict=True))
        if status is TaskStatus.PENDING:
            # Those whose deadline has passed are cancelled, whether a worker has noted it or not.
            seen = [(one, place) for one, place in seen if one.task.status is status]
        if listing.brief:
            # The overrides may have params, which a Retry has set.
            seen = [(_brief(one), place) for one, place in seen]
        now_ms, ahead_ms = now_and_ahead(reply.now)
        following = (names[reply.place - 1], reply.score.decode(), reply.skip) if reply.place else None
        last = [task_id for task_id, _, _ in rows[-reply.skip :]] if reply.skip else []
        return Scan([one for one, _ in seen], [place for _, place in seen], at(now_ms - ahead_ms), following, last)

    async def stats(self) -> QueueStats:
        """Return the queue's counts."""
        counts = await self._counts()
        if not counts.waiting:
            return counts.stats
        return with_unfit(counts.stats, counts.waiting, await self._registry.fleet())

    async def next_due(self) -> float | None:
        """Return the seconds until the next scheduled task is due; None if there is none."""
        return (await self._counts()).next_due

    async def count_external(self) -> int:
        """Return how many tasks are marked processing from outside."""
        return int(await self._queue.server.execute("ZCARD", self._queue.keys("external")))

    async def explain(self) -> str:
        """Return in one sentence why due tasks wait."""
        counts = await self._counts()
        stats, fleet = counts.stats, await self._registry.fleet()
        queue = self._queue
        is_unused = not (fleet or stats.pending_count or stats.paused_kinds or stats.paused_tenants)
        if is_unused and not await queue.server.execute("EXISTS", queue.keys("meta")):
            return f"Nobody has used the queue {queue.config.task.biz_prefix!r} on this server yet."
        claimable = [(one.demand, one.tasks) for one in counts.waiting if one.kind not in stats.paused_kinds]
        shut = await self._shares.shut_limits() if counts.shut_limits else ()
        told = sum(worker.running for worker in fleet)  # at the last heartbeats
        leased = stats.processing_count - await self.count_external() if stats.processing_count > told else 0
        held = counts.paused_tenants, shut
        return reason(stats, fleet, counts.next_due, claimable, counts.suspects_running, *held, leased)

    async def _counts(self) -> Counts:
        return counts_in(await self._queue.run(scripts.STATS, [self._queue.clock, self._queue.keys.prefix]))

    async def upcoming(self, step: float, steps: int) -> list[int]:
        """Return how many tasks become due in each of the next `steps` steps of `step` seconds."""
        reply = await self._queue.run(scripts.UPCOMING, [self._queue.clock, f"{step * 1000:.0f}", steps])
        return list(map(int, reply.counts))

    async def history(self, steps: int, minutes: int = 1) -> History:
        """Return the history of the last steps of 1, 10 or 60 minutes, the present one included, and of all time."""
        reply = await self._queue.run(scripts.HISTORY, [self._queue.clock, self._queue.keys.prefix, minutes, steps])
        finished = (int(number or 0) for number in reply.finished)
        ends = dict(zip(("completed", "failed", "cancelled"), finished, strict=True))
        now_ms, ahead_ms = now_and_ahead(reply.now)
        step_ms, rows = minutes * 60_000, list(map(_numbers, reply.steps))
        all_time = {**_numbers(reply.totals), **ends}
        begin = now_ms // step_ms
        found = [
            Activity.of(numbers, at((begin - back) * step_ms - ahead_ms))
            for back, numbers in enumerate(rows if minutes == 1 else _differences(rows, all_time))
        ]
        return History(Activity.of(all_time), found[::-1], timedelta(minutes=minutes))

    async def demands(self, suspicion: str, kinds: Kinds = ONLY_NAMELESS) -> tuple[Sequence[Waiting], float, str]:
        """Return the demands that wait for GPUs, the rank of the first task without one or infinity, and the hold.

        Only tasks of `kinds` count.
        `suspicion` says which suspects may be claimed, as BatchRequest.suspicion does. Others are left out.
        """
        args = [self._queue.clock, self._queue.keys.prefix, suspicion, kinds.text]
        reply = await self._queue.run(scripts.DEMANDS, args)
        waiting = list[Waiting]()
        for row in map(DemandRow._make, reply.rows):
            demand = Demand.parse(row.demand.decode())
            age = int(row.age_ms) / 1000
            name, avoid = row.name.decode(), row.avoid.decode()
            waiting.append(Waiting(name, demand, float(row.rank), age, avoid, suspect=bool(row.suspect)))
        return waiting, float(reply.first_ready or "inf"), reply.hold.decode()

    async def is_gathering(self, kinds: Iterable[str]) -> bool:
        """Return whether due tasks of one of these kinds wait for others of their batch."""
        names = list(kinds)
        stored = await self._queue.server.execute("HMGET", self._queue.keys("kinds"), *names) if names else ()
        return any(one is not None and one.startswith(b"~") for one in stored)

    async def count_of_demand(self, name: str) -> int:
        """Return how many tasks wait in the set of a GPU demand with this name."""
        keys, ask = self._queue.keys, self._queue.server.execute
        return int(await ask("ZCARD", keys(f"gpu:{name}"))) + int(await ask("HGET", keys("laned"), f"gpu:{name}") or 0)

    async def find_live(self, task_id: str) -> Found | None:
        """Return an unfinished task, for a settle on the condition that the task does not change meanwhile."""
        queue = self._queue
        names = ("t", "p", "o", "n", "k", "y", "c", "s")
        task, meta = ("HMGET", queue.keys.task(task_id), *names), ("HMGET", queue.keys("meta"), "ahead", "reaped_at")
        (*fields, state), clock, time = await queue.server.patiently(
            lambda client: client.execute_together(task, meta, ("TIME",))
        )
        row = LeaseRow(task_id.encode(), *fields)
        precondition = _LIVE.get((state or b"pending").decode())
        if row.creation is None or precondition is None:
            return None
        await queue.learn([Creation.of(row.creation)])
        return Found.of(row, precondition, queue_time(queue.clock or time, *clock), queue.policies)

    async def find_pending(self, task_id: str) -> Pending | None:
        """Return a pending task, in order to reschedule it."""
        queue = self._queue
        row = await queue.server.execute("HMGET", queue.keys.task(task_id), "p", "s", "t", "u", "o")
        created, state, token, due, overrides = row
        if created is None or (state or b"pending") != b"pending":
            return None
        creation = Creation.of(created)
        await queue.learn([creation])
        policy, _ = queue.policies.effective(creation.policy, overrides)
        due_ms = creation.created_ms if due is None else float(due)
        return Pending(task_id, int(token or 0), created, due_ms, policy)

    async def _seen(
        self,
        found: Sequence[tuple[str, Mapping[bytes, bytes], Place]],
        now: bytes,
        paused: Paused,
        deadline: float | None = None,
    ) -> Sequence[Seen]:
        """Return the tasks of ids, stored fields and places, with their policies."""
        now_ms, ahead_ms = now_and_ahead(now)
        found = [(task_id, by_server_clock(fields, ahead_ms), place) for task_id, fields, place in found]
        await self._queue.learn((Creation.of(fields[b"p"]) for _, fields, _ in found), deadline)
        due = any(b"s" not in fields or fields[b"s"] == b"pending" for _, fields, _ in found)
        fleet: Sequence[Worker] = await self._registry.fleet(deadline) if due else ()
        now_ms -= ahead_ms
        return [
            self._seen_one(task_id, fields, now_ms, ahead_ms, fleet, place, paused) for task_id, fields, place in found
        ]

    def _seen_one(
        self,
        task_id: str,
        fields: Mapping[bytes, bytes],
        now_ms: float,
        ahead_ms: float,
        fleet: Sequence[Worker],
        place: Place,
        paused: Paused,
    ) -> Seen:
        creation = Creation.of(fields[b"p"])
        policy, own = self._queue.policies.effective(creation.policy, fields.get(b"o"))
        why = None
        if fields.get(b"s", b"pending") == b"pending":
            due_ms = float(fields.get(b"u") or creation.created_ms)
            demand = demand_of(fields.get(b"q"), policy)
            counts = counts_of(fields.get(b"k"), fields.get(b"c"))
            kind, lane = creation.kind, Lane.of(creation.lane)
            why = waiting_for(due_ms, now_ms, demand, fleet, place, paused=paused, counts=counts, kind=kind, lane=lane)
        queue = self._queue.config.task.biz_prefix
        return Seen(decode(task_id, queue, creation, fields, policy, own, why, now_ms, ahead_ms), policy)


def _brief(seen: Seen) -> Seen:
    return seen._replace(task=attrs.evolve(seen.task, task_params={})) if seen.task.task_params else seen


def _paused(reply: GetReply | ListReply) -> Paused:
    """Return which claims are paused, and why limits are shut, as far as it matters for the tasks of a reply."""
    now_ms, _ = now_and_ahead(reply.now)
    limits = {state.name: state.look(now_ms)[1] for state in map(limit_state, reply.limits)}
    tenants = frozenset(name.decode() for name in reply.paused_tenants)
    shut = {name: why for name, why in limits.items() if why}
    return Paused(bool(reply.paused), _names(reply.paused_kinds), tenants, shut)


def _place(stored: int | bytes) -> Place:
    return Place(stored) if isinstance(stored, int) else Place(*map(int, stored.split()))


def _names(flat: Sequence[bytes]) -> frozenset[str]:
    return frozenset(name.decode() for name in flat[::2])


def _differences(rows: Sequence[Mapping[str, int]], all_time: Mapping[str, int]) -> Iterator[Mapping[str, int]]:
    """Yield the numbers of each step, the newest first. `rows` are the numbers of all time when each step began.

    A step in which nothing was counted has no row.
    """
    after = all_time
    for row in rows:
        yield step_numbers(row, after) if row else {}
        after = row or after


def _numbers(flat: Any) -> dict[str, int]:
    return {name.decode(): int(number) for name, number in mapping(flat).items() if number.isdigit()}
