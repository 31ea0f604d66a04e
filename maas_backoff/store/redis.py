"""The store on Redis or Valkey: one method per script, each of which may be repeated."""

import secrets
import time
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.domain.finding import Finding
from maas_backoff.domain.suspicion import Losses, Lost, judge
from maas_backoff.domain.task import TaskEntity, TaskStatus
from maas_backoff.domain.waiting import at
from maas_backoff.errors import QueueFullError
from maas_backoff.store import scripts
from maas_backoff.store.batch import (
    BatchReply,
    BatchRequest,
    Claimed,
    Found,
    Pending,
    Precondition,
    Settle,
    settle_args,
    suspicion_text,
)
from maas_backoff.store.check import check
from maas_backoff.store.codec import (
    EXTERNAL,
    PARAMS,
    AttemptInfo,
    counts_of,
    counts_of_claim,
    demand_of,
    held_by,
    now_and_ahead,
)
from maas_backoff.store.connect import Client
from maas_backoff.store.creation import Creation, NewTask, enqueue_args
from maas_backoff.store.reader import Reader

ENQUEUE_LIMIT = 1000
"""Tasks per call of enqueue.lua: 3 to 9 ms of the server's time."""

CALL_KEPT = 60.0
"""Seconds for which the answer to a call by hand is kept at least: its repetition comes within `storage.timeout`."""

SETTLE_LIMIT = 100
PURGE_LIMIT = 500
"""Tasks per call of settle.lua and purge.lua, by a call by hand: 2 to 3 ms."""

NO_SUSPECTS = suspicion_text(may=False, cohort="", in_children=False)

_LIVE: dict[str, Precondition] = {"pending": "pending", "processing": "lease", EXTERNAL: "external"}


_created_at = lru_cache(maxsize=256)(at)  # as in creation.py
_PROCESSING = TaskStatus.PROCESSING  # as in settlement.py


def _new_call() -> str:
    return secrets.token_hex(8)


