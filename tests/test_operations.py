"""Operations: cancel, marks, progress, delete, retry, lists; against every state a task can be in."""

import os
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import attrs
import handlers_for_children
import pytest
from support import Server, eventually

from maas_backoff import (
    InvalidValueError,
    ResultEntity,
    Retry,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskError,
    TaskSpec,
    TaskStatus,
)

pytestmark = pytest.mark.anyio

Call = Callable[[TaskBackoffScheduler, str], Awaitable[bool]]

SOON = 5.0
"""Seconds in which a cancel has long reached its attempt; a heartbeat alone would take a second of these."""


async def task_of(scheduler: TaskBackoffScheduler, task_id: str) -> TaskEntity:
    task = await scheduler.get_task(task_id)
    assert task is not None
    return task


async def status_of(scheduler: TaskBackoffScheduler, task_id: str) -> str | None:
    task = await scheduler.get_task(task_id)
    return None if task is None else task.status


# The table of the design: call by state → answer, and the state afterwards.

CALLS: dict[str, Call] = {
    "cancel_task": lambda s, i: s.cancel_task(i),
    "cancel_task running": lambda s, i: s.cancel_task(i, running=True),
    "mark_task_completed": lambda s, i: s.mark_task_completed(i, "by hand"),
    "mark_task_failed": lambda s, i: s.mark_task_failed(i, "by hand"),
    "mark_task_failed for good": lambda s, i: s.mark_task_failed(i, "by hand", retry=False),
    "mark_task_processing": lambda s, i: s.mark_task_processing(i),
    "update_task_progress": lambda s, i: s.update_task_progress(i, 33, "by hand"),
    "delete_task": lambda s, i: s.delete_task(i),
    "retry_task": lambda s, i: s.retry_task(i),
}

# In these states …
STATES = ("pending", "scheduled", "leased", "external", "completed", "failed", "cancelled", "unknown")

_PENDING = {"pending", "scheduled"}
_ALIVE = {*_PENDING, "leased", "external"}
_ENDED = {"completed", "failed", "cancelled"}

# … the call answers True and leaves the task in that state; everywhere else it answers False and changes nothing.
TABLE: dict[str, dict[str, str | None]] = {
    "cancel_task": dict.fromkeys(_PENDING, "cancelled"),
    "cancel_task running": {**dict.fromkeys(_ALIVE, "cancelled")},
    "mark_task_completed": dict.fromkeys(_ALIVE, "completed"),
    "mark_task_failed": dict.fromkeys(_ALIVE, "pending"),
    "mark_task_failed for good": dict.fromkeys(_ALIVE, "failed"),
    "mark_task_processing": dict.fromkeys(_PENDING, "processing"),
    "update_task_progress": dict.fromkeys(("leased", "external"), "processing"),
    "delete_task": dict.fromkeys(_PENDING | _ENDED | {"external"}),
    "retry_task": dict.fromkeys(("failed", "cancelled"), "pending"),
}


async def put(scheduler: TaskBackoffScheduler, state: str) -> None:
    """Make the task "x" and bring it into a state."""
    if state == "unknown":
        return
    await scheduler.create_task({}, "x", backoff_interval=60, delay=60 if state == "scheduled" else 0)
    match state:
        case "external":
            assert await scheduler.mark_task_processing("x")
        case "completed":
            assert await scheduler.mark_task_completed("x", "before")
        case "failed":
            assert await scheduler.mark_task_failed("x", "before", retry=False)
        case "cancelled":
            assert await scheduler.cancel_task("x")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("call", CALLS)
async def test_each_call_in_each_state(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, call: str, state: str
) -> None:
    worker = TaskBackoffScheduler(config)
    holds = anyio.Event()

    @worker.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        holds.set()
        await anyio.sleep(60)
        return "by the handler"

    await put(scheduler, state)
    if state == "leased":
        await worker.start()
        await holds.wait()
    before = await scheduler.get_task("x")
    expected = TABLE[call].get(state, ...)
    assert await CALLS[call](scheduler, "x") is (expected is not ...)
    if expected is ...:
        after = await scheduler.get_task("x")
        assert _comparable(after) == _comparable(before)
    else:
        if (call, state) == ("cancel_task running", "leased"):
            await scheduler.wait_task("x", timeout=SOON)
        assert await status_of(scheduler, "x") == expected
    if (call, expected) == ("update_task_progress", "processing"):
        task = await task_of(scheduler, "x")
        assert (task.progress, task.progress_message) == (33, "by hand")
    if state == "leased":
        # The rest of the attempt is stopped, not waited for.
        await scheduler.cancel_task("x", running=True)
        await worker.shutdown()


