"""The creation of tasks: each is checked before it is sent."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import attrs

from maas_backoff.client.gathering import Gathering
from maas_backoff.common.guard import Log, log_for
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.config.peer import peer_of
from maas_backoff.domain import jsontext, validation
from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.labels import checked_labels
from maas_backoff.domain.lane import NO_TENANT, Lane, checked_cost, checked_limits, checked_tenant
from maas_backoff.domain.spec import Ensured, TaskOptions, TaskSpec
from maas_backoff.domain.tracing import Tracing
from maas_backoff.errors import (
    ConfigError,
    InvalidValueError,
    PayloadError,
    QueueFullError,
    StorageError,
    TaskConflictError,
    TenantFullError,
)
from maas_backoff.logs import about
from maas_backoff.store.codec import LABELS, traced
from maas_backoff.store.creation import NewTask
from maas_backoff.store.time_limits import NAMES, with_limits
from maas_backoff.store.writer import ENQUEUE_LIMIT, Writer

log: Log = log_for("scheduler")

MOST_CREATES = 500
"""Creates in one call: about 3 ms of the server's time."""

_NO_OPTIONS = TaskOptions()
_ITEMS = "dicts of params, or TaskSpecs"
_T = TypeVar("_T")


class TaskCreator:
    """Creates the tasks of one kind in a queue, under the policy of `config`, a copy that does not change."""

    def __init__(
        self,
        config: TaskBackoffConfig,
        writer: Writer,
        tracing: Tracing | None,
        kind: str = NAMELESS,
        *,
        has_cost: bool = False,
    ) -> None:
        self._config = config
        self._writer = writer
        self._tracing = tracing
        self._peer = None if tracing is None else peer_of(config.storage)
        self._policy = config.task.policy
        self._kind = kind
        self._lane = Lane(NO_TENANT, config.task.cost, dict(config.task.limits))
        self._has_cost = has_cost
        self._limits = {name: getattr(config.task, name) for name in NAMES}
        self._is_limited = any(limit is not None for limit in self._limits.values())
        self._labels = config.task.labels
        self._where = kind or "task_params"
        send = partial(writer.enqueue_what_fits, policy=self._policy)
        self.gathering: Gathering[NewTask, str] = Gathering(send, config.storage.timeout, MOST_CREATES, _size)

    async def create(self, params: Mapping[str, object], task_id: str | None, options: TaskOptions) -> Ensured:
        is_named = task_id is not None
        if is_named:
            validation.checked_params(params, self._where)  # both may be wrong: the params are named first
        task_id = validation.new_task_id() if task_id is None else validation.checked_task_id(task_id)
        task = self._checked(params, task_id, options, self._where)
        if self._tracing is None:
            answer = await self._create(task)
        else:
            answer = await self._traced([task], lambda: self._create(task))
        # A task whose id this call has made is new, also if a repeated send has found the task.
        return Ensured(task.task_id, answer == "created" or not is_named)

    async def create_many(self, items: Iterable[Mapping[str, object] | TaskSpec]) -> list[str]:
        # All tasks are validated before the first is sent. Each is validated as the iterator yields it: an iterator
        # may change earlier items.
        try:
            each = iter(items)
        except TypeError:
            raise PayloadError("tasks", f"{_ITEMS}, in a list or another iterable", items) from None
        tasks = [self._checked_item(item, index) for index, item in enumerate(each)]
        nameless = [task for task in tasks if not task.task_id]
        for task, task_id in zip(nameless, validation.new_task_ids(len(nameless)), strict=True):
            task.task_id = task_id
        if self._tracing is None or not tasks:
            await self._enqueue_all(tasks)
        else:
            await self._traced(tasks, lambda: self._enqueue_all(tasks))
        return [task.task_id for task in tasks]

    async def _traced(self, tasks: Sequence[NewTask], create: Callable[[], Awaitable[_T]]) -> _T:
        assert self._tracing is not None
        with self._tracing.create(self._config.task.biz_prefix, [task.task_id for task in tasks], self._peer) as trace:
            if trace:
                texts = {own: traced(own, trace) for own in {task.overrides for task in tasks}}
                for task in tasks:
                    task.overrides = texts[task.overrides]
            return await create()

    async def _create(self, task: NewTask) -> str:
        answer = await self.gathering.ask(task)
        if answer == "conflict":
            raise TaskConflictError([task.task_id], [])
        if log.isEnabledFor(logging.DEBUG):
            _log_created([task], [answer])
        return answer

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
        answers = await self._writer.enqueue(tasks, self._policy)
        if log.isEnabledFor(logging.DEBUG):
            _log_created(tasks, answers)
        return answers

    def _checked_item(self, item: Mapping[str, object] | TaskSpec, index: int) -> NewTask:
        """Return the validated task, with an empty id if it has none yet. An error names the item."""
        where = f"tasks[{index}].{self._where}"
        try:
            if isinstance(item, TaskSpec):
                task_id = "" if item.task_id is None else validation.checked_task_id(item.task_id)
                return self._checked(item.task_params, task_id, item.options, where)
            if not isinstance(item, dict):
                raise PayloadError(f"tasks[{index}]", "a dict of params, or a TaskSpec", item)
            return self._checked(item, "", _NO_OPTIONS, where)
        except InvalidValueError as error:
            place = f"tasks[{index}]"
            if not error.option.startswith(place):
                validation.rename(error, f"{place}.{error.option}")
            raise

    def _checked(self, params: Mapping[str, object], task_id: str, options: TaskOptions, where: str) -> NewTask:
        text = jsontext.canonical(validation.checked_params(params), where, self._config.task.max_payload_bytes)
        if not options and not self._is_limited and not self._labels:
            return NewTask(task_id, text, 0, 0, self._policy, "", self._kind, self._record(self._lane))
        policy, overrides = self._policy, ""
        own = validation.overrides_of(options)
        labels = checked_labels(options["labels"]) if "labels" in options else self._labels
        if own or self._is_limited or labels:
            own = self._checked_overrides(own)
            policy = policy.overridden(own)
            own = with_limits(own, self._limits, policy)
            if labels:
                own[LABELS] = labels
            overrides = jsontext.plain(own) if own else ""
        return NewTask(
            task_id=task_id,
            params=text,
            priority=validation.checked_priority(options.get("priority", 0)),
            due=validation.checked_due(options),
            policy=policy,
            overrides=overrides,
            kind=self._kind,
            lane=self._record(self._lane_of(options)),
        )

    def _record(self, lane: Lane) -> str:
        return lane.record_of_cost if self._has_cost else lane.record

    def _lane_of(self, options: TaskOptions) -> Lane:
        own = self._lane
        if "tenant" in options:
            own = attrs.evolve(own, tenant=checked_tenant(options["tenant"]))
        if "cost" in options:
            own = attrs.evolve(own, cost=checked_cost(options["cost"]))
        if "limits" in options:
            own = attrs.evolve(own, limits=checked_limits(options["limits"]))
        return own

    def _checked_overrides(self, own: dict[str, Any]) -> dict[str, Any]:
        """Return a task's overrides as they are stored, after the checks of the configuration."""
        if callable(own.get("backoff_strategy")):
            strategy = own["backoff_strategy"]
            raise InvalidValueError("backoff_strategy", "a name: a callable cannot be stored with a task", strategy)
        given = frozenset(own)
        try:
            return self._overrides(own)
        except ConfigError as error:
            validation.rename(error, validation.own_name(error.option, given))
            error.http_status = InvalidValueError.http_status  # an error of the request, not of the service
            raise

    def _overrides(self, own: dict[str, Any]) -> dict[str, Any]:
        checked: dict[str, Any] = {}
        if "exec_timeout" in own:
            timeout = attrs.evolve(self._config.threadpool, exec_timeout=own.pop("exec_timeout")).exec_timeout
            checked["exec_timeout"] = timeout
        if "min_gpu_utilization" in own:
            own["max_gpu_utilization"] = own.pop("min_gpu_utilization")
        config = self._config.task.overridden(own)
        return checked | {name: getattr(config, name) for name in own}


def _size(task: NewTask) -> int:
    return len(task.params)


def _log_created(tasks: Sequence[NewTask], answers: Sequence[str]) -> None:
    for task, answer in zip(tasks, answers, strict=True):
        if answer == "created":
            log.debug("task %r: created", task.task_id, extra=about("created", task.task_id))


def _with_created(error: StorageError, tasks: Sequence[NewTask], answers: Sequence[str]) -> StorageError:
    """Return the error to raise if only the first part of `tasks` was created, with the ids that are in the queue."""
    created = [task.task_id for task, answer in zip(tasks, answers, strict=False) if answer != "conflict"]
    known = set(created)
    created += [task_id for task_id in error.created if task_id not in known]  # existed before this call
    if isinstance(error, TenantFullError) and len(tasks) > 1:
        return TenantFullError(error.tenant, error.limit, created=created, asked=len(tasks))
    if isinstance(error, QueueFullError) and len(tasks) > 1:
        return QueueFullError(error.limit, error.size, error.retry_after, created=created, asked=len(tasks))
    error.created = created
    return error
