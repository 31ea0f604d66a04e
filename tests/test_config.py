"""The configuration says what is wrong, before any network I/O."""

import json
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import pytest

from maas_backoff import (
    ConfigError,
    SchedulerConfig,
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    ThreadPoolConfig,
)


def test_the_defaults_are_those_of_the_original() -> None:
    config = TaskBackoffConfig()
    assert (config.storage.type, config.storage.host, config.storage.port, config.storage.database) == (
        "redis",
        "localhost",
        6379,
        0,
    )
    assert config.storage.password == ""
    task = config.task
    assert (task.batch_size, task.max_retry_count, task.backoff_strategy) == (100, 3, "exponential")
    assert (task.backoff_interval, task.backoff_multiplier) == (30, 2.0)
    assert (task.min_gpu_memory_gb, task.min_gpu_utilization) == (0, 0)
    assert (config.threadpool.concurrency, config.threadpool.proc_mode, config.threadpool.exec_timeout) == (
        10,
        "thread",
        300,
    )
    assert config.scheduler.interval == 10


@pytest.mark.parametrize(
    ("section", "option", "value"),
    [
        (TaskConfig, "biz_prefix", "a b"),
        (TaskConfig, "biz_prefix", "a:b"),
        (TaskConfig, "biz_prefix", "{a}"),
        (TaskConfig, "biz_prefix", "a*"),
        (TaskConfig, "biz_prefix", "a" * 65),
        (TaskConfig, "batch_size", 0),
        (TaskConfig, "batch_size", 101),
        (TaskConfig, "batch_size", True),
        (TaskConfig, "batch_size", "10"),
        (TaskConfig, "max_retry_count", -1),
        (TaskConfig, "max_retry_count", 1.5),
        (TaskConfig, "retry_on", "a b"),
        (TaskConfig, "retry_on", ["x."]),
        (TaskConfig, "retry_on", 400),
        (TaskConfig, "give_up_on", [4.5]),
        (TaskConfig, "give_up_on", [True]),
        (TaskConfig, "give_up_on", [int]),
        (TaskConfig, "give_up_on", [{}]),
        (TaskConfig, "give_up_on", [2**63]),
        (TaskConfig, "give_up_on", list(range(101))),
        (TaskConfig, "give_up_on", ["x" * 201]),
        (TaskConfig, "backoff_strategy", "cubic"),
        (TaskConfig, "backoff_interval", -1),
        (TaskConfig, "backoff_interval", float("nan")),
        (TaskConfig, "backoff_multiplier", 0.5),
        (TaskConfig, "backoff_jitter", 2),
        (TaskConfig, "max_payload_bytes", 10**12),
        (TaskConfig, "min_gpu_memory_gb", -1),
        (TaskConfig, "max_gpu_utilization", 101),
        (TaskConfig, "min_gpu_utilization", 101),
        (ThreadPoolConfig, "concurrency", 0),
        (ThreadPoolConfig, "concurrency", 10**6),
        (ThreadPoolConfig, "proc_mode", "fork"),
        (ThreadPoolConfig, "exec_timeout", 0),
        (ThreadPoolConfig, "max_tasks_per_process", 0),
        (SchedulerConfig, "interval", 0),
        (SchedulerConfig, "lease", 2.9),
        (SchedulerConfig, "shutdown_grace", float("inf")),
        (StorageConfig, "type", "mysql"),
        (StorageConfig, "host", ""),
        (StorageConfig, "port", 0),
        (StorageConfig, "url", "http://localhost"),
        (StorageConfig, "url", "redis://:secret@host:port"),
    ],
)
def test_a_wrong_value_is_refused_by_name_at_construction_and_assignment(
    section: type[Any], option: str, value: object
) -> None:
    with pytest.raises(ConfigError) as constructed:
        section(**{option: value})
    with pytest.raises(ConfigError) as assigned:
        setattr(section(), option, value)
    assert str(constructed.value) == str(assigned.value)
    assert f".{option}: expected " in str(assigned.value)
    assert "secret" not in str(assigned.value)


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(TypeError, match="concurency"):
        ThreadPoolConfig(concurency=5)  # type: ignore[call-arg] - wrong on purpose
    with pytest.raises(AttributeError, match="concurency"):
        ThreadPoolConfig().concurency = 5  # type: ignore[attr-defined] - wrong on purpose
    with pytest.raises(ConfigError, match=r"threadpool\.concurency: expected one of concurrency, "):
        TaskBackoffConfig.from_dict({"threadpool": {"concurency": 5}})
    with pytest.raises(ConfigError, match="MAAS_BACKOFF_CONCURENCY"):
        TaskBackoffConfig.from_env(environ={"MAAS_BACKOFF_CONCURENCY": "5"})
    with pytest.raises(ConfigError, match="threads: expected one of the sections"):
        TaskBackoffConfig.from_dict({"threads": {}})


