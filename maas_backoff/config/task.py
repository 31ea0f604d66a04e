"""The policy of a queue's tasks."""

import re
from collections.abc import Callable
from typing import Any

import attrs
from attrs import define, field
from attrs.validators import optional

from maas_backoff.config.options import YEAR, duration, must, number, whole
from maas_backoff.domain.backoff import Backoff, BackoffCallable, BackoffStrategy
from maas_backoff.domain.policy import CUSTOM_STRATEGY, Policy
from maas_backoff.domain.seconds import in_seconds
from maas_backoff.errors import ConfigError

_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _is_strategy(value: object) -> bool:
    return callable(value) or (isinstance(value, str) and value in list(BackoffStrategy))


def _mirror(mine: str, other: str) -> Callable[[Any, "attrs.Attribute[Any]", Any], Any]:
    def hook(owner: object, attribute: "attrs.Attribute[Any]", value: object) -> object:
        if attribute.validator is not None:
            attribute.validator(owner, attribute, value)
        assert attribute.name == mine
        object.__setattr__(owner, other, value)
        return value

    return hook


@define(kw_only=True)
class TaskConfig:
    """The policy of the tasks of one queue; `create_task` may say otherwise for one of them.

    A task keeps the values of the process that creates it; every worker decides by those.

    `max_retry_count` is retries, so at most one attempt more. Delays: `Backoff`. A `backoff_interval` above
    `max_backoff_interval` is refused when the configuration is used; the default gives way to a lower cap.
    `backoff_jitter` is a share of the delay. `backoff_strategy` may be a callable from the retry's number (from 1)
    to seconds; it lives in the workers, and where there is none the exponential formula stands in. A step of
    `priority` is worth a head start of `priority_step` seconds. A task whose worker died `max_lost` times fails; a
    loss counts 1/n where n tasks were lost together. `result_ttl` is how long completed and cancelled tasks are
    kept, `failed_ttl` how long failed ones are. `max_payload_bytes` limits params and results.
    With `max_queue_size` tasks that are not finished, new ones are refused (QueueFullError); None: no limit.
    A task starts only on a GPU with `min_gpu_memory_gb` GiB free and a utilisation below `max_gpu_utilization`
    percent (0: no matter). `min_gpu_utilization` is the old name of `max_gpu_utilization`. A task that runs out of a
    GPU's memory comes back for `oom_growth` times as much, or for what it was seen to use if that is more, at most
    `max_ooms` times without using a retry.
    """

    biz_prefix: str = field(
        default="",
        validator=must(
            "1 to 64 of A-Z a-z 0-9 _ . -",
            lambda value: isinstance(value, str) and (not value or _PREFIX.fullmatch(value) is not None),
        ),
    )
    batch_size: int = field(default=100, validator=whole(1, 100))
    max_retry_count: int = field(default=3, validator=whole(0, 1_000_000))
    backoff_strategy: str | BackoffCallable = field(
        default="exponential", validator=must("'fixed', 'linear', 'exponential' or a callable", _is_strategy)
    )
    backoff_interval: float = field(default=30, converter=in_seconds, validator=duration(0))
    backoff_multiplier: float = field(default=2.0, validator=number(1, 1000))
    max_backoff_interval: float = field(default=3600, converter=in_seconds, validator=duration(0))
    backoff_jitter: float = field(default=0.0, validator=number(0, 1, "a share"))
    priority_step: float = field(default=60, converter=in_seconds, validator=duration(0, 86_400))
    max_lost: int = field(default=3, validator=whole(1, 1000))
    max_snoozes: int = field(default=1000, validator=whole(0, 1_000_000))
    max_queue_size: int | None = field(default=None, validator=optional(whole(1, 1_000_000_000)))
    max_finished: int = field(default=1_000_000, validator=whole(1, 100_000_000))
    result_ttl: float = field(default=86_400, converter=in_seconds, validator=duration(1, 10 * YEAR))
    failed_ttl: float = field(default=604_800, converter=in_seconds, validator=duration(1, 10 * YEAR))
    max_payload_bytes: int = field(default=1_048_576, validator=whole(2, 64 * 1_048_576))
    min_gpu_memory_gb: float = field(default=0, validator=number(0, 100_000, "GiB"))
    max_gpu_utilization: float = field(
        default=0,
        validator=number(0, 100, "percent"),
        on_setattr=_mirror("max_gpu_utilization", "min_gpu_utilization"),
    )
    min_gpu_utilization: float = field(
        default=0,
        repr=False,
        eq=False,
        validator=number(0, 100, "percent"),
        on_setattr=_mirror("min_gpu_utilization", "max_gpu_utilization"),
    )

    oom_growth: float = field(default=1.5, validator=number(1, 100))
    max_ooms: int = field(default=3, validator=whole(0, 1000))

    def __attrs_post_init__(self) -> None:
        ceiling, old = self.max_gpu_utilization, self.min_gpu_utilization
        if ceiling and old and ceiling != old:
            raise ConfigError("task.min_gpu_utilization", f"the value of max_gpu_utilization, {ceiling}", old)
        self.max_gpu_utilization = ceiling or old

    def check(self) -> None:
        """Raise ConfigError for options that do not go together.

        Not done on assignment, as one option is assigned after the other: `policy`, `backoff` and the first use of a
        scheduler do it.
        """
        interval, most = self.backoff_interval, self.max_backoff_interval
        # A callable needs no interval, and the default gives way to a lower cap.
        given = isinstance(self.backoff_strategy, str) and interval != attrs.fields(TaskConfig).backoff_interval.default
        if given and interval > most:
            expected = f"at most task.max_backoff_interval, which is {most:g} s (raise that one, or lower this one)"
            raise ConfigError("task.backoff_interval", expected, interval)

    @property
    def policy(self) -> Policy:
        """The part that travels with each task. Raises ConfigError as `check` does."""
        self.check()
        strategy = self.backoff_strategy
        return Policy(
            backoff_strategy=strategy if isinstance(strategy, str) else CUSTOM_STRATEGY,
            **{name: getattr(self, name) for name in _POLICY_FIELDS if name != "backoff_strategy"},
        )

    @property
    def backoff(self) -> Backoff:
        """The delays of this configuration; `backoff.preview(n)` tells them before anything runs."""
        return self.policy.backoff(self.custom_backoff)

    @property
    def custom_backoff(self) -> BackoffCallable | None:
        """The callable backoff, if there is one."""
        return None if isinstance(self.backoff_strategy, str) else self.backoff_strategy


_POLICY_FIELDS = tuple(f.name for f in attrs.fields(Policy))
