"""The client of a queue: validates, creates, reads and awaits its tasks."""

import asyncio
import contextlib
import math
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs

from maas_backoff.client.bulk import BulkOperations
from maas_backoff.client.creator import TaskCreator
from maas_backoff.client.fleet import FleetOperations
from maas_backoff.client.follower import Follower
from maas_backoff.client.operations import QueueOperations
from maas_backoff.client.reader import TaskReader
from maas_backoff.client.selected import page_of
from maas_backoff.config import TaskBackoffConfig, TaskConfig
from maas_backoff.domain import validation
from maas_backoff.domain.breakdown import Breakdown, checked_by_what
from maas_backoff.domain.event import TaskEvent
from maas_backoff.domain.history import History
from maas_backoff.domain.kind import checked_kind
from maas_backoff.domain.lane import checked_tenant
from maas_backoff.domain.page import Listing, TaskPage
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.retries_ahead import RetryAhead, retries_ahead
from maas_backoff.domain.seconds import in_seconds
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.status import TaskStatus, checked_status
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.tracing import Tracing
from maas_backoff.errors import (
    InvalidValueError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from maas_backoff.store.embedded import EmbeddedServer
from maas_backoff.store.ledger import Ledgers
from maas_backoff.store.preflight.check import check_queue
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.waiters import Waiters

WAIT_RENEWAL = 20.0
"""Seconds after which a waiter reads its task by itself, and renews its watch."""


class QueueClient:
    """The client half of one queue, over one store. `config` is a copy that never changes."""

    def __init__(
        self, config: TaskBackoffConfig, tracing: Tracing | None = None, embedded: EmbeddedServer | None = None
    ) -> None:
        """Take the configuration; `embedded` is a shared server, which its owner stops."""
        self.config = config
        self.store: QueueStore = QueueStore.of(config, embedded)
        self.creator: TaskCreator = TaskCreator(config, self.store.writer, tracing)
        self._reader = TaskReader(self.store.reader, config.storage.timeout, watch=2 * WAIT_RENEWAL)
        self.follower: Follower = Follower(self.store.streams, self._listening, config.storage.timeout, WAIT_RENEWAL)
        self._tracing = tracing
        self._creators: dict[str, TaskCreator] = {}
        self._ledgers = Ledgers(
            config.storage, self.store.connection.server, lease=config.scheduler.lease, queue=config.task.biz_prefix
        )
        self._waiters: Waiters | None = None
        self.operations: QueueOperations = QueueOperations(config, self.store, tracing)
        self.bulk: BulkOperations = BulkOperations(config, self.store, tracing)
        self.fleet: FleetOperations = FleetOperations(self.store, self._ledgers)

    async def check(self) -> None:
        """Run the preflight of a process without a worker. Its warnings are logged. Raises StorageError."""
        await check_queue(self.store.connection, worker=False)

    def creator_of(self, kind: str, options: Mapping[str, Any], *, has_cost: bool = False) -> TaskCreator:
        """Return the creator of the tasks of a kind, whose policy has these options. Raises ConfigError.

        `has_cost`: each task is stored with its cost, also without a tenant.
        """
        known = self._creators.get(kind)
        if known is None:
            config = attrs.evolve(self.config, task=self._task_config(options))
            known = self._creators[kind] = TaskCreator(
                config, self.store.writer, self._tracing, kind, has_cost=has_cost
            )
        return known

    def policy_of(self, options: Mapping[str, Any]) -> Policy:
        """Return the policy of a kind with these options. Raises ConfigError."""
        return self._task_config(options).policy

    def _task_config(self, options: Mapping[str, Any]) -> TaskConfig:
        return self.config.task.overridden({name: one for name, one in options.items() if name != "exec_timeout"})

    def abandon(self) -> None:
        """Abandon the waiters of a closed event loop."""
        if self._waiters is not None:
            self._waiters.abandon()

    async def aclose(self) -> None:
        """Close the connections."""
        waiters, self._waiters = self._waiters, None
        if waiters is not None:
            await waiters.aclose()
        for creator in (self.creator, *self._creators.values()):
            await creator.gathering.aclose()
        await self._reader.aclose()
        await self.follower.aclose()
        await self._ledgers.aclose()
        await self.store.aclose()

    # Reading

    async def get(self, task_id: str) -> TaskEntity | None:
        return await self._reader.get(validation.checked_task_id(task_id))

    async def retries_ahead(self, task_id: str) -> list[RetryAhead]:
        seen = (await self._reader.look(validation.checked_task_id(task_id))).seen
        return [] if seen is None else retries_ahead(seen.task, seen.policy, datetime.now(UTC))

    async def history(self, minutes: int | None, hours: int | None, days: int | None) -> History:
        given = {"minutes": minutes, "hours": hours, "days": days}
        named = [name for name, number in given.items() if number is not None]
        if len(named) > 1:
            raise InvalidValueError(named[1], "minutes, hours or days: one of them", " and ".join(named))
        if hours is not None:
            return await self.store.reader.history(6 * _checked_number("hours", hours, 24), 10)
        if days is not None:
            return await self.store.reader.history(24 * _checked_number("days", days, 7), 60)
        return await self.store.reader.history(_checked_number("minutes", 60 if minutes is None else minutes, 120))

    async def breakdown(self, by: str, minutes: int | None, hours: int | None, name: str | None) -> Breakdown:
        what = checked_by_what(by)
        if name is not None:
            name = checked_kind(name) if what == "kind" else checked_tenant(name)
        if minutes is not None and hours is not None:
            raise InvalidValueError("hours", "minutes or hours: one of them", "minutes and hours")
        steps = _checked_number("minutes", 60 if minutes is None else minutes, 120), 1
        if hours is not None:
            steps = 6 * _checked_number("hours", hours, 24), 10
        return await self.store.breakdowns.read(what, *steps, name or "")

    async def upcoming(self, step: float | timedelta, steps: int) -> list[int]:
        seconds = in_seconds(step)
        if not _is_number(seconds) or not 0 < seconds <= 86_400:
            raise InvalidValueError("step", "seconds (or a timedelta), above 0 and at most a day", step)
        return await self.store.reader.upcoming(seconds, _checked_number("steps", steps, 200))

    async def page(self, status: str | Selection, listing: Listing) -> TaskPage:
        if isinstance(status, Selection):
            selection = _listed(status, listing)
            return await page_of(self.store.reader, selection, listing)
        status = checked_status(status, *TaskStatus)
        listing.check(status)
        return await self.store.reader.page(status, listing)

    async def wait(self, task_id: str, timeout: float | timedelta | None) -> TaskEntity:
        validation.checked_task_id(task_id)
        seconds = math.inf if timeout is None else in_seconds(timeout)
        if not _is_number(seconds) or not seconds >= 0:
            raise InvalidValueError("timeout", "seconds (or a timedelta) from 0 on, or None", timeout)
        if seconds == 0:
            return await self._finished(task_id)
        limit = asyncio.timeout(None if seconds == math.inf else seconds)
        try:
            async with limit, contextlib.aclosing(self._changes(task_id)) as changes:
                async for task in changes:
                    if task.status.finished:
                        return task
        except TimeoutError:
            if not limit.expired():
                raise
        raise TaskTimeoutError(task_id, seconds)

    async def _finished(self, task_id: str) -> TaskEntity:
        """Look once, however long the answer takes. Raises TaskTimeoutError if the task is not finished."""
        task = await self.get(task_id)
        if task is None:
            raise TaskNotFoundError(task_id)
        if not task.status.finished:
            raise TaskTimeoutError(task_id, 0)
        return task

    async def watch(self, task_id: str, after: str | None) -> AsyncGenerator[TaskEvent, None]:
        validation.checked_task_id(task_id)
        if after is not None and not isinstance(after, str):
            raise InvalidValueError("after", "the id of an event, or None", after)
        last = after
        async with contextlib.aclosing(self._changes(task_id)) as changes:
            async for task in changes:
                event = TaskEvent.of(task)
                if event.id != last:
                    yield event
                last = event.id
                if task.status.finished:
                    return

    async def _listening(self) -> Waiters:
        """Return the waiters of this event loop, made with the first call."""
        if self._waiters is None:
            server = self.store.connection.server
            await server.connect()
            if self._waiters is None:  # another call may have made them meanwhile
                channel = self.store.connection.keys.changed_channel
                self._waiters = Waiters(server.new_client(connections=1), channel, server.outage)
        return self._waiters

    async def _changes(self, task_id: str) -> AsyncGenerator[TaskEntity, None]:
        """Yield the task, and again whenever it may have changed."""
        waiters = await self._listening()
        async with waiters.waiting(task_id) as woken:
            while True:
                woken.clear()
                look = await self._reader.watch(task_id)
                task = look.task
                if task is None:
                    raise TaskNotFoundError(task_id)
                yield task
                # An expired task is known by its reader alone, unless a worker notes it.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(WAIT_RENEWAL, max(0.001, look.expires))):
                        await woken.wait()


def _listed(selection: Selection, listing: Listing) -> Selection:
    """Return a selection with the filters of a listing. Raises InvalidValueError."""
    own = {name: one for name in ("waiting_for", "due_from") if (one := getattr(listing, name)) is not None}
    for name, given in own.items():
        if getattr(selection, name) is not None:
            raise InvalidValueError(name, "None beside that of the selection", given)
    listing._replace(waiting_for=None, due_from=None).check("pending")
    return attrs.evolve(selection, **own)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked_number(option: str, number: object, most: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise InvalidValueError(option, f"a whole number from 1 to {most}", number)
    return number