def _comparable(task: TaskEntity | None) -> dict[str, Any] | None:
    """Return all but what depends on the time of looking."""
    return None if task is None else {**task.to_dict(), "waiting_for": None}


# Marks


async def test_a_mark_of_failure_counts_and_retries_like_a_failed_attempt(scheduler: TaskBackoffScheduler) -> None:
    """With the task's own backoff and retries, each with its record; the last one ends it."""
    await scheduler.create_task({}, "x", max_retry_count=2, backoff_interval=60, backoff_strategy="fixed")
    for n in (1, 2):
        assert await scheduler.mark_task_failed("x", f"reason {n}")
        task = await task_of(scheduler, "x")
        assert (task.status, task.retry_count, task.attempt) == ("pending", n, 0)
        assert [attempt.error.message for attempt in task.attempts] == [f"reason {k}" for k in range(1, n + 1)]
        assert task.next_execute_time is not None
        assert 50 < task.next_execute_time.timestamp() - time.time() <= 61
    assert await scheduler.mark_task_failed("x", "reason 3")
    task = await task_of(scheduler, "x")
    assert (task.status, task.retry_count, str(task.error)) == ("failed", 2, "failed: reason 3")
    assert [attempt.error.message for attempt in task.attempts] == ["reason 1", "reason 2", "reason 3"]
    assert not await scheduler.mark_task_failed("x", "reason 4")


