"""The policy of a queue's tasks."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Self

import attrs
from attrs import define, field
from attrs.validators import optional

from maas_backoff.config.options import YEAR, described, duration, must, number, whole
from maas_backoff.domain.backoff import Backoff, BackoffCallable, BackoffStrategy, CustomBackoff
from maas_backoff.domain.labels import Labels, in_labels
from maas_backoff.domain.lane import TaskLimits, in_limits, is_cost
from maas_backoff.domain.policy import CUSTOM_STRATEGY, Policy
from maas_backoff.domain.retry_rule import MOST_FILTERS, ErrorFilters, are_filters, in_filters
from maas_backoff.domain.seconds import in_seconds, in_seconds_if_any
from maas_backoff.errors import ConfigError

_FILTERS = f"at most {MOST_FILTERS} names of exceptions, exception classes, or codes"
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _is_strategy(value: object) -> bool:
    return callable(value) or (isinstance(value, str) and value in list(BackoffStrategy))


def _mirror(other: str) -> Callable[[Any, "attrs.Attribute[Any]", Any], Any]:
    def hook(owner: object, attribute: "attrs.Attribute[Any]", value: object) -> object:
        if attribute.validator is not None:
            attribute.validator(owner, attribute, value)
        object.__setattr__(owner, other, value)
        return value

    return hook


@described
@define(kw_only=True)
class TaskConfig:
    """The policy of the tasks of one queue; `create_task` may override it for one task.

    A task keeps the values of the process that creates it. Every worker decides by these values.

    `Backoff` describes the delays. A `backoff_interval` above `max_backoff_interval` is refused when the configuration
    is used; a lower cap limits the default interval. `backoff_strategy` may be a callable from the retry's number (from
    1) to seconds. A second parameter, or one named `error`, takes the attempt's TaskError. Processes without the
    callable use the exponential formula. A task that ran out of GPU memory comes back for `oom_growth` times as much,
    or for the memory that it used if that is more.
    """

    biz_prefix: str = field(
        default="",
        validator=must(
            "1 to 64 of A-Z a-z 0-9 _ . -",
            lambda value: isinstance(value, str) and (not value or _PREFIX.fullmatch(value) is not None),
        ),
        metadata={"help": "name of the queue, required: 1 to 64 of A-Z a-z 0-9 _ . -"},
    )
    batch_size: int = field(default=100, validator=whole(1, 100), metadata={"help": "most tasks that one claim takes"})
    max_retry_count: int = field(
        default=3,
        validator=whole(0, 1_000_000),
        metadata={"help": "most retries of a failed task: it has one attempt more"},
    )
    retry_on: ErrorFilters = field(
        default=(),
        converter=in_filters,
        validator=must(_FILTERS, are_filters),
        metadata={
            "help": "names of exceptions, and codes, that are retried; other errors end the task; empty: any is retried"
        },
    )
    give_up_on: ErrorFilters = field(
        default=(),
        converter=in_filters,
        validator=must(_FILTERS, are_filters),
        metadata={"help": "names of exceptions, and codes, that end the task at once, although it has retries left"},
    )
    backoff_strategy: str | BackoffCallable = field(
        default="exponential",
        validator=must("'fixed', 'linear', 'exponential' or a callable", _is_strategy),
        metadata={"help": "growth of the delay from retry to retry: fixed, linear, exponential, or a callable"},
    )
    backoff_interval: float = field(
        default=30, converter=in_seconds, validator=duration(0), metadata={"help": "seconds before the first retry"}
    )
    backoff_multiplier: float = field(
        default=2.0, validator=number(1, 1000), metadata={"help": "factor from one delay to the next, if exponential"}
    )
    max_backoff_interval: float = field(
        default=3600, converter=in_seconds, validator=duration(0), metadata={"help": "most seconds before a retry"}
    )
    backoff_jitter: float = field(
        default=0.0,
        validator=number(0, 1, "a share"),
        metadata={"help": "share of a delay, 0 to 1, by which the delays of tasks differ"},
    )
    priority_step: float = field(
        default=60,
        converter=in_seconds,
        validator=duration(0, 86_400),
        metadata={"help": "seconds of head start that one step of `priority` is worth"},
    )
    max_lost: int = field(
        default=3,
        validator=whole(1, 1000),
        metadata={"help": "losses after which a task fails; a loss counts 1/n if n tasks were lost together"},
    )
    max_snoozes: int = field(
        default=1000,
        validator=whole(0, 1_000_000),
        metadata={"help": "most snoozes of a task; one more fails the task"},
    )
    start_within: float | None = field(
        default=None,
        converter=in_seconds_if_any,
        validator=optional(duration(0.001, 10 * YEAR)),
        metadata={"help": "seconds in which an attempt must start, from the first due time on; None: no limit"},
    )
    complete_within: float | None = field(
        default=None,
        converter=in_seconds_if_any,
        validator=optional(duration(0.001, 10 * YEAR)),
        metadata={"help": "seconds in which all attempts must end, from the first due time on; None: no limit"},
    )
    max_queue_size: int | None = field(
        default=None,
        validator=optional(whole(1, 1_000_000_000)),
        metadata={"help": "most unfinished tasks of the queue; one more raises QueueFullError; None: no limit"},
    )
    max_tenant_queue_size: int | None = field(
        default=None,
        validator=optional(whole(1, 1_000_000_000)),
        metadata={"help": "most waiting tasks of one tenant; one more raises TenantFullError; None: no limit"},
    )
    cost: float = field(
        default=1,
        validator=must("a number from 0.001 to 1,000,000,000", is_cost),
        metadata={"help": "what a task costs its tenant; by weight, tenants get equal shares of the sum of costs"},
    )
    limits: TaskLimits = field(
        default=(),
        converter=in_limits,
        metadata={"help": "limits of `set_limit` that a task needs to start, and the units that it uses of each"},
    )
    labels: Labels = field(
        default=(),
        converter=in_labels,
        metadata={"help": "up to eight short names, `key` or `key=value`, by which tasks are selected"},
    )
    max_finished: int = field(
        default=1_000_000,
        validator=whole(1, 100_000_000),
        metadata={"help": "most finished tasks that are kept in each state"},
    )
    result_ttl: float = field(
        default=86_400,
        converter=in_seconds,
        validator=duration(1, 10 * YEAR),
        metadata={"help": "seconds for which completed and cancelled tasks are kept"},
    )
    failed_ttl: float = field(
        default=604_800,
        converter=in_seconds,
        validator=duration(1, 10 * YEAR),
        metadata={"help": "seconds for which failed tasks are kept"},
    )
    max_payload_bytes: int = field(
        default=1_048_576,
        validator=whole(2, 64 * 1_048_576),
        metadata={"help": "most bytes of the JSON text of params, and of a result"},
    )
    max_stream_bytes: int = field(
        default=1_048_576,
        validator=whole(1, 64 * 1_048_576),
        metadata={"help": "most bytes that the parts of a task's stream may have"},
    )
    min_gpu_memory_gb: float = field(
        default=0,
        validator=number(0, 100_000, "GiB"),
        metadata={"help": "GiB that must be free on one GPU; 0: no limit"},
    )
    max_gpu_utilization: float = field(
        default=0,
        validator=number(0, 100, "percent"),
        on_setattr=_mirror("min_gpu_utilization"),
        metadata={"help": "percent that the utilisation of the GPU (mean of 5 s) must be below; 0: no limit"},
    )
    min_gpu_utilization: float = field(
        default=0,
        repr=False,
        eq=False,
        validator=number(0, 100, "percent"),
        on_setattr=_mirror("max_gpu_utilization"),
        metadata={"help": "old name of `max_gpu_utilization`"},
    )
    oom_growth: float = field(
        default=1.5,
        validator=number(1, 100),
        metadata={"help": "factor by which the memory demand grows after a task ran out of GPU memory"},
    )
    max_ooms: int = field(
        default=3,
        validator=whole(0, 1000),
        metadata={"help": "most failures of a task by its GPU, such as out of memory, that use no retry"},
    )

    def __attrs_post_init__(self) -> None:
        ceiling, old = self.max_gpu_utilization, self.min_gpu_utilization
        if ceiling and old and ceiling != old:
            raise ConfigError("task.min_gpu_utilization", f"the value of max_gpu_utilization, {ceiling}", old)
        self.max_gpu_utilization = ceiling or old

    def overridden(self, options: Mapping[str, Any]) -> Self:
        """Return a copy with other values of some options. Raises ConfigError, as `check` does, too."""
        own = dict(options)
        ceiling = own.get("min_gpu_utilization", own.get("max_gpu_utilization"))
        if ceiling is not None:
            own["min_gpu_utilization"] = own["max_gpu_utilization"] = ceiling
        copy = attrs.evolve(self, **own)
        copy.check()
        return copy

    def check(self) -> None:
        """Raise ConfigError for options that exclude each other.

        Options are assigned one after the other. Therefore `policy`, `backoff` and the first use of a scheduler call
        this, and assignments do not.
        """
        interval, most = self.backoff_interval, self.max_backoff_interval
        # A callable needs no interval, and a lower cap limits the default interval.
        given = isinstance(self.backoff_strategy, str) and interval != attrs.fields(TaskConfig).backoff_interval.default
        if given and interval > most:
            expected = f"at most task.max_backoff_interval, which is {most:g} s (raise that one, or lower this one)"
            raise ConfigError("task.backoff_interval", expected, interval)

    @property
    def policy(self) -> Policy:
        """The part that is stored with each task. Raises ConfigError as `check` does."""
        self.check()
        values: dict[str, Any] = {name: getattr(self, name) for name in attrs.fields_dict(Policy)}
        if not isinstance(self.backoff_strategy, str):
            values["backoff_strategy"] = CUSTOM_STRATEGY
        return Policy(**values)

    @property
    def backoff(self) -> Backoff:
        """The delays of this configuration; `backoff.preview(n)` returns them before a task runs."""
        return self.policy.backoff(self.custom_backoff)

    @property
    def custom_backoff(self) -> CustomBackoff | None:
        """The callable backoff; None if there is none."""
        return None if isinstance(self.backoff_strategy, str) else CustomBackoff(self.backoff_strategy)
