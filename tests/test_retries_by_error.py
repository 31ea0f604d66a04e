"""The error of an attempt decides what follows: a retry or none, and its delay. The handler sees earlier errors."""

import logging
from datetime import timedelta
from typing import Any

import pytest
from support import Server, eventually

from maas_backoff import (
    ResultEntity,
    Retry,
    Snooze,
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

MODES = ("coroutine", "thread", pytest.param("process", marks=pytest.mark.long))
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


def remembers(task: TaskEntity) -> object:
    """Fail three times, each time in another way; then return what the handler sees of the failures."""
    seen = [(one.number, str(one.error), one.error.code, one.traceback, one.worker != "") for one in task.attempts]
    if task.attempt == 1:
        assert (task.error, seen) == (None, [])
        raise BadRequestError('line\n","type":"x",\\ "traceback":"')
    if task.attempt == 2:
        return ResultEntity.fail(503, "busy")
    if task.attempt == 3:
        raise Retry(0, "later")
    assert task.error == task.attempts[-1].error
    rounded = timedelta(milliseconds=1)
    assert task.started_at is not None
    assert all(one.started_at <= one.ended_at <= task.started_at + rounded for one in task.attempts)
    return [list(one) for one in seen]


async def remembers_in_coroutine(task: TaskEntity) -> object:
    return remembers(task)


@pytest.mark.parametrize("mode", MODES)
async def test_a_handler_sees_the_failures_of_earlier_attempts(config: TaskBackoffConfig, mode: str) -> None:
    config.task = TaskConfig(biz_prefix="test", backoff_interval=0)
    async with scheduler_of(config, mode, remembers, remembers_in_coroutine) as scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}), 40)
    assert task.status == "completed", task.error
    assert task.result == [
        [1, 'BadRequestError: line\n","type":"x",\\ "traceback":"', None, "", True],
        [2, "failed: busy", 503, "", True],
        [3, "Retry: later", None, "", True],
    ]
    assert "in remembers" in task.attempts[0].traceback


async def test_a_handler_sees_the_last_ten_failures_in_order(config: TaskBackoffConfig) -> None:
    config.task = TaskConfig(biz_prefix="test", backoff_interval=0, max_retry_count=12)
    seen: list[list[int]] = []
    errors: list[str] = []
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        seen.append([one.number for one in task.attempts])
        errors.append(str(task.error))
        if task.snooze_count == 0:
            raise Snooze(0)
        if task.attempt < 14:
            raise ValueError(task.attempt)

    async with scheduler:
        await scheduler.wait_task(await scheduler.create_task({}), 40)
    assert seen == [[], [], *([*range(max(2, n - 10), n)] for n in range(3, 15))]
    assert errors == ["None", "None", *(f"ValueError: {n}" for n in range(2, 14))]


async def test_a_redriven_task_shows_its_earlier_attempts(config: TaskBackoffConfig) -> None:
    """And no error, as for a reader: the new attempts have had none."""
    config.task = TaskConfig(biz_prefix="test", max_retry_count=0)
    seen: list[tuple[TaskError | None, list[str]]] = []
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        seen.append((task.error, [str(one.error) for one in task.attempts]))
        if task.attempt == 1:
            raise ValueError("boom")

    async with scheduler:
        task_id = await scheduler.create_task({})
        await scheduler.wait_task(task_id, 40)
        await scheduler.retry_task(task_id)
        await scheduler.wait_task(task_id, 40)
    assert seen == [(None, []), (None, ["ValueError: boom"])]


@pytest.mark.parametrize("value", ["no JSON", "[1]", "{}"])
async def test_failures_that_a_person_has_overwritten_stop_no_task(
    server: Server, config: TaskBackoffConfig, value: str
) -> None:
    scheduler = TaskBackoffScheduler(config)
    seen: list[object] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        seen.append(task.attempts)

    async with TaskBackoffScheduler(config) as producer:
        await producer.create_task({}, "x")
        await producer.mark_task_failed("x", "elsewhere")
        server.client.hset("maas:{test}:t:x", "a0", value)
    async with scheduler:
        await eventually(lambda: seen == [()], "the task has run")


def by_the_error(retry: int, error: TaskError | None) -> float:
    return 0 if error == TaskError("failed", "as told", 503) else 3000 + retry


@pytest.mark.parametrize("mode", MODES)
async def test_a_backoff_callable_gets_the_error(config: TaskBackoffConfig, mode: str) -> None:
    config.task = TaskConfig(biz_prefix="test", backoff_strategy=by_the_error, max_retry_count=1)
    async with scheduler_of(config, mode, fails, fails_in_coroutine) as scheduler:
        soon, late = [await scheduler.create_task({"kind": kind}) for kind in ("503", "bad")]
        assert (await scheduler.wait_task(soon, 40)).attempt == 2
        async for event in scheduler.watch(late):
            if event.task.retry_count == 1:
                break
        task = await scheduler.get_task(late)
    assert task is not None and task.next_execute_time is not None and task.status == "pending"
    assert (task.next_execute_time - task.attempts[0].ended_at).total_seconds() == pytest.approx(3001, abs=60)


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