def test_errors_are_named_by_names_classes_and_codes() -> None:
    class Here(Exception): ...

    config = TaskConfig(
        retry_on=[TimeoutError, json.JSONDecodeError, Here, "openai.BadRequestError", HTTPStatus.CONFLICT]
    )
    names = "builtins.TimeoutError", "json.decoder.JSONDecodeError", "Here", "openai.BadRequestError", 409
    assert config.retry_on == names and all(type(name) in {str, int} for name in config.retry_on)
    config = TaskBackoffConfig.from_env(environ={"MAAS_BACKOFF_GIVE_UP_ON": "ValueError, 400,-1"}).task
    assert config.give_up_on == ("ValueError", 400, -1)
    assert TaskConfig(retry_on={"b", "a", 1}).retry_on == (1, "a", "b"), "a set has no order of its own"


def test_durations_may_be_timedeltas() -> None:
    assert TaskConfig(backoff_interval=timedelta(minutes=1)).backoff_interval == 60


def test_an_interval_above_the_cap_is_refused_when_it_is_used() -> None:
    """Not before: one option is assigned after the other. The message names both."""
    config = TaskConfig(biz_prefix="x", max_backoff_interval=0.1)
    assert config.backoff.preview(1) == [0.1], "the default gives way"
    config.max_backoff_interval, config.backoff_interval = 3600, timedelta(hours=2)
    with pytest.raises(
        ConfigError, match=r"backoff_interval: expected at most task\.max_backoff_interval, which is 3600 s"
    ):
        config.backoff.preview(1)
    config.max_backoff_interval = timedelta(hours=2)
    assert config.backoff.preview(2) == [7200, 7200]
    config.max_backoff_interval = 5
    with pytest.raises(ConfigError, match=r"which is 5 s .*, got 7200"):
        config.check()
    config.backoff_strategy = lambda retry: retry
    assert config.backoff.preview(6) == [1, 2, 3, 4, 5, 5], "a callable needs no interval"


@pytest.mark.anyio
async def test_a_scheduler_refuses_an_interval_above_the_cap_before_any_io() -> None:
    storage = StorageConfig(host="127.0.0.1", port=1)
    config = TaskBackoffConfig(
        storage=storage, task=TaskConfig(biz_prefix="x", backoff_interval=20, max_backoff_interval=10)
    )
    scheduler = TaskBackoffScheduler(config)
    for use in (scheduler.start, lambda: scheduler.create_task({})):
        with pytest.raises(ConfigError, match=r"task\.backoff_interval: "):
            await use()


def test_the_old_name_of_the_utilisation_ceiling_works() -> None:
    config = TaskConfig(min_gpu_utilization=20)
    assert config.max_gpu_utilization == 20
    config.max_gpu_utilization = 30
    assert config.min_gpu_utilization == 30
    config.min_gpu_utilization = 40
    assert config.max_gpu_utilization == 40
    with pytest.raises(ConfigError, match="min_gpu_utilization"):
        TaskConfig(min_gpu_utilization=20, max_gpu_utilization=30)


def test_from_dict_and_from_env_fill_in_the_defaults() -> None:
    config = TaskBackoffConfig.from_dict({"task": {"biz_prefix": "a"}, "threadpool": {"concurrency": 5}})
    assert (config.task.biz_prefix, config.task.batch_size, config.threadpool.concurrency) == ("a", 100, 5)
    environ = {
        "MAAS_BACKOFF_URL": "redis://h/1",
        "MAAS_BACKOFF_BIZ_PREFIX": "b",
        "MAAS_BACKOFF_BACKOFF_INTERVAL": "0.5",
        "MAAS_BACKOFF_MAX_TASKS_PER_PROCESS": "",
        "MAAS_BACKOFF_PROC_MODE": "process",
        "OTHER": "x",
    }
    config = TaskBackoffConfig.from_env(environ=environ)
    assert (config.storage.url, config.task.biz_prefix, config.task.backoff_interval) == ("redis://h/1", "b", 0.5)
    assert (config.threadpool.max_tasks_per_process, config.threadpool.proc_mode) == (None, "process")
    with pytest.raises(ConfigError, match="MAAS_BACKOFF_PORT: expected a number"):
        TaskBackoffConfig.from_env(environ={"MAAS_BACKOFF_PORT": "x"})


def test_a_password_is_never_shown() -> None:
    config = TaskBackoffConfig(storage=StorageConfig(password="hunter2", url="redis://:hunter2@host"))
    scheduler = TaskBackoffScheduler(config)
    assert "hunter2" not in f"{config!r} {config.storage!s} {scheduler!r}"


@pytest.mark.anyio
async def test_a_queue_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.biz_prefix"):
        await TaskBackoffScheduler(TaskBackoffConfig()).start()


@pytest.mark.anyio
async def test_a_configuration_that_was_refused_may_be_corrected(config: TaskBackoffConfig) -> None:
    prefix, config.task.biz_prefix = config.task.biz_prefix, ""
    scheduler = TaskBackoffScheduler(config)
    with pytest.raises(ConfigError, match=r"task\.biz_prefix"):
        await scheduler.create_task({})
    config.task.biz_prefix = prefix
    assert await scheduler.create_task({}, "a") == "a"
    await scheduler.shutdown()