async def test_a_failure_that_is_marked_final_is(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_task({}, "x")
    assert await scheduler.mark_task_failed("x", "no use", retry=False, code=400)
    task = await task_of(scheduler, "x")
    assert (task.status, task.retry_count, task.error) == ("failed", 0, TaskError("failed", "no use", 400))
    assert [attempt.error for attempt in task.attempts] == [task.error]


@pytest.mark.parametrize("mark", ["mark_task_completed", "mark_task_failed", "mark_task_failed for good"])
async def test_a_mark_takes_the_right_to_settle_from_a_running_attempt(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, caplog: pytest.LogCaptureFixture, mark: str
) -> None:
    """The mark's result stands; what the attempt brings is refused, and the worker says so."""
    begun, go_on = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        begun.set()
        await go_on.wait()
        return "by the handler"

    async with scheduler, TaskBackoffScheduler(config) as outside:
        await scheduler.create_task({}, "x", backoff_interval=60)
        await begun.wait()
        assert await CALLS[mark](outside, "x")
        marked = await task_of(outside, "x")
        go_on.set()
        await eventually(lambda: "came too late (lost)" in caplog.text, "the outcome is refused")
        assert _comparable(await task_of(outside, "x")) == _comparable(marked)
    assert (marked.status, marked.result) == {
        "mark_task_completed": ("completed", "by hand"),
        "mark_task_failed": ("pending", None),
        "mark_task_failed for good": ("failed", None),
    }[mark]


async def test_an_attempt_without_its_token_is_stopped(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig
) -> None:
    """The next heartbeat tells; its slot is free again."""
    config.threadpool.concurrency = 1
    begun, stopped = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        if task.task_id == "other":
            return "ran"
        begun.set()
        try:
            await anyio.sleep(60)
        finally:
            stopped.set()
        return "by the handler"

    async with scheduler:
        await scheduler.create_task({}, "x")
        await begun.wait()
        assert await scheduler.mark_task_completed("x", "by hand")
        with anyio.fail_after(SOON):
            await stopped.wait()
        await scheduler.create_task({}, "other")
        assert (await scheduler.wait_task("other", timeout=20)).result == "ran"
        assert (await task_of(scheduler, "x")).result == "by hand"


@pytest.mark.long
async def test_a_task_marked_processing_is_left_to_the_other_hand(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig
) -> None:
    """No worker runs it and no reaper takes it, over a lease; a mark of failure puts it back into the queue."""
    ran: list[str] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        ran.append(task.task_id)
        return "by the handler"

    await scheduler.create_task({}, "x")
    assert await scheduler.mark_task_processing("x")
    async with scheduler:
        await scheduler.create_task({}, "other")
        await scheduler.wait_task("other", timeout=20)
        assert (await scheduler.get_queue_stats()).processing_count == 1
        await anyio.sleep(config.scheduler.lease * 1.5)
        task = await task_of(scheduler, "x")
        assert (task.status, task.lost_count, ran) == ("processing", 0, ["other"])
        assert task.token > 0
        assert task.started_at is not None
        assert await scheduler.mark_task_failed("x", "the other hand gave up")
        done = await scheduler.wait_task("x", timeout=20)
    assert (done.result, done.retry_count, done.attempt) == ("by the handler", 1, 1)


async def test_a_retried_task_has_all_its_retries_again(scheduler: TaskBackoffScheduler) -> None:
    """Its counts begin anew; attempts are numbered on, and their records are kept."""

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> object:
        return ResultEntity.fail(1, "no")

    async with scheduler:
        await scheduler.create_task({}, "x", max_retry_count=1, backoff_interval=0)
        first = await scheduler.wait_task("x", timeout=20)
        assert (first.attempt, first.retry_count) == (2, 1)
        assert await scheduler.retry_task("x")
        await eventually(lambda: _has_made(scheduler, 4), "both its attempts")
        second = await scheduler.wait_task("x", timeout=20)
    assert (second.status, second.attempt, second.retry_count) == ("failed", 4, 1)
    assert [attempt.number for attempt in second.attempts][-2:] == [3, 4]


async def _has_made(scheduler: TaskBackoffScheduler, attempts: int) -> bool:
    task = await task_of(scheduler, "x")
    return task.attempt == attempts and task.status.finished


# Cancels


async def test_a_cancel_reaches_a_coroutine_in_another_worker(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig
) -> None:
    """At once, not at the next heartbeat; the handler may clean up; no retry is used."""
    config.scheduler.lease = 60  # a heartbeat comes every 20 seconds
    begun, stopped = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        begun.set()
        try:
            await anyio.sleep(60)
        finally:
            stopped.set()

    async with scheduler, TaskBackoffScheduler(config) as outside:
        await outside.create_task({}, "x")
        await begun.wait()
        assert not await outside.cancel_task("x")
        assert not stopped.is_set()
        asked = time.monotonic()
        assert await outside.cancel_task("x", running=True)
        done = await outside.wait_task("x", timeout=20)
        assert time.monotonic() - asked < SOON
    assert stopped.is_set()
    assert (done.status, done.retry_count, done.attempts) == ("cancelled", 0, ())
    # The request ended with the attempt: the task may be tried again.
    async with TaskBackoffScheduler(config) as producer:
        assert await producer.retry_task("x")
        assert await status_of(producer, "x") == "pending"


async def test_a_cancelled_thread_keeps_its_slot_until_it_ends(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig
) -> None:
    """Nothing can stop a thread: the task is cancelled at once, and nothing else runs in its slot meanwhile."""
    config.threadpool.concurrency = 1
    begun, go_on = threading.Event(), threading.Event()
    ran: list[str] = []

    @scheduler.set_custom_task_handler
    def handler(task: TaskEntity) -> str:
        ran.append(task.task_id)
        begun.set()
        if task.task_id == "x":
            go_on.wait(30)
        return "by the handler"

    async with scheduler, TaskBackoffScheduler(config) as outside:
        await outside.create_task({}, "x")
        await eventually(begun.is_set, "it runs")
        asked = time.monotonic()
        assert await outside.cancel_task("x", running=True)
        done = await outside.wait_task("x", timeout=20)
        assert time.monotonic() - asked < SOON
        assert (done.status, done.result) == ("cancelled", None)
        await outside.create_task({}, "next")
        await anyio.sleep(1.5 * config.scheduler.interval)
        assert ran == ["x"]
        assert await status_of(outside, "next") == "pending"
        go_on.set()
        assert (await outside.wait_task("next", timeout=20)).status == "completed"
        assert await status_of(outside, "x") == "cancelled"


async def test_a_cancelled_child_process_is_killed(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, tmp_path: Path
) -> None:
    config.threadpool.proc_mode = "process"
    scheduler.set_custom_task_handler(handlers_for_children.sleeps)
    file = tmp_path / "pid"
    async with scheduler, TaskBackoffScheduler(config) as outside:
        await outside.create_task({"file": str(file)}, "x")
        await eventually(lambda: file.exists() and file.read_text(), "the child runs")
        pid = int(file.read_text())
        assert _lives(pid)
        asked = time.monotonic()
        assert await outside.cancel_task("x", running=True)
        done = await outside.wait_task("x", timeout=20)
        assert time.monotonic() - asked < SOON
        await eventually(lambda: not _lives(pid), "the child is gone", SOON)
    assert (done.status, done.retry_count, done.attempts) == ("cancelled", 0, ())


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("state", ["pending", "leased", "external"])
async def test_fifty_cancels_at_once_are_one(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, state: str
) -> None:
    """One final state, cancelled once. One caller is told that it has cancelled a pending task."""
    begun = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        begun.set()
        await anyio.sleep(60)

    answers: list[bool] = []
    outside = TaskBackoffScheduler(config)

    async def cancel() -> None:
        answers.append(await outside.cancel_task("x", running=True))

    await put(outside, state)
    if state == "leased":
        await scheduler.start()
        await begun.wait()
    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(cancel)
    done = await outside.wait_task("x", timeout=SOON)
    assert done.status == "cancelled"
    assert (await outside.get_queue_stats()).cancelled_count == 1
    assert any(answers)
    if state != "leased":
        assert answers.count(True) == 1
    # Afterwards there is nothing to cancel.
    assert not await outside.cancel_task("x", running=True)
    await outside.shutdown()


async def test_a_handler_that_completes_in_spite_of_a_cancel_has_completed(scheduler: TaskBackoffScheduler) -> None:
    begun = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        begun.set()
        try:
            await anyio.sleep(60)
        except anyio.get_cancelled_exc_class():
            return "done all the same"
        return "slept"

    async with scheduler:
        await scheduler.create_task({}, "x")
        await begun.wait()
        assert await scheduler.cancel_task("x", running=True)
        done = await scheduler.wait_task("x", timeout=SOON)
    assert (done.status, done.result) == ("completed", "done all the same")


# Progress


async def test_progress_from_a_thread(scheduler: TaskBackoffScheduler) -> None:
    """While it runs, the newest value; a message stays until there is another."""
    go_on = threading.Event()

    @scheduler.set_custom_task_handler
    def handler(task: TaskEntity) -> None:
        for percent in range(61):
            task.update_progress(percent)
        task.update_progress(61, "in a thread")
        task.update_progress(62.5)
        go_on.wait(30)

    async with scheduler:
        await scheduler.create_task({}, "x")
        await eventually(lambda: _has_noted(scheduler, 62.5, "in a thread"), "the progress is noted")
        go_on.set()
        done = await scheduler.wait_task("x", timeout=20)
    assert (done.progress, done.progress_message) == (100, "in a thread")


async def test_progress_from_a_child_process(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, tmp_path: Path
) -> None:
    config.threadpool.proc_mode = "process"
    scheduler.set_custom_task_handler(handlers_for_children.reports)
    async with scheduler:
        await scheduler.create_task({"file": str(tmp_path / "go")}, "x")
        await eventually(lambda: _has_noted(scheduler, 40, "in a child"), "the progress is noted")
        (tmp_path / "go").touch()
        assert (await scheduler.wait_task("x", timeout=20)).result != os.getpid()


async def _has_noted(scheduler: TaskBackoffScheduler, progress: float, message: str) -> bool:
    task = await scheduler.get_task("x")
    return task is not None and (task.progress, task.progress_message) == (progress, message)


async def test_progress_by_the_scheduler_from_within_the_handler(scheduler: TaskBackoffScheduler) -> None:
    """Sent at once, under the token of the attempt; for another task it is a hand from outside."""
    seen: list[object] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        seen.append(await scheduler.update_task_progress(task.task_id, 25, "a quarter"))
        noted = await task_of(scheduler, task.task_id)
        seen.append((noted.progress, noted.progress_message))
        seen.append(await scheduler.update_task_progress("external", 75))
        seen.append(await scheduler.update_task_progress("pending", 75))

    await scheduler.create_tasks([TaskSpec({}, "external"), TaskSpec({}, "pending", delay=60), TaskSpec({}, "x")])
    assert await scheduler.mark_task_processing("external")
    async with scheduler:
        await scheduler.wait_task("x", timeout=20)
    assert seen == [True, (25, "a quarter"), True, False]


async def test_progress_is_refused_once_the_task_is_somebody_elses(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig
) -> None:
    """From its own handler, after its token was taken: also when another attempt of the same task runs by now."""
    config.scheduler.lease = 60  # so that no heartbeat stops the old attempt before it asks
    config.threadpool.concurrency = 2
    first_has_begun, second_has_begun, go_on, told = (anyio.Event() for _ in range(4))
    answers: dict[int, bool] = {}

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        if task.attempt == 1:
            first_has_begun.set()
            await second_has_begun.wait()
            task.update_progress(99, "from the past")
        else:
            second_has_begun.set()
            await told.wait()
        answers[task.attempt] = await scheduler.update_task_progress(task.task_id, 10 * task.attempt)
        told.set()
        await go_on.wait()
        return f"by attempt {task.attempt}"

    async with scheduler:
        await eventually(scheduler.workers, "the first heartbeat is over")
        await scheduler.create_task({}, "x", backoff_interval=0)
        await first_has_begun.wait()
        assert await scheduler.mark_task_failed("x", "taken away")
        await eventually(lambda: len(answers) == 2, "both have asked")
        assert answers == {1: False, 2: True}
        task = await task_of(scheduler, "x")
        assert (task.attempt, task.progress, task.progress_message) == (2, 20, None)
        go_on.set()
        assert (await scheduler.wait_task("x", timeout=20)).result == "by attempt 2"


@pytest.mark.parametrize("progress", [-1, 101, float("nan"), float("inf"), True, "50", None])
async def test_progress_is_a_number_of_percent(scheduler: TaskBackoffScheduler, progress: Any) -> None:
    with pytest.raises(InvalidValueError, match="progress: expected a number from 0 to 100"):
        await scheduler.update_task_progress("x", progress)


# Lists


@pytest.mark.parametrize("limit", [1, 7, 100, 1000])
async def test_pages_show_each_task_once(scheduler: TaskBackoffScheduler, server: Server, limit: int) -> None:
    """250 tasks per state, from all indexes of the state, also where their scores are equal."""
    names = [f"task-{n:03}" for n in range(250)]
    await scheduler.create_tasks(TaskSpec({}, f"ready {name}", delay=0) for name in names[:200])
    await scheduler.create_tasks(TaskSpec({}, f"later {name}", delay=60) for name in names[:30])
    await scheduler.create_tasks(TaskSpec({}, f"gpu {name}", min_gpu_memory_gb=80) for name in names[:20])
    # All ready tasks at one score: then they are in the order of their ids.
    server.client.zadd("maas:{test}:ready", {f"ready {name}": 7.4e17 for name in names[:200]})
    found = await _walk(scheduler, TaskStatus.PENDING, limit)
    expected = [f"{where} {name}" for where, to in [("ready", 200), ("gpu", 20), ("later", 30)] for name in names[:to]]
    assert found == expected


async def _walk(scheduler: TaskBackoffScheduler, status: str, limit: int, **options: Any) -> list[str]:
    """Return the ids of all tasks in a state, in order, read page by page."""
    ids: list[str] = []
    cursor = options.pop("cursor", None)
    for _ in range(1000):
        page = await scheduler.list_tasks(status, limit=limit, cursor=cursor, **options)
        assert len(page.tasks) <= limit
        assert {task.status for task in page.tasks} <= {status}
        ids += [task.task_id for task in page.tasks]
        cursor = page.cursor
        if cursor is None:
            return ids
    raise AssertionError("no end")


async def test_each_state_has_its_list(scheduler: TaskBackoffScheduler) -> None:
    names = [f"task-{n:02}" for n in range(25)]
    await scheduler.create_tasks(TaskSpec({"n": name}, name) for name in names)
    for name in names[:5]:
        assert await scheduler.mark_task_processing(name)
    for name in names[5:10]:
        assert await scheduler.mark_task_completed(name)
    for name in names[10:15]:
        assert await scheduler.mark_task_failed(name, retry=False)
    for name in names[15:20]:
        assert await scheduler.cancel_task(name)
    for n, status in enumerate(["processing", "completed", "failed", "cancelled", "pending"]):
        assert sorted(await _walk(scheduler, status, 2)) == names[5 * n : 5 * n + 5]
    page = await scheduler.list_tasks("pending", limit=1)
    assert page.tasks[0] == await scheduler.get_task("task-20")


async def test_a_list_in_reverse_gives_what_ended_last_first(scheduler: TaskBackoffScheduler) -> None:
    """In pages as well, and through all indexes of a state."""
    names = [f"task-{n}" for n in range(7)]
    for name in names:
        await scheduler.create_task({}, name)
        await scheduler.mark_task_failed(name, retry=False)
    assert await _walk(scheduler, "failed", 2, reverse=True) == names[::-1]
    later = await scheduler.create_tasks(TaskSpec({}, delay=60 * n) for n in (2, 1))
    now = await scheduler.create_task({})
    assert sorted(await _walk(scheduler, "pending", 2, reverse=True)) == sorted([*later, now])


async def test_a_list_goes_on_where_it_was_though_other_tasks_come_and_go(scheduler: TaskBackoffScheduler) -> None:
    """Also when nobody waits any more for the GPU at which a page has ended, or somebody does for another one."""
    await scheduler.create_tasks(TaskSpec({}, f"gpu-{gb:02}", min_gpu_memory_gb=gb) for gb in range(1, 13))
    later = [f"later-{n}" for n in range(3)]
    await scheduler.create_tasks(TaskSpec({}, name, delay=60 + n) for n, name in enumerate(later))
    page = await scheduler.list_tasks("pending", limit=6)
    seen = [task.task_id for task in page.tasks]
    assert len(seen) == 6 and all(name.startswith("gpu-") for name in seen)
    for name in seen:
        await scheduler.cancel_task(name)
    await scheduler.create_task({}, "new", min_gpu_memory_gb=0.25)
    seen += await _walk(scheduler, "pending", 2, cursor=page.cursor)
    assert len(seen) == len(set(seen)) and seen[-3:] == later
    assert {name for name in seen if name.startswith("gpu-")} == {f"gpu-{gb:02}" for gb in range(1, 13)}


async def test_a_list_of_what_is_due_from_a_moment_on(scheduler: TaskBackoffScheduler) -> None:
    """Tasks that are due before, or at once, are left out."""
    await scheduler.create_tasks([{}, TaskSpec({}, "first", delay=60), TaskSpec({}, "third", delay=180)])
    await scheduler.create_task({}, "second", delay=120)
    from_then = datetime.now(UTC) + timedelta(seconds=90)
    assert await _walk(scheduler, "pending", 1, due_from=from_then) == ["second", "third"]
    assert await _walk(scheduler, "pending", 1, due_from=timedelta(seconds=150)) == ["third"]


async def test_a_brief_list_leaves_out_what_may_be_large(scheduler: TaskBackoffScheduler) -> None:
    """And nothing else of a task."""

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        if task.attempt == 1:
            raise Retry(params={"other": "params"})
        return "a result"

    await scheduler.create_task({"prompt": "a cat"}, "x", priority=5, max_retry_count=7)
    async with scheduler:
        whole = await scheduler.wait_task("x", 20)
    (brief,) = (await scheduler.list_tasks("completed", brief=True)).tasks
    assert whole.attempts and whole.result == "a result"
    assert brief == attrs.evolve(whole, task_params={}, result=None, attempts=())


async def test_a_list_of_leased_tasks(scheduler: TaskBackoffScheduler) -> None:
    """Tasks that workers run, and tasks that others do, are in one state."""
    begun: list[str] = []
    go_on = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        begun.append(task.task_id)
        await go_on.wait()

    await scheduler.create_task({}, "external")
    await scheduler.mark_task_processing("external")
    async with scheduler:
        await scheduler.create_tasks(TaskSpec({}, name) for name in ("a", "b", "c"))
        await eventually(lambda: len(begun) == 3, "three run")
        assert await _walk(scheduler, "processing", 2) == ["a", "b", "c", "external"]
        go_on.set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"status": "done"}, "status: expected one of pending, processing, completed, failed, cancelled"),
        ({"status": "pending", "limit": 0}, "limit: expected a whole number from 1 to 1000"),
        ({"status": "pending", "limit": 1001}, "limit: expected a whole number from 1 to 1000"),
        ({"status": "pending", "limit": True}, "limit: expected a whole number from 1 to 1000"),
        ({"status": "pending", "cursor": "ready"}, "cursor: expected the cursor of a page, or None"),
        ({"status": "pending", "cursor": ""}, "cursor: expected the cursor of a page, or None"),
        ({"status": "pending", "cursor": "ready 0x10 0"}, "cursor: expected the cursor of a page, or None"),
        ({"status": "pending", "cursor": "READY -inf 0"}, "cursor: expected the cursor of a page, or None"),
        ({"status": "pending", "cursor": 5}, "cursor: expected the cursor of a page, or None"),
        ({"status": "pending", "due_from": datetime(2030, 1, 1)}, "due_from: expected an aware datetime, a timedelta"),  # noqa: DTZ001 - what is refused
        ({"status": "pending", "waiting_for": "room"}, 'waiting_for: expected "slot", "gpu", or None, got'),
        ({"status": "pending", "waiting_for": ["gpu"]}, 'waiting_for: expected "slot", "gpu", or None, got'),
        ({"status": "pending", "reverse": "no"}, "reverse: expected True or False, got 'no'"),
        ({"status": "failed", "waiting_for": "gpu"}, "waiting_for: expected None but for pending tasks"),
        ({"status": "failed", "due_from": datetime.now(UTC)}, "due_from: expected None but for pending tasks"),
        ({"status": "pending", "cursor": "ready e 0"}, "cursor: expected the cursor of a page, or None"),
        (
            {"status": "pending", "cursor": "ready 1.5 99999999999999999999"},
            "cursor: expected the cursor of a page, or None",
        ),
    ],
)
async def test_what_a_list_cannot_be(scheduler: TaskBackoffScheduler, arguments: dict[str, Any], message: str) -> None:
    """Checked at the door: a cursor may come from a stranger's query string."""
    await scheduler.create_task({}, "x")
    with pytest.raises(InvalidValueError, match=message):
        await scheduler.list_tasks(**arguments)


