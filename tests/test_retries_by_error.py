"""The error of an attempt decides what follows: a retry or none, and its delay. The handler sees earlier errors."""

import logging
from typing import Any

import pytest

from maas_backoff import (
    ResultEntity,
    Retry,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    TaskError,
    TaskSpec,
    ThreadPoolConfig,
)
from maas_backoff.testing import SimulatedScheduler

pytestmark = pytest.mark.anyio

MODES = ("coroutine", "thread", "process")
ONE_RETRY: dict[str, Any] = {"max_retry_count": 1, "backoff_interval": 0}


class BadRequestError(ValueError): ...


class UpstreamError(ConnectionError): ...


def fails(task: TaskEntity) -> object:
    """Fail as the task says."""
    match task.task_params["kind"]:
        case "bad":
            raise BadRequestError("no prompt")
        case "upstream":
            raise UpstreamError("busy")
        case "group":
            raise ExceptionGroup("both", [KeyError("x"), UpstreamError("busy")])
        case "retry":
            raise Retry(0)
        case code:
            return ResultEntity.fail(int(code), "as told")


async def fails_in_coroutine(task: TaskEntity) -> object:
    return fails(task)


def scheduler_of(config: TaskBackoffConfig, mode: str, handler: Any, coroutine: Any) -> TaskBackoffScheduler:
    proc_mode: Any = "process" if mode == "process" else "thread"
    config.threadpool = ThreadPoolConfig(proc_mode=proc_mode, concurrency=2, exec_timeout=20)
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(coroutine if mode == "coroutine" else handler)
    return scheduler


@pytest.mark.parametrize("mode", MODES)
async def test_the_error_says_whether_a_task_is_retried(config: TaskBackoffConfig, mode: str) -> None:
    """By the names of its class and of base classes, with their module or without, and by its code."""
    here = BadRequestError.__module__
    config.task = TaskConfig(biz_prefix="test", give_up_on=[f"{here}.BadRequestError", 400], **ONE_RETRY)
    specs = [
        TaskSpec({"kind": "bad"}, "given up on"),
        TaskSpec({"kind": "400"}, "given up on by its code"),
        TaskSpec({"kind": "503"}, "another code"),
        TaskSpec({"kind": "upstream"}, "retried"),
        TaskSpec({"kind": "bad"}, "a task has its own", give_up_on=[]),
        TaskSpec({"kind": "upstream"}, "a base class", give_up_on=[OSError]),
        TaskSpec({"kind": "group"}, "a member of a group", give_up_on=["UpstreamError"]),
        TaskSpec({"kind": "upstream"}, "one of these", retry_on=["KeyError", "ConnectionError"]),
        TaskSpec({"kind": "upstream"}, "none of these", retry_on=["KeyError", "timeout", 503]),
        TaskSpec({"kind": "bad"}, "both", retry_on=["ValueError"]),
        TaskSpec({"kind": "retry"}, "asked for", retry_on=["KeyError"]),
    ]
    async with scheduler_of(config, mode, fails, fails_in_coroutine) as scheduler:
        await scheduler.create_tasks(specs)
        tasks = [await scheduler.wait_task(spec.task_id or "", 40) for spec in specs]
    assert {task.status for task in tasks} == {"failed"}
    assert {task.task_id: (task.attempt, task.attempts[-1].ended_by) for task in tasks} == {
        "given up on": (1, "give_up_on"),
        "given up on by its code": (1, "give_up_on"),
        "another code": (2, ""),
        "retried": (2, ""),
        "a task has its own": (2, ""),
        "a base class": (1, "give_up_on"),
        "a member of a group": (1, "give_up_on"),
        "one of these": (2, ""),
        "none of these": (1, "retry_on"),
        "both": (1, "give_up_on"),
        "asked for": (2, ""),
    }
    errors = {task.task_id: task.error for task in tasks}
    assert errors["given up on"] == TaskError("BadRequestError", "no prompt")
    assert errors["given up on by its code"] == TaskError("failed", "as told", 400)


async def test_the_code_that_the_exception_handler_gives_counts(config: TaskBackoffConfig) -> None:
    config.task = TaskConfig(biz_prefix="test", give_up_on=[400], **ONE_RETRY)
    scheduler = scheduler_of(config, "coroutine", fails, fails_in_coroutine)

    @scheduler.set_custom_task_exception_handler
    def with_a_code(task: TaskEntity) -> ResultEntity:
        return ResultEntity.fail(400 if task.task_params["kind"] == "bad" else 503, "told")

    async with scheduler:
        ids = [await scheduler.create_task({"kind": kind}) for kind in ("bad", "upstream")]
        bad, upstream = [await scheduler.wait_task(task_id, 40) for task_id in ids]
    assert (bad.attempt, bad.error) == (1, TaskError("BadRequestError", "told", 400))
    assert (upstream.attempt, upstream.error) == (2, TaskError("UpstreamError", "told", 503))


async def test_the_log_and_a_mark_from_outside_name_the_option(
    config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config.task = TaskConfig(biz_prefix="test", give_up_on=["BadRequestError", 400], **ONE_RETRY)
    with caplog.at_level(logging.ERROR, "maas_backoff.worker"):
        async with scheduler_of(config, "coroutine", fails, fails_in_coroutine) as scheduler:
            await scheduler.wait_task(await scheduler.create_task({"kind": "bad"}), 40)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith("attempt 1: BadRequestError: no prompt; failed by give_up_on")
    async with TaskBackoffScheduler(config) as outside:
        await outside.create_task({"kind": "bad"}, "x", delay=60)
        assert await outside.mark_task_failed("x", "elsewhere", code=400)
        task = await outside.get_task("x")
    assert task is not None and (task.status, task.attempts[0].ended_by) == ("failed", "give_up_on")


async def test_a_simulated_scheduler_gives_up_as_the_real_one() -> None:
    scheduler = SimulatedScheduler(TaskBackoffConfig(task=TaskConfig(retry_on=[ConnectionError])))
    scheduler.set_custom_task_handler(fails_in_coroutine)
    async with scheduler:
        await scheduler.create_tasks([TaskSpec({"kind": kind}, kind) for kind in ("bad", "upstream")])
        await scheduler.advance(3600)
        bad, upstream = await scheduler.get_task("bad"), await scheduler.get_task("upstream")
    assert bad is not None and (bad.status, bad.attempt) == ("failed", 1)
    assert upstream is not None and (upstream.status, upstream.attempt) == ("failed", 4)
