"""Each option is declared once, as a field of its section: all other places follow the declaration."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, get_type_hints

import attrs
import pytest
from redis.credentials import CredentialProvider

from maas_backoff import (
    Backoff,
    ConfigError,
    GpuConfig,
    SchedulerConfig,
    StorageConfig,
    TaskBackoffConfig,
    TaskConfig,
    TaskEntity,
    TaskOptions,
    ThreadPoolConfig,
)
from maas_backoff.__main__ import main
from maas_backoff.commands.preview import OPTIONS
from maas_backoff.domain.labels import GivenLabels, in_labels
from maas_backoff.domain.lane import GivenLimits, in_limits
from maas_backoff.domain.policy import CUSTOM_STRATEGY, Policy
from maas_backoff.domain.retry_rule import GivenFilters, in_filters
from maas_backoff.domain.seconds import in_seconds, in_seconds_if_any
from maas_backoff.domain.spec import Reschedule
from maas_backoff.store.policies import Policies
from maas_backoff.store.time_limits import NAMES

DOCS = Path(__file__).parents[1] / "maas_backoff/docs"
SECTIONS = (StorageConfig, TaskConfig, ThreadPoolConfig, SchedulerConfig, GpuConfig)
DECLARED: dict[str, "attrs.Attribute[Any]"] = {
    option.name: option for section in SECTIONS for option in attrs.fields(section)
}

each_section = pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)


def _row(option: "attrs.Attribute[Any]") -> str:
    default = json.dumps(option.default) if isinstance(option.default, str) else repr(option.default)
    return f"| `{option.name}` | `{default}` | {option.metadata['help']} |"


@each_section
def test_the_table_in_the_docs_has_a_row_for_each_option(section: type[Any]) -> None:
    """After a change of a declaration, put the rows that this test prints into the page."""
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    table = re.search(rf"^\| `{section.__name__}` \| default \| \|\n\|.*\n((?:\|.*\n)*)", page, re.MULTILINE)
    assert table is not None, f"configuration.md has no table of {section.__name__}"
    rows, found = [_row(option) for option in attrs.fields(section)], table[1].splitlines()
    lacking, wrong = (sorted(set(a) - set(b)) for a, b in ((rows, found), (found, rows)))
    assert not lacking and not wrong, "\n".join(["lacking:", *lacking, "wrong:", *wrong])
    assert found == rows, "the rows are in another order than the fields"


@each_section
def test_the_docstring_names_each_option_with_its_help(section: type[Any]) -> None:
    for option in attrs.fields(section):
        assert f"`{option.name}` = {option.default!r}: {option.metadata['help']}\n" in f"{section.__doc__}\n"


def test_a_help_is_one_phrase_that_a_table_and_a_line_of_code_hold() -> None:
    for name, option in DECLARED.items():
        told = option.metadata["help"]
        assert re.fullmatch(r"[^\n|]{10,110}[^\n|.]", told), name
        assert len(told.split()) <= 20, name


def test_no_two_options_have_the_same_name() -> None:
    """The environment knows no sections."""
    assert len(DECLARED) == sum(len(attrs.fields(section)) for section in SECTIONS)


def test_the_environment_is_read_by_the_declared_types() -> None:
    texts = {name: str(option.default) for name, option in DECLARED.items() if option.default not in {None, ()}}
    assert _from_env(texts) == TaskBackoffConfig()
    optional = [name for name, option in DECLARED.items() if option.type == int | None]
    assert optional == [
        "max_queue_size",
        "max_tenant_queue_size",
        "max_tasks_per_process",
        "warm_children",
        "tasks_per_gpu",
    ]
    assert _from_env(dict.fromkeys(optional, "")) == TaskBackoffConfig()
    config = _from_env(dict.fromkeys(optional, "7"))
    assert config.task.max_queue_size == config.threadpool.warm_children == config.gpu.tasks_per_gpu == 7


def _from_env(texts: dict[str, str]) -> TaskBackoffConfig:
    return TaskBackoffConfig.from_env(environ={f"MAAS_BACKOFF_{name.upper()}": text for name, text in texts.items()})


def test_a_credential_provider_in_the_environment_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match=CredentialProvider.__name__) as caught:
        TaskBackoffConfig.from_env(environ={"MAAS_BACKOFF_CREDENTIAL_PROVIDER": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert _from_env({"credential_provider": ""}) == TaskBackoffConfig(), "an empty text is None"


def test_a_policy_has_the_types_of_the_declarations() -> None:
    declared = get_type_hints(TaskConfig) | {"backoff_strategy": str}  # a callable is not stored
    for name, kind in get_type_hints(Policy).items():
        assert declared[name] == kind, name


def test_the_options_of_one_task_are_those_of_a_policy() -> None:
    """Besides its place in the queue, its time limit, and the old name of an option."""
    told = get_type_hints(TaskOptions)
    declared = get_type_hints(TaskConfig) | get_type_hints(ThreadPoolConfig) | {"backoff_strategy": str}
    names = {*get_type_hints(Policy), "exec_timeout", "min_gpu_utilization", *NAMES, "cost", "limits", "labels"}
    assert told.keys() == names | get_type_hints(Reschedule).keys() | {"tenant"}
    for name in names:
        match DECLARED[name].converter:
            case one if one in {in_seconds, in_seconds_if_any}:
                assert told[name] == declared[name] | timedelta, name
            case one if one is in_filters:
                assert told[name] == GivenFilters, name
            case one if one is in_limits:
                assert told[name] == GivenLimits, name
            case one if one is in_labels:
                assert told[name] == GivenLabels, name
            case _:
                assert told[name] == declared[name], name


def test_the_calls_name_the_options_of_one_task() -> None:
    """From the first to the last option of a policy in TaskConfig, but for those that are named."""
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    told = re.search(r"`(\w+)` to `(\w+)` in the \[configuration\].*, except (.*)\.", page)
    assert told is not None
    names = list(attrs.fields_dict(TaskConfig))
    span = names[names.index(told[1]) : names.index(told[2]) + 1]
    own = set(span) - set(re.findall(r"\w+", told[3])) - {"and"}
    assert own == {*attrs.fields_dict(Policy), "min_gpu_utilization", *NAMES, "cost", "limits", "labels"}


def test_values_have_the_defaults_of_the_declarations() -> None:
    assert TaskConfig().backoff == Backoff()
    assert attrs.fields(TaskEntity).max_retry_count.default == TaskConfig().max_retry_count


def test_a_stored_policy_of_another_release_has_the_defaults_and_ignores_the_rest() -> None:
    own = TaskConfig(max_retry_count=7, max_lost=7, backoff_strategy=lambda retry: retry).policy
    assert own.backoff_strategy == CUSTOM_STRATEGY
    policies = Policies(own)
    policies.add([b"old", b"gone"], [b'{"max_retry_count":5,"an_option_of_tomorrow":[1],"retry_on":{"of":1}}', None])
    old, _ = policies.effective(b"old", None)
    assert old == TaskConfig(max_retry_count=5).policy, "the defaults, not the values of this process"
    assert policies.effective(b"gone", b'{"max_lost":2}')[0] == attrs.evolve(own, max_lost=2)


def test_a_stored_policy_is_the_one_that_was_written() -> None:
    written = TaskConfig(retry_on=[TimeoutError, 503], give_up_on=["openai.BadRequestError"], max_lost=7).policy
    policies = Policies(TaskConfig().policy)
    policies.add([b"written"], [written.text.encode()])
    assert policies.effective(b"written", None)[0] == written
    own = b'{"retry_on":["KeyError",1,{"of":"tomorrow"}]}'
    assert policies.effective(b"written", own)[0] == attrs.evolve(written, retry_on=("KeyError", 1))


def test_the_flags_of_preview_have_the_types_and_helps_of_the_declarations(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["preview", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for name in OPTIONS:
        flag, help_ = f"--{name.replace('_', '-')}", DECLARED[name].metadata["help"]
        metavar = {int: "N", float: "X"}.get(DECLARED[name].type, name.upper())
        assert f"{flag} {metavar} {help_} (default: MAAS_BACKOFF_{name.upper()}" in told