# Deletes, times to live, counts


@pytest.mark.parametrize("state", ["pending", "scheduled", "external", "completed", "failed", "cancelled"])
async def test_a_deleted_task_leaves_nothing(scheduler: TaskBackoffScheduler, server: Server, state: str) -> None:
    """Not its hash, not an entry in any index; its id is free, also for other params."""
    await put(scheduler, state)
    assert await scheduler.delete_task("x")
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.processing_count) == (0, 0)
    assert (stats.completed_count, stats.failed_count, stats.cancelled_count) == (0, 0, 0)
    left = {key.partition(b"}:")[2] for key in server.client.scan_iter()}
    left -= {b"meta", b"policies", b"marker", b"totals", b"errors"}
    kept = (b"h:", b"h10:", b"h60:", b"call:")
    assert not [name for name in left if not name.startswith(kept)], "but what is the queue's, and answers to calls"
    assert await scheduler.create_task({"other": "params"}, "x") == "x"


async def test_finished_tasks_are_kept_for_their_time(scheduler: TaskBackoffScheduler, server: Server) -> None:
    """result_ttl for completed and cancelled, failed_ttl for failed; a task's own come before the queue's."""
    scheduler.config.task.result_ttl, scheduler.config.task.failed_ttl = 100, 200
    for name, options in {"": {}, "own ": {"result_ttl": 30, "failed_ttl": 40}}.items():
        await scheduler.create_tasks(TaskSpec({}, name + end, **options) for end in ("done", "failed", "cancelled"))
        await scheduler.create_task({}, name + "stopped", **options)
        assert await scheduler.mark_task_completed(name + "done")
        assert await scheduler.mark_task_failed(name + "failed", retry=False)
        assert await scheduler.cancel_task(name + "cancelled")
        assert await scheduler.mark_task_processing(name + "stopped")
        assert await scheduler.cancel_task(name + "stopped", running=True)
    ends = {"done": 100, "failed": 200, "cancelled": 100, "stopped": 100}
    ends |= {"own done": 30, "own failed": 40, "own cancelled": 30, "own stopped": 30}
    kept = {name: server.client.ttl(f"maas:{{test}}:t:{name}") for name in ends}
    assert all(ttl - 5 <= kept[name] <= ttl for name, ttl in ends.items()), kept


