"""The client of a queue: validates, creates, reads and awaits its tasks."""

import contextlib
import logging
import math
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import anyio
import attrs

from maas_backoff.client.operations import QueueOperations
from maas_backoff.common.guard import Log, log_for
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain import jsontext, validation
from maas_backoff.domain.event import TaskEvent
from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.history import History
from maas_backoff.domain.page import Listing, TaskPage
from maas_backoff.domain.seconds import in_seconds
from maas_backoff.domain.spec import TaskOptions, TaskSpec
from maas_backoff.domain.task import TaskEntity, TaskStatus, checked_status
from maas_backoff.domain.tracing import Tracing
from maas_backoff.domain.worker import Device
from maas_backoff.errors import (
    ConfigError,
    InvalidValueError,
    QueueFullError,
    StorageError,
    TaskConflictError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from maas_backoff.gate.status import status
from maas_backoff.logs import about
from maas_backoff.store.codec import traced
from maas_backoff.store.creation import NewTask
from maas_backoff.store.embedded import EmbeddedServer
from maas_backoff.store.ledger import Ledgers
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.waiters import Waiters
from maas_backoff.store.writer import ENQUEUE_LIMIT

log: Log = log_for("scheduler")

WAIT_RENEWAL = 20.0
"""Seconds after which a waiter reads its task by itself, and renews its watch."""

_NO_OPTIONS = TaskOptions()


class QueueClient:
    """The client half of one queue, over one store. `config` is a copy that never changes."""

    def __init__(
        self, config: TaskBackoffConfig, tracing: Tracing | None = None, embedded: EmbeddedServer | None = None
    ) -> None:
        """Take the configuration; `embedded` is a shared server, which its owner stops."""
        if not config.task.biz_prefix:
            raise ConfigError("task.biz_prefix", "1 to 64 of A-Z a-z 0-9 _ . - (or MAAS_BACKOFF_BIZ_PREFIX)", "")
        self.config = config
        self.store: QueueStore = QueueStore.of(config, embedded)
        self._policy = config.task.policy
        self._tracing = tracing
        self._ledgers = Ledgers(
            config.storage, self.store.connection.server, lease=config.scheduler.lease, queue=config.task.biz_prefix
        )
        self._waiters: Waiters | None = None
        self.operations: QueueOperations = QueueOperations(config, self.store)

    def abandon(self) -> None:
        """Abandon the waiters of a closed event loop."""
        if self._waiters is not None:
            self._waiters.abandon()

    async def aclose(self) -> None:
        """Close the connections."""
        waiters, self._waiters = self._waiters, None
        if waiters is not None:
            await waiters.aclose()
        await self._ledgers.aclose()
        await self.store.aclose()

    # Creating

    async def create(self, params: Mapping[str, object], task_id: str | None, options: TaskOptions) -> str:
        task_id = validation.new_task_id() if task_id is None else validation.checked_task_id(task_id)
        task = self._checked(params, task_id, options, "task_params")
        await self._send([task])
        return task.task_id

    async def create_many(self, items: Iterable[Mapping[str, object] | TaskSpec]) -> list[str]:
        # All tasks are validated before the first is sent. Each is validated as the iterator yields it: an iterator
        # may change earlier items.
        tasks = [self._checked_item(item, f"tasks[{index}].task_params") for index, item in enumerate(items)]
        nameless = [task for task in tasks if not task.task_id]
        for task, task_id in zip(nameless, validation.new_task_ids(len(nameless)), strict=True):
            task.task_id = task_id
        await self._send(tasks)
        return [task.task_id for task in tasks]

    async def _send(self, tasks: Sequence[NewTask]) -> None:
        if self._tracing is None or not tasks:
            return await self._enqueue_all(tasks)
        with self._tracing.create(self.config.task.biz_prefix, [task.task_id for task in tasks]) as trace:
            if trace:
                texts = {own: traced(own, trace) for own in {task.overrides for task in tasks}}
                for task in tasks:
                    task.overrides = texts[task.overrides]
            return await self._enqueue_all(tasks)

    async def _enqueue_all(self, tasks: Sequence[NewTask]) -> None:
        answers: list[str] = []
        for start in range(0, len(tasks), ENQUEUE_LIMIT):
            try:
                answers += await self._enqueue(tasks[start : start + ENQUEUE_LIMIT])
            except StorageError as error:
                raise _with_created(error, tasks, answers) from error.__cause__
        if "conflict" in answers:
            answered = [(task.task_id, answer == "conflict") for task, answer in zip(tasks, answers, strict=True)]
            conflicts = [task_id for task_id, conflict in answered if conflict]
            raise TaskConflictError(conflicts, [task_id for task_id, conflict in answered if not conflict])

    async def _enqueue(self, tasks: Sequence[NewTask]) -> list[str]:
        answers = await self.store.writer.enqueue(tasks)
        if log.isEnabledFor(logging.DEBUG):
            for task, answer in zip(tasks, answers, strict=True):
                if answer == "created":
                    log.debug("task %r: created", task.task_id, extra=about("created", task.task_id))
        return answers

    def _checked_item(self, item: Mapping[str, object] | TaskSpec, where: str) -> NewTask:
        """Return the validated task, with an empty id if it has none yet."""
        if isinstance(item, TaskSpec):
            task_id = "" if item.task_id is None else validation.checked_task_id(item.task_id)
            return self._checked(item.task_params, task_id, item.options, where)
        return self._checked(item, "", _NO_OPTIONS, where)

    def _checked(self, params: Mapping[str, object], task_id: str, options: TaskOptions, where: str) -> NewTask:
        text = jsontext.canonical(validation.checked_params(params), where, self.config.task.max_payload_bytes)
        if not options:
            return NewTask(task_id, text, 0, 0, self._policy, "")
        policy, overrides = self._policy, ""
        if own := validation.overrides_of(options):
            own = self._checked_overrides(own)
            policy, overrides = policy.overridden(own), jsontext.plain(own)
        return NewTask(
            task_id=task_id,
            params=text,
            priority=validation.checked_priority(options.get("priority", 0)),
            due=validation.checked_due(options),
            policy=policy,
            overrides=overrides,
        )

    def _checked_overrides(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return a task's overrides as they are stored, after the checks of the configuration."""
        if callable(own.get("backoff_strategy")):
            strategy = own["backoff_strategy"]
            raise InvalidValueError("backoff_strategy", "a name: a callable cannot be stored with a task", strategy)
        try:
            return self._overrides(own)
        except ConfigError as error:
            error.http_status = InvalidValueError.http_status  # an error of the request, not of the service
            raise

    def _overrides(self, own: dict[str, Any]) -> dict[str, Any]:
        checked: dict[str, Any] = {}
        if "exec_timeout" in own:
            timeout = attrs.evolve(self.config.threadpool, exec_timeout=own.pop("exec_timeout")).exec_timeout
            checked["exec_timeout"] = timeout
        if "min_gpu_utilization" in own:
            own["max_gpu_utilization"] = own.pop("min_gpu_utilization")
        if "max_gpu_utilization" in own:
            own["min_gpu_utilization"] = own["max_gpu_utilization"]
        config = attrs.evolve(self.config.task, **own)
        config.check()
        return checked | {name: getattr(config, name) for name in own if name != "min_gpu_utilization"}

    # Reading

    async def get(self, task_id: str) -> TaskEntity | None:
        return await self.store.reader.get(validation.checked_task_id(task_id))

    async def gpus(self) -> list[GpuStatus]:
        found: dict[str, tuple[Device, str]] = {}
        for worker in await self.store.registry.fleet():
            for device in worker.devices:
                # Two workers may have the same device: the newer GPU sample counts.
                if device.uuid not in found or device.age < found[device.uuid][0].age:
                    found[device.uuid] = device, worker.host
        return [status(device, host, await self._ledgers.read(device.uuid)) for device, host in found.values()]

    async def history(self, minutes: int) -> History:
        return await self.store.reader.history(_checked_number("minutes", minutes, 120))

    async def upcoming(self, step: float | timedelta, steps: int) -> list[int]:
        seconds = in_seconds(step)
        if not _is_number(seconds) or not 0 < seconds <= 86_400:
            raise InvalidValueError("step", "seconds (or a timedelta), above 0 and at most a day", step)
        return await self.store.reader.upcoming(seconds, _checked_number("steps", steps, 200))

    async def page(self, status: str, listing: Listing) -> TaskPage:
        status = checked_status(status, *TaskStatus)
        listing.check(status)
        return await self.store.reader.page(status, listing)

    async def wait(self, task_id: str, timeout: float | timedelta | None) -> TaskEntity:
        validation.checked_task_id(task_id)
        seconds = math.inf if timeout is None else in_seconds(timeout)
        if not _is_number(seconds) or not seconds >= 0:
            raise InvalidValueError("timeout", "seconds (or a timedelta) from 0 on, or None", timeout)
        with anyio.move_on_after(seconds):
            async with contextlib.aclosing(self._changes(task_id)) as changes:
                async for task in changes:
                    if task.status.finished:
                        return task
        raise TaskTimeoutError(task_id, seconds)

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

    async def _changes(self, task_id: str) -> AsyncGenerator[TaskEntity, None]:
        """Yield the task, and again whenever it may have changed."""
        if self._waiters is None:
            await self.store.connection.server.connect()
            server = self.store.connection.server
            self._waiters = Waiters(
                server.new_client(connections=1), self.store.connection.keys.changed_channel, server.outage
            )
        async with self._waiters.waiting(task_id) as woken:
            while True:
                woken.clear()
                task = await self.store.reader.get(task_id, watch=2 * WAIT_RENEWAL)
                if task is None:
                    raise TaskNotFoundError(task_id)
                yield task
                with anyio.move_on_after(WAIT_RENEWAL):
                    await woken.wait()


def _with_created(error: StorageError, tasks: Sequence[NewTask], answers: Sequence[str]) -> StorageError:
    """Return the error to raise if only the first part of `tasks` was created, with the ids that are in the queue."""
    created = [task.task_id for task, answer in zip(tasks, answers, strict=False) if answer != "conflict"]
    created += [task_id for task_id in error.created if task_id not in set(created)]  # existed before this call
    if isinstance(error, QueueFullError) and len(tasks) > 1:
        return QueueFullError(error.limit, error.size, error.retry_after, created=created, asked=len(tasks))
    error.created = created
    return error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _checked_number(option: str, number: object, most: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise InvalidValueError(option, f"a whole number from 1 to {most}", number)
    return number
