"""Outcomes of handlers, on the whole way: in groups, from pools, as subclasses, too large, or no JSON."""

import asyncio
import concurrent.futures
import dataclasses
import logging

import anyio
import pytest

from maas_backoff import (
    Discard,
    Retry,
    Snooze,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
    ThreadPoolConfig,
)

pytestmark = pytest.mark.anyio

SECRET = "what nobody may read"
MODES = ("coroutine", "thread", "process")


@dataclasses.dataclass
class RateLimited(Retry):
    seconds: float = 5


class NotFound(Discard):
    code = 404


class BadPrompt(Discard):
    def __init__(self, field: str) -> None:
        self.field = field


@dataclasses.dataclass
class Account:
    email: str


def signal(task: TaskEntity) -> object:
    """The act of a handler, by its task."""
    params = task.task_params
    match params.get("kind"):
        case "discard":
            raise ExceptionGroup("group", [ExceptionGroup("inner", [Discard("bad prompt")])])
        case "snooze":
            raise ExceptionGroup("group", [Snooze(3600)])
        case "retry":
            raise ExceptionGroup("group", [Retry(3600), Snooze(60)])
        case "rate-limited":
            raise RateLimited(3)
        case "bad-prompt":
            raise BadPrompt("prompt")
        case "not-found":
            raise NotFound
        case "gone":
            raise Discard("the image was deleted", code=410)
        case "params":
            if task.attempt == 1:
                raise Retry(0, params={"kind": "params", "text": params["char"] * params["times"]})
            return len(params["text"].encode())
        case "object":
            return Account(SECRET)
        case "bytes":
            return {"user": {"card": SECRET.encode()}}
        case "surrogate":
            return f"{SECRET} \ud800"
        case "key":
            return {(SECRET,): 1}
        case "retry-bytes":
            raise Retry(params={"token": SECRET.encode()})
        case "retry-list":
            raise Retry(params=[SECRET])  # type: ignore[arg-type] - wrong on purpose
        case "progress":
            task.update_progress(5, {"secret": SECRET})  # type: ignore[arg-type] - wrong on purpose
    return "fine"


async def signal_in_coroutine(task: TaskEntity) -> object:
    return signal(task)


def scheduler_of(config: TaskBackoffConfig, mode: str) -> TaskBackoffScheduler:
    config.threadpool = ThreadPoolConfig(
        proc_mode="process" if mode == "process" else "thread", concurrency=2, exec_timeout=20
    )
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(signal_in_coroutine if mode == "coroutine" else signal)
    return scheduler


@pytest.mark.parametrize("mode", MODES)
async def test_signals_do_what_they_say(config: TaskBackoffConfig, mode: str) -> None:
    """In groups, and as subclasses that call no `super().__init__()`: each costs its own task only."""
    kinds = ["discard", "snooze", "retry", "rate-limited", "bad-prompt"]
    scheduler = scheduler_of(config, mode)
    async with scheduler:
        await scheduler.create_tasks(TaskSpec({"kind": kind}, kind, max_retry_count=1) for kind in kinds)
        await scheduler.create_task({}, "last", priority=9)
        assert (await scheduler.wait_task("last", 40)).result == "fine"
        assert scheduler.health().ready
        for kind in ("discard", "rate-limited", "bad-prompt"):
            await scheduler.wait_task(kind, 40)
        told = {}
        for kind in kinds:
            while (task := await scheduler.get_task(kind)) is None or task.status == "processing":
                await anyio.sleep(0.01)
            told[kind] = (task.status, task.attempt, task.retry_count, task.snooze_count, str(task.error))
    assert told == {
        "discard": ("failed", 1, 0, 0, "discarded: bad prompt"),
        "snooze": ("pending", 1, 0, 1, "None"),
        "retry": ("pending", 1, 1, 0, "Retry: retry requested"),
        "rate-limited": ("failed", 2, 1, 0, "Retry: retry requested"),
        "bad-prompt": ("failed", 1, 0, 0, "discarded: discarded by its handler"),
    }