async def test_a_worker_keeps_what_it_finishes_for_the_tasks_time(
    scheduler: TaskBackoffScheduler, server: Server
) -> None:
    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> object:
        return ResultEntity.ok() if task.task_id == "done" else ResultEntity.fail()

    async with scheduler:
        for name in ("done", "failed"):
            await scheduler.create_task({}, name, max_retry_count=0, result_ttl=30, failed_ttl=40)
            await scheduler.wait_task(name, timeout=20)
    kept = [server.client.ttl(f"maas:{{test}}:t:{name}") for name in ("done", "failed")]
    assert 25 <= kept[0] <= 30 < 35 <= kept[1] <= 40


async def test_the_counts_of_a_queue(scheduler: TaskBackoffScheduler) -> None:
    """Each task in one state; scheduled is a part of pending; the age is that of the task that is due longest."""
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.scheduled_count, stats.oldest_pending_age) == (0, 0, 0)
    await scheduler.create_task({}, "later", delay=60)
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.scheduled_count, stats.oldest_pending_age) == (1, 1, 0)
    names = ["ready", "gpu", "external", "completed", "failed", "cancelled"]
    created = time.monotonic()
    await scheduler.create_task({}, "gpu", min_gpu_memory_gb=80)
    await anyio.sleep(0.2)
    await scheduler.create_tasks(TaskSpec({}, name) for name in names if name != "gpu")
    await scheduler.mark_task_processing("external")
    await scheduler.mark_task_completed("completed")
    await scheduler.mark_task_failed("failed", retry=False)
    await scheduler.cancel_task("cancelled")
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.scheduled_count, stats.processing_count) == (3, 1, 1)
    assert (stats.completed_count, stats.failed_count, stats.cancelled_count) == (1, 1, 1)
    assert 0.2 <= stats.oldest_pending_age <= time.monotonic() - created + 0.01
    await scheduler.delete_task("gpu")
    assert (await scheduler.get_queue_stats()).oldest_pending_age < time.monotonic() - created - 0.1


