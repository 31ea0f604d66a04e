"""The policy that a task was created under, which is stored with the task."""

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Self, cast

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.backoff import Backoff, CustomBackoff
from maas_backoff.domain.demand import MIB_PER_GIB, Demand
from maas_backoff.domain.retry_rule import ErrorFilters


def _filters(stored: object) -> ErrorFilters:
    """Return the filters in a stored policy, whose JSON has lists. A later release may have other ones, or no list."""
    filters = cast("Iterable[object]", stored) if isinstance(stored, list | tuple) else ()
    return tuple(one for one in filters if isinstance(one, str | int))


@attrs.frozen(slots=False, kw_only=True)
class Policy:
    """The options that decide the settlement of an outcome, declared in `TaskConfig`.

    A queue stores a policy once, under its digest. A task has the digest and its own overrides: every worker, reaper
    and operation decides alike.
    """

    max_retry_count: int
    retry_on: ErrorFilters = attrs.field(converter=_filters)
    give_up_on: ErrorFilters = attrs.field(converter=_filters)
    backoff_strategy: str
    backoff_interval: float
    backoff_multiplier: float
    max_backoff_interval: float
    backoff_jitter: float
    priority_step: float
    max_lost: int
    max_snoozes: int
    result_ttl: float
    failed_ttl: float
    min_gpu_memory_gb: float
    max_gpu_utilization: float
    oom_growth: float
    max_ooms: int

    def backoff(self, custom: CustomBackoff | None = None) -> Backoff:
        """Return the backoff; `custom` is this process's callable, used if the policy names a callable."""
        if custom is None or self.backoff_strategy != CUSTOM_STRATEGY:
            return self._declared
        return attrs.evolve(self._declared, custom=custom)

    @cached_property
    def _declared(self) -> Backoff:
        return Backoff(
            strategy=self.backoff_strategy,
            interval=self.backoff_interval,
            multiplier=self.backoff_multiplier,
            max_interval=self.max_backoff_interval,
            jitter=self.backoff_jitter,
        )

    @cached_property
    def demand(self) -> Demand | None:
        """The demand on a GPU of a task under this policy; None: it needs none."""
        if self.min_gpu_memory_gb <= 0 and self.max_gpu_utilization <= 0:
            return None
        return Demand(math.ceil(self.min_gpu_memory_gb * MIB_PER_GIB), self.max_gpu_utilization)

    @cached_property
    def text(self) -> str:
        """The stored JSON text."""
        return jsontext.plain(attrs.asdict(self))

    @cached_property
    def digest(self) -> str:
        """The short name under which the queue keeps this policy."""
        return base64.urlsafe_b64encode(hashlib.blake2b(self.text.encode(), digest_size=6).digest()).decode()

    def overridden(self, values: Mapping[str, Any]) -> Self:
        """Return this policy with other values for some options. Other names are ignored."""
        known = attrs.fields_dict(type(self))
        mine = {name: value for name, value in values.items() if name in known}
        return attrs.evolve(self, **mine) if mine else self


CUSTOM_STRATEGY = "custom"
"""The stored name of a callable backoff. Processes without the callable use the exponential formula."""
