"""The calls that change a queue: creations, operations, notes of progress.

Each operation has a call id of its own. The server keeps the answer under that id: see lua/_call.lua.
"""

import copy
import secrets
from collections.abc import Sequence
from typing import Any

import attrs

from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.lane import Lane
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.status import TaskStatus
from maas_backoff.errors import InvalidValueError, QueueFullError, StorageError, TenantFullError
from maas_backoff.store import scripts
from maas_backoff.store.batch import Settle, breakdown_text, settle_args, settle_head
from maas_backoff.store.codec import EXTERNAL
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.creation import NewTask, by_lane, enqueue_args
from maas_backoff.store.indexes import indexes

ENQUEUE_LIMIT = 1000
"""Tasks per call of enqueue.lua: 3 to 9 ms of the server's time."""

SETTLE_LIMIT = 100
DELETE_LIMIT = 200
PURGE_LIMIT = 500
"""Tasks per call of settle.lua, delete.lua and purge.lua by an operation: 2 to 3 ms of the server's time."""

MOST_KINDS = 200
"""Kinds of tasks that a queue can have: see enqueue.lua."""

ANSWER_KEPT = 60.0
"""Least seconds for which the answer to an operation is kept. A repeated call comes within `storage.timeout`."""


class Writer:
    """The calls that change one queue. A call may be repeated when its reply was lost."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def enqueue(self, tasks: Sequence[NewTask], policy: Policy | None = None) -> list[str]:
        """Create up to ENQUEUE_LIMIT tasks. Return 'created', 'exists' or 'conflict' for each.

        `policy` is that of the tasks without their overrides; None: the queue's. Raises QueueFullError; then none is
        created.
        """
        answers, full = await self._enqueue(tasks, policy, all_or_none=True)
        if full is not None:
            full.created = [task.task_id for task, answer in zip(tasks, answers, strict=True) if answer == "exists"]
            raise full
        return answers

    async def enqueue_what_fits(
        self, tasks: Sequence[NewTask], deadline: float, policy: Policy | None = None
    ) -> list[str | StorageError]:
        """Create the tasks that a queue has room for: up to ENQUEUE_LIMIT, until a moment by time.monotonic().

        Return 'created', 'exists', 'conflict' or a QueueFullError for each.
        """
        answers, full = await self._enqueue(tasks, policy, all_or_none=False, deadline=deadline)
        if full is None:
            return [*answers]
        return [
            copy.copy(full)
            if answer == "full"
            else TenantFullError(Lane.of(task.lane).tenant, self._queue.config.task.max_tenant_queue_size or 0)
            if answer == "crowded"
            else answer
            for task, answer in zip(tasks, answers, strict=True)
        ]

    async def _enqueue(
        self, tasks: Sequence[NewTask], policy: Policy | None, *, all_or_none: bool, deadline: float | None = None
    ) -> tuple[list[str], QueueFullError | None]:
        """Return the answers, and the error for those that are 'full'."""
        queue, policy = self._queue, policy or self._queue.policies.own
        digest = policy.digest
        limit, tenant_limit = queue.config.task.max_queue_size or 0, queue.config.task.max_tenant_queue_size or 0
        places: list[int] = []
        if len(tasks) > 1 and any(task.lane for task in tasks):
            places = by_lane(tasks)
            tasks = [tasks[place] for place in places]
        head = [queue.clock, queue.keys.prefix, digest]
        items = [limit, tenant_limit, int(all_or_none), *enqueue_args(tasks, digest)]
        keys = queue.keys.all(scripts.ENQUEUE.keys)
        reply = await queue.server.run(scripts.ENQUEUE, keys, [*head, "", *items], deadline)
        if reply == b"policy":
            reply = await queue.server.run(scripts.ENQUEUE, keys, [*head, policy.text, *items], deadline)
        if reply == b"kinds":
            raise _too_many_kinds(tasks[0].kind)
        answers = [word.decode() for word in reply]
        full = None
        if len(answers) > len(tasks):
            size, wait_ms = (int(number) for number in answers[-2:])
            answers, full = answers[:-2], QueueFullError(limit, size, wait_ms / 1000)
        elif "crowded" in answers:
            tenant = Lane.of(tasks[answers.index("crowded")].lane).tenant
            full = TenantFullError(tenant, tenant_limit)
        if places:
            answers = [answer for _, answer in sorted(zip(places, answers, strict=True))]
        return answers, full

    async def settle(self, settle: Settle, *, external: bool = False, settle_id: str | None = None) -> str:
        """Change the state of one task; return the answer of settle.lua. `external`: mark the task processing."""
        return (await self.settle_all([settle], settle_id, external=external))[0]

    async def settle_all(
        self, settles: Sequence[Settle], settle_id: str | None = None, *, external: bool = False
    ) -> list[str]:
        """Change the state of up to SETTLE_LIMIT tasks; return the answers of settle.lua."""
        queue, settle_id = self._queue, settle_id or new_call()
        breakdown = breakdown_text(settles)
        head = settle_head(
            queue, settle_id, settle_id, request_id="call", breakdown=breakdown, lease_ms=self._answer_ms
        )
        args = [*head, *settle_args(settles, EXTERNAL if external else None)]
        reply = await queue.run(scripts.SETTLE, args, request=queue.keys.call(settle_id))
        return [word.decode() for word in reply.answers]

    async def count_settles(self, sums: str, call_id: str) -> None:
        """Add `sums` of a worker to the history by kind and by tenant, once for all calls with this id."""
        queue = self._queue
        head = settle_head(queue, call_id, call_id, request_id="call", breakdown=sums, lease_ms=self._answer_ms)
        await queue.run(scripts.SETTLE, [*head, *settle_args(())], request=queue.keys.call(call_id))

    async def report_progress(self, notes: Sequence[tuple[str, int | None, float, str | None]]) -> list[bool]:
        """Store the progress of tasks: id, token (None: from outside), 0..100, message. Return which are stored."""
        items: list[Any] = [self._queue.keys.prefix]
        for task_id, token, progress, message in notes:
            items += task_id, "" if token is None else token, f"{progress:g}", message or ""
        return [bool(noted) for noted in await self._queue.run(scripts.PROGRESS, items)]

    async def request_cancel(self, task_id: str, token: int | None = None) -> str | None:
        """Ask the worker that runs the task to stop it. Return the state of the task, or None.

        With a `token`, only the attempt under this token; return "lost" if another attempt runs.
        """
        queue = self._queue
        args = [queue.keys.prefix, task_id, f"{queue.config.scheduler.lease * 2000:.0f}", self._answer_ms]
        args.append("" if token is None else f"{token}")
        state = await queue.run(scripts.CANCEL, args, task=queue.keys.task(task_id), call=queue.keys.call(new_call()))
        return None if state is None else state.decode()

    async def delete(self, task_id: str) -> bool:
        """Delete a task that no worker runs."""
        return (await self.delete_all([(task_id, "", None)]))[0]

    async def delete_all(self, tasks: Sequence[tuple[str, str, int | None]]) -> list[bool]:
        """Delete up to DELETE_LIMIT tasks that no worker runs: id, state, token. Return which are deleted.

        A task is deleted only if it is in this state ("": any) under this token (None: any).
        """
        queue = self._queue
        args: list[Any] = [queue.keys.prefix, self._answer_ms]
        for task_id, state, token in tasks:
            args += task_id, state, "" if token is None else token
        return list(map(bool, await queue.run(scripts.DELETE, args, call=queue.keys.call(new_call()))))

    async def purge(self, status: TaskStatus) -> tuple[int, bool]:
        """Delete up to PURGE_LIMIT tasks of a state. Return how many, and whether there may be more."""
        queue = self._queue
        script = attrs.evolve(scripts.PURGE, keys=(*scripts.PURGE.keys, *await indexes(queue, status)))
        args = [queue.keys.prefix, status.value, PURGE_LIMIT, self._answer_ms]
        reply = await queue.run(script, args, call=queue.keys.call(new_call()))
        return reply.number, bool(reply.more)

    async def pause(self, *, on: bool, kind: str = NAMELESS, by: str = "") -> bool:
        """Pause or resume all claims, or those of one kind with a name. Return False if nothing changed."""
        queue = self._queue
        args = [queue.clock, queue.keys.prefix, int(on), kind, self._answer_ms, by]
        changed = await queue.run(scripts.PAUSE, args, call=queue.keys.call(new_call()))
        if changed < 0:
            raise _too_many_kinds(kind)
        return bool(changed)

    async def hold(self, value: str, seconds: float) -> bool:
        """Hold a device for a demand: "name uuid worker". Return False if another device is held."""
        return bool(await self._queue.run(scripts.HOLD, [self._queue.clock, value, f"{seconds * 1000:.0f}"]))

    @property
    def _answer_ms(self) -> str:
        return answer_ms(self._queue)


def _too_many_kinds(kind: str) -> InvalidValueError:
    return InvalidValueError("kind", f"one of the {MOST_KINDS} kinds that the queue has had", kind)


def answer_ms(queue: QueueConnection) -> str:
    """Return the time for which the answer to an operation is kept, in ms."""
    return f"{max(ANSWER_KEPT, 3 * queue.config.storage.timeout) * 1000:.0f}"


def new_call() -> str:
    """Return the id of a new call of an operation."""
    return secrets.token_hex(8)