async def test_a_retried_task_has_been_waiting_since_its_new_due_time(scheduler: TaskBackoffScheduler) -> None:
    """Not since it was created."""
    await scheduler.create_task({}, "x", backoff_interval=0)
    await anyio.sleep(0.3)
    before = (await scheduler.get_queue_stats()).oldest_pending_age
    await scheduler.mark_task_failed("x")
    assert (await scheduler.get_queue_stats()).oldest_pending_age < 0.3 <= before


async def test_a_scheduler_without_a_handler_claims_nothing(
    scheduler: TaskBackoffScheduler, server: Server, config: TaskBackoffConfig
) -> None:
    """A producer: its tasks wait, no worker is known, and it may be started, stopped and used in any order."""
    await scheduler.create_task({}, "before")
    async with scheduler:
        await scheduler.create_task({}, "during")
        await anyio.sleep(1.2 * config.scheduler.interval)
        assert await status_of(scheduler, "before") == await status_of(scheduler, "during") == "pending"
        assert not server.client.exists("maas:{test}:workers", "maas:{test}:leases")
    await scheduler.shutdown()
    assert await scheduler.cancel_task("before")


async def test_a_mark_from_outside_has_the_times_of_the_server(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock of the process that marks the task does not matter."""
    task_id = await scheduler.create_task({})
    assert await scheduler.mark_task_processing(task_id)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600)
    assert await scheduler.mark_task_failed(task_id, retry=False)
    (failed,) = (await task_of(scheduler, task_id)).attempts
    assert timedelta() <= failed.ended_at - failed.started_at < timedelta(minutes=1)