class RedisStore(Reader):
    """The state of one queue, as one process reads and changes it.

    Each call by hand carries an id of its own, under which the server keeps its answer: see _call.lua.
    """

    async def check(self, *, worker: bool) -> list[Finding]:
        """Raise StorageError if the server does not answer in time, or is none that tasks would be safe on.

        Returns what else there is to say of it.
        """
        strict = self._config.storage.strict
        return await self.server.patiently(lambda client: check(client, self.keys, worker=worker, strict=strict))

    # Creating

    async def enqueue(self, tasks: Sequence[NewTask]) -> list[str]:
        """Create up to ENQUEUE_LIMIT tasks; per task 'created', 'exists' or 'conflict'. Raises QueueFullError."""
        policy = self._policies.own
        digest = policy.digest
        items = enqueue_args(tasks, digest)
        limit = self._config.task.max_queue_size or 0
        head = [self.clock, self.keys.prefix, digest]
        answer = await self._run(scripts.ENQUEUE, [*head, "", limit, *items])
        if answer == b"policy":
            answer = await self._run(scripts.ENQUEUE, [*head, policy.text, limit, *items])
        if answer[0] == b"full":
            there = [task_id.decode() for task_id in answer[3]]
            raise QueueFullError(limit, int(answer[1]), int(answer[2]) / 1000, created=there)
        return [word.decode() for word in answer]

    # Settling and claiming

    async def settle(self, settle: Settle, *, external: bool = False, settle_id: str | None = None) -> str:
        """Change one task's state by hand; the answer of settle.lua. `external`: mark processing."""
        return (await self.settle_all([settle], settle_id, external=external))[0]

    async def settle_lost(self, settles: Sequence[Settle], worker: str) -> list[str]:
        """Settle attempts whose lease ran out; another settle id than the worker's own settlements have."""
        settle_id = f"{worker}/reap"
        head = self._settle_head(settle_id, settle_id, "", 0)
        answer = await self._run(scripts.SETTLE, [*head, *settle_args(settles)], request=self.keys.request(worker, 0))
        return [word.decode() for word in answer[1]]

    async def settle_all(
        self, settles: Sequence[Settle], settle_id: str | None = None, *, external: bool = False
    ) -> list[str]:
        """Change the state of up to SETTLE_LIMIT tasks by hand; the answers of settle.lua."""
        settle_id = settle_id or _new_call()
        head = self._settle_head(settle_id, settle_id, "call", 0, lease_ms=self._call_ms)
        args = [*head, *settle_args(settles, EXTERNAL if external else None)]
        answer = await self._run(scripts.SETTLE, args, request=self.keys.call(settle_id))
        return [word.decode() for word in answer[1]]

    @property
    def _call_ms(self) -> str:
        """For how long the answer to a call by hand is kept, in ms."""
        return f"{max(CALL_KEPT, 3 * self._config.storage.timeout) * 1000:.0f}"

    def _settle_head(
        self,
        settle_id: str,
        worker: str,
        request_id: str,
        claims: int,
        *,
        suspicion: str = NO_SUSPECTS,
        fits: Sequence[str] = (),
        tally: str = "",
        lease_ms: str = "",
    ) -> list[Any]:
        lease_ms = lease_ms or f"{self._config.scheduler.lease * 1000:.0f}"
        head = [self.clock, self.keys.prefix, settle_id, worker, lease_ms, request_id, claims]
        return [*head, suspicion, self._config.task.max_finished, "\n".join(fits), tally]

    async def exchange(self, request: BatchRequest, worker: str) -> BatchReply:
        """Send a batch request, once. Raises StorageUnavailableError when it must be sent again."""
        client = await self.server.connect()
        return await self._answer(await client.run(scripts.SETTLE, *self._request(request, worker)))

    async def exchange_after_sleep(
        self, client: Client, request: BatchRequest, worker: str, longest: float, *, gpu: bool
    ) -> tuple[str, BatchReply]:
        """Have the server answer a request when a task becomes ready, or the worker is roused. Errors as `exchange`.

        Comes with the name of the key that ended the sleep, as `sleep` gives it.
        """
        command = self._blocking(worker, longest, gpu=gpu)
        taken, reply = await client.run_after(command, scripts.SETTLE, *self._request(request, worker))
        return self._marker(taken), await self._answer(reply)

    async def sleep(self, client: Client, worker: str, longest: float, *, gpu: bool) -> str:
        """Sleep until a task becomes ready, or the worker is roused; the key's name, or "" after the longest time.

        With `gpu`, also until a task waits for one: "gpu_marker".
        """
        return self._marker(await client.execute(*self._blocking(worker, longest, gpu=gpu)))

    def _blocking(self, worker: str, longest: float, *, gpu: bool) -> tuple[str, ...]:
        markers = [self.keys("marker"), self.keys.marker(worker)]
        if gpu:
            markers.append(self.keys("gpu_marker"))
        return "BZPOPMIN", *markers, f"{longest:.3f}"

    def _marker(self, taken: list[Any] | None) -> str:
        return "" if taken is None else taken[0].decode().removeprefix(self.keys.prefix)

    async def mark_gpu(self) -> None:
        """Let the next worker that has GPUs know that tasks wait for one."""
        await self.server.execute("ZADD", self.keys("gpu_marker"), "0", "0")

    async def demands(self, suspicion: str) -> tuple[Sequence[Waiting], float, str]:
        """Return what waits for GPUs, the rank of the first task that needs none, or infinity, and the hold.

        `suspicion` says which suspects may be claimed, as BatchRequest.suspicion does; the others are left out.
        """
        _, first_ready, hold, rows = await self._run(scripts.DEMANDS, [self.clock, self.keys.prefix, suspicion])
        waiting = [
            Waiting(name.decode(), Demand.parse(demand.decode()), float(rank), int(age) / 1000, avoid.decode())
            for name, demand, rank, age, avoid in rows
        ]
        return waiting, float(first_ready or "inf"), hold.decode()

    async def hold(self, value: str, seconds: float) -> bool:
        """Hold a device for a demand, "name uuid worker"; False where another is held."""
        return bool(await self._run(scripts.HOLD, [self.clock, value, f"{seconds * 1000:.0f}"]))

    async def rouse_another(self, client: Client) -> None:
        """Let the marker wake the next worker."""
        await client.execute("ZADD", self.keys("marker"), 0, "0")

    async def rouse(self, worker: str) -> None:
        """End a worker's sleep, or its next one."""
        client = await self.server.connect()
        # Together: a caller that is stopped in between would leave a key without an end.
        await client.execute_together(
            ("ZADD", self.keys.marker(worker), 0, "0"), ("EXPIRE", self.keys.marker(worker), 10)
        )

    def _request(self, request: BatchRequest, worker: str) -> tuple[Sequence[str], list[Any]]:
        head = self._settle_head(
            worker,
            worker,
            request.request_id,
            request.claims,
            suspicion=request.suspicion,
            fits=request.fits,
            tally=request.tally,
        )
        keys = self.keys.all(scripts.SETTLE.keys, request=self.keys.request(worker, request.exchange))
        return keys, [*head, *request.args]

    async def _answer(self, reply: list[Any]) -> BatchReply:
        now, answers, claims, next_due, hit, fitted = reply
        now_ms, ahead_ms = now_and_ahead(now)
        started_at = at(now_ms - ahead_ms)
        creations = [Creation.of(stored) for stored in claims[3::7]]
        await self._learn(creations)
        rows = zip(*[iter(claims)] * 7, strict=True)
        claimed = [
            self._claimed(row, creation, now_ms, started_at, ahead_ms)
            for row, creation in zip(rows, creations, strict=True)
        ]
        for one, fit, raised in zip(claimed, fitted[::2], fitted[1::2], strict=bool(fitted)):
            one.fit, one.demand = fit, demand_of(raised, one.policy)
        words = [word.decode() for word in answers]
        return BatchReply(words, claimed, None if next_due == b"-1" else int(next_due) / 1000, bool(hit))

    def _claimed(
        self, row: tuple[Any, ...], creation: Creation, now_ms: float, started_at: datetime, ahead_ms: float
    ) -> Claimed:
        task_id, token, attempt, _, overrides, stored_counts, due = row
        policy, own = self._policies.effective(creation.policy, overrides)
        counts = counts_of_claim(stored_counts)
        defect = None
        task_params: dict[str, Any] = {}
        try:
            task_params = own[PARAMS] if PARAMS in own else jsontext.parse(creation.params)
        except ValueError as error:
            defect = f"stored params are not JSON: {error}"
        task = TaskEntity(
            task_id=task_id.decode(),
            biz_prefix=self._config.task.biz_prefix,
            task_params=task_params,
            status=_PROCESSING,
            priority=creation.priority,
            retry_count=counts.retry,
            max_retry_count=policy.max_retry_count,
            attempt=attempt,
            lost_count=counts.lost,
            snooze_count=counts.snooze,
            created_at=_created_at(creation.created_ms - ahead_ms),
            started_at=started_at,
            token=token,
            oom_count=counts.oom,
        )
        waited = now_ms - (creation.created_ms if due is None else float(due))
        return Claimed(task, token, counts, policy, own.get("exec_timeout"), now_ms, defect, overrides, waited)

    # What workers keep up

    async def reap(self, gap: float, grace: float, limit: int = 100) -> list[Found]:
        """Return attempts whose lease ran out, unless nobody looked for `gap` seconds: then wait `grace` first."""
        args = [self.clock, self.keys.prefix, f"{gap * 1000:.0f}", f"{grace * 1000:.0f}", limit]
        now, rows, numbers = await self._run(scripts.REAP, args)
        # A lease without a task: its key was deleted by hand. Settling it would answer "unknown" for ever.
        orphans = [row[0] for row in rows if row[2] is None]
        if orphans:
            await (await self.server.connect()).execute("ZREM", self.keys("leases"), *orphans)
        rows = [row for row in rows if row[2] is not None]
        await self._learn(Creation.of(row[2]) for row in rows)
        found = [self._found(row, "expired", float(now)) for row in rows]
        by_worker = {name.decode(): Losses(*counted) for name, *counted in numbers}
        losses = judge([Lost(one.info.worker, one.token, one.counts) for one in found], by_worker)
        return [attrs.evolve(one, loss=loss) for one, loss in zip(found, losses, strict=True)]

    async def find_live(self, task_id: str) -> Found | None:
        """Return a task that is not finished as it is now, for a settle on the condition that it still is."""
        fields = ("t", "p", "o", "n", "k", "y", "c", "s")
        row = await self.server.execute("HMGET", self.keys.task(task_id), *fields)
        state = (row.pop() or b"pending").decode()
        precondition = _LIVE.get(state)
        if row[1] is None or precondition is None:
            return None
        await self._learn([Creation.of(row[1])])
        return self._found([task_id.encode(), *row], precondition, time.time() * 1000)

    def _found(self, row: list[Any], precondition: Precondition, now_ms: float) -> Found:
        task_id, token, created, overrides, attempt, stored_counts, holder, suspicion = row
        policy, _ = self._policies.effective(Creation.of(created).policy, overrides)
        started_ms, worker, _ = held_by(holder)
        info = AttemptInfo(int(attempt or 0), started_ms or now_ms, now_ms, worker)
        counts = counts_of(stored_counts, suspicion)
        return Found(task_id.decode(), precondition, int(token or 0), counts, policy, info)

    async def report_progress(self, notes: Sequence[tuple[str, int | None, float, str | None]]) -> list[bool]:
        """Note the progress of tasks: id, token (None: from outside), 0..100, message."""
        items: list[Any] = [self.keys.prefix]
        for task_id, token, progress, message in notes:
            items += task_id, "" if token is None else token, f"{progress:g}", message or ""
        return [bool(noted) for noted in await self._run(scripts.PROGRESS, items)]

    async def request_cancel(self, task_id: str) -> str | None:
        """Ask whoever runs the task to stop it; the state it is in, or None."""
        args = [self.keys.prefix, task_id, f"{self._config.scheduler.lease * 2000:.0f}", self._call_ms]
        state = await self._run(scripts.CANCEL, args, task=self.keys.task(task_id), call=self.keys.call(_new_call()))
        return None if state is None else state.decode()

    async def leave(self, worker: str) -> None:
        """Take a worker off the registry."""
        await self._run(scripts.LEAVE, [worker], info=self.keys.info(worker))

    async def delete(self, task_id: str) -> bool:
        """Delete a task that nobody runs."""
        args, call = [self.keys.prefix, task_id, self._call_ms], self.keys.call(_new_call())
        return bool(await self._run(scripts.DELETE, args, task=self.keys.task(task_id), call=call))

    async def purge(self, status: TaskStatus) -> tuple[int, bool]:
        """Delete up to PURGE_LIMIT tasks of a state; how many, and whether there may be more."""
        script = attrs.evolve(scripts.PURGE, keys=(*scripts.PURGE.keys, *await self._indexes(status)))
        args = [self.keys.prefix, status.value, PURGE_LIMIT, self._call_ms]
        number, more = await self._run(script, args, call=self.keys.call(_new_call()))
        return number, bool(more)

    async def pause(self, *, on: bool) -> bool:
        """Stop all claims, or let them go on; False if it was so before."""
        args = [self.clock, self.keys.prefix, int(on), self._call_ms]
        return bool(await self._run(scripts.PAUSE, args, call=self.keys.call(_new_call())))

    async def find_pending(self, task_id: str) -> Pending | None:
        """Return a pending task as it is now, for a change of its place in the queue."""
        row = await self.server.execute("HMGET", self.keys.task(task_id), "p", "s", "t", "u", "o")
        created, state, token, due, overrides = row
        if created is None or (state or b"pending") != b"pending":
            return None
        creation = Creation.of(created)
        await self._learn([creation])
        policy, _ = self._policies.effective(creation.policy, overrides)
        due_ms = creation.created_ms if due is None else float(due)
        return Pending(task_id, int(token or 0), created, due_ms, policy)
