"""Each option is declared once, as a field of its section: all other places follow the declaration."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import attrs

from maas_backoff import (
    Backoff,
    GpuConfig,
    SchedulerConfig,
    StorageConfig,
    TaskConfig,
    TaskEntity,
    TaskOptions,
    ThreadPoolConfig,
)
from maas_backoff.domain.policy import CUSTOM_STRATEGY, Policy
from maas_backoff.domain.seconds import in_seconds
from maas_backoff.domain.spec import Move
from maas_backoff.store.policies import Policies

DOCS = Path(__file__).parents[1] / "maas_backoff/docs"
SECTIONS = (StorageConfig, TaskConfig, ThreadPoolConfig, SchedulerConfig, GpuConfig)
DECLARED: dict[str, "attrs.Attribute[Any]"] = {
    option.name: option for section in SECTIONS for option in attrs.fields(section)
}


def test_a_policy_has_the_types_of_the_declarations() -> None:
    declared = get_type_hints(TaskConfig) | {"backoff_strategy": str}  # a callable is not stored
    for name, kind in get_type_hints(Policy).items():
        assert declared[name] == kind, name


def test_the_options_of_one_task_are_those_of_a_policy() -> None:
    """Besides its place in the queue, its time limit, and the old name of an option."""
    told = get_type_hints(TaskOptions)
    declared = get_type_hints(TaskConfig) | get_type_hints(ThreadPoolConfig) | {"backoff_strategy": str}
    names = {*get_type_hints(Policy), "exec_timeout", "min_gpu_utilization"}
    assert told.keys() == names | get_type_hints(Move).keys()
    for name in names:
        may_be_timedelta = DECLARED[name].converter is in_seconds
        assert told[name] == (declared[name] | timedelta if may_be_timedelta else declared[name]), name


def test_the_calls_name_the_options_of_one_task() -> None:
    """From the first to the last option of a policy in TaskConfig, but for those that are named."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    told = re.search(r"`(\w+)` to `(\w+)` in the \[configuration\].*, except (.*)\.", page)
    assert told is not None
    names = list(attrs.fields_dict(TaskConfig))
    span = names[names.index(told[1]) : names.index(told[2]) + 1]
    assert set(span) - set(re.findall(r"\w+", told[3])) - {"and"} == {*attrs.fields_dict(Policy), "min_gpu_utilization"}


def test_values_have_the_defaults_of_the_declarations() -> None:
    assert TaskConfig().backoff == Backoff()
    assert attrs.fields(TaskEntity).max_retry_count.default == TaskConfig().max_retry_count


def test_a_stored_policy_of_another_release_has_the_defaults_and_ignores_the_rest() -> None:
    own = TaskConfig(max_retry_count=7, max_lost=7, backoff_strategy=lambda retry: retry).policy
    assert own.backoff_strategy == CUSTOM_STRATEGY
    policies = Policies(own)
    policies.add([b"old", b"gone"], [b'{"max_retry_count":5,"an_option_of_tomorrow":[1]}', None])
    old, _ = policies.effective(b"old", None)
    assert old == TaskConfig(max_retry_count=5).policy, "the defaults, not the values of this process"
    assert policies.effective(b"gone", b'{"max_lost":2}')[0] == attrs.evolve(own, max_lost=2)
