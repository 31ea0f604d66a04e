"""The specification of a new task, and the changes of a pending one."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple, TypedDict, Unpack

import attrs

from maas_backoff.domain.labels import GivenLabels
from maas_backoff.domain.lane import GivenLimits
from maas_backoff.domain.retry_rule import GivenFilters


class Reschedule(TypedDict, total=False):
    """A new `priority` of a pending task, and a new due time, as `delay` or `run_at`."""

    priority: int
    delay: float | timedelta
    run_at: datetime


class KindOptions(TypedDict, total=False):
    """The options of a kind of tasks. Each overrides the field of the same name of `TaskConfig`.

    `exec_timeout` overrides the field of `ThreadPoolConfig` in the workers that declare it.
    """

    exec_timeout: float | timedelta
    max_retry_count: int
    retry_on: GivenFilters
    give_up_on: GivenFilters
    backoff_strategy: str
    backoff_interval: float | timedelta
    backoff_multiplier: float
    max_backoff_interval: float | timedelta
    backoff_jitter: float
    priority_step: float | timedelta
    max_lost: int
    max_snoozes: int
    start_within: float | timedelta | None
    complete_within: float | timedelta | None
    result_ttl: float | timedelta
    failed_ttl: float | timedelta
    min_gpu_memory_gb: float
    max_gpu_utilization: float
    min_gpu_utilization: float
    oom_growth: float
    max_ooms: int
    cost: float
    limits: GivenLimits
    labels: GivenLabels


class Ensured(NamedTuple):
    """A task that `ensure_task` has created or found."""

    task_id: str
    is_new: bool
    """Whether this call has created the task."""


class TaskOptions(Reschedule, KindOptions, total=False):
    """The options of one task: due time, priority, tenant, and overrides of the policy of its queue, or of its kind.

    `priority` is -1000 … 1000, lower first. `delay` (seconds or timedelta) and `run_at` (aware datetime) exclude
    each other. `exec_timeout` overrides the field of `ThreadPoolConfig` for this task alone. Every other option
    overrides the field of the same name of `TaskConfig`. `start_within=None` and `complete_within=None`: no deadline.
    `tenant` is the name of the one whose share of the queue the task uses. `labels` are up to eight short names,
    `key` or `key=value`, by which `Selection` finds the task.
    """

    tenant: str


class CreateOptions(TaskOptions, total=False):
    """The options of one task of a kind: those of TaskOptions, and `task_id`, its idempotency key."""

    task_id: str | None


@attrs.frozen(init=False)
class TaskSpec:
    """One task for `create_tasks`: `TaskSpec({"prompt": "a cat"}, "id-1", priority=-5, max_retry_count=0)`."""

    task_params: Mapping[str, object] = attrs.field(repr=False)
    task_id: str | None
    options: TaskOptions

    def __init__(
        self, task_params: Mapping[str, object], task_id: str | None = None, **options: Unpack[TaskOptions]
    ) -> None:
        self.__attrs_init__(task_params, task_id, options)  # pyright: ignore[reportUnknownMemberType, reportAttributeAccessIssue] - made by attrs for init=False