@pytest.mark.parametrize("mode", MODES)
async def test_a_discard_has_a_code(config: TaskBackoffConfig, mode: str) -> None:
    async with scheduler_of(config, mode) as scheduler:
        found = {}
        for kind in ("discard", "not-found", "gone"):
            task = await scheduler.wait_task(await scheduler.create_task({"kind": kind}), 40)
            assert task.error is not None and [one.error for one in task.attempts] == [task.error]
            found[kind] = (task.status, task.error.code, task.error.message)
    assert found == {
        "discard": ("failed", None, "bad prompt"),
        "not-found": ("failed", 404, "discarded by its handler"),
        "gone": ("failed", 410, "the image was deleted"),
    }


@pytest.mark.parametrize("mode", MODES)
async def test_no_payload_is_in_the_log_or_in_an_error(
    config: TaskBackoffConfig, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    kinds = ["object", "bytes", "surrogate", "key", "retry-bytes", "retry-list", "progress"]
    scheduler = scheduler_of(config, mode)
    async with scheduler:
        await scheduler.create_tasks(TaskSpec({"kind": kind}, kind, max_retry_count=0) for kind in kinds)
        tasks = [await scheduler.wait_task(kind, 40) for kind in kinds]
    texts = [f"{task} {task.to_dict()}" for task in tasks]
    assert [task.status for task in tasks] == ["failed"] * len(kinds)
    assert not [text for text in texts if SECRET in text]
    assert SECRET not in caplog.text
    errors = {task.task_id: str(task.error) for task in tasks}
    assert errors["bytes"].startswith("not_serializable: result.user.card: expected a JSON value")
    assert errors["bytes"].endswith(", got bytes")
    assert errors["retry-list"] == "PayloadError: params: expected a dict, or None, got list"


@pytest.mark.parametrize("mode", MODES)
async def test_the_params_of_a_retry_are_limited_in_bytes(config: TaskBackoffConfig, mode: str) -> None:
    """The limit of the queue, for whatever alphabet; and far beyond what a child's frame may have."""
    config.task.max_payload_bytes = 1000
    scheduler = scheduler_of(config, mode)
    texts = {"a": 900, "é": 900, "界": 900, "😀": 900, "m": 3_000_000}
    async with scheduler:
        for char, times in texts.items():
            await scheduler.create_task({"kind": "params", "char": char, "times": times}, char)
        told = {char: await scheduler.wait_task(char, 40) for char in texts}
    assert told.pop("a").result == 900
    for char, task in told.items():
        size = len(f'{{"kind":"params","text":"{char * texts[char]}"}}'.encode())
        expected = f"not_serializable: params: expected at most 1000 bytes of JSON, got {size}"
        assert (str(task.error), task.attempt) == (expected, 1)


def in_a_pool(task: TaskEntity) -> None:
    """Run in another process, with the entity that the handler was called with."""
    task.update_progress(50)
    raise {"discard": Discard("bad prompt"), "snooze": Snooze(3600), "retry": Retry(3600, "busy")}[task.task_id]


@pytest.mark.blocks  # the pool itself writes to a pipe
async def test_a_handler_may_give_its_task_to_a_pool_of_processes(
    scheduler: TaskBackoffScheduler, pool: concurrent.futures.ProcessPoolExecutor
) -> None:
    """The entity goes there, and what is raised there does what it says."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        async def submit() -> None:
            await asyncio.get_running_loop().run_in_executor(pool, in_a_pool, task)

        async with anyio.create_task_group() as group:
            group.start_soon(submit)

    async with scheduler:
        await scheduler.create_tasks(TaskSpec({}, name) for name in ("discard", "snooze", "retry"))
        assert str((await scheduler.wait_task("discard", 40)).error) == "discarded: bad prompt"
        for name, error in ("snooze", "None"), ("retry", "Retry: busy"):
            while (task := await scheduler.get_task(name)) is None or task.waiting_for is None or not task.attempt:
                await anyio.sleep(0.01)
            assert (task.status, task.attempt, str(task.error)) == ("pending", 1, error)
    await anyio.to_thread.run_sync(pool.shutdown)
