"""From `create_task` to a result, on each kind of server."""

import itertools
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from support import Server, eventually, quick_config

from maas_backoff import (
    Discard,
    ResultEntity,
    Retry,
    Snooze,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConflictError,
    TaskEntity,
    TaskNotFoundError,
    TaskOptions,
    TaskSpec,
    TaskTimeoutError,
)

pytestmark = pytest.mark.anyio


async def test_a_task_goes_from_its_creation_to_its_result(any_server: Server) -> None:
    """The same on every server: created, run once, progress noted, result stored, counted."""
    scheduler = TaskBackoffScheduler(quick_config(any_server.storage))
    half_way = anyio.Event()
    go_on = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> object:
        task.update_progress(50, "half way")
        half_way.set()
        await go_on.wait()
        return ResultEntity.ok({"echo": task.task_params["text"]})

    async with scheduler:
        task_id = await scheduler.create_task({"text": "héllo"}, task_id="weird id/{x}:*'")
        await half_way.wait()

        async def noted() -> bool:
            task = await scheduler.get_task(task_id)
            return task is not None and task.progress == 50

        await eventually(noted, "the progress is noted")
        task = await scheduler.get_task(task_id)
        assert task is not None
        assert (task.status, task.progress_message, task.attempt, task.result) == ("processing", "half way", 1, None)
        assert (await scheduler.get_queue_stats()).processing_count == 1
        go_on.set()
        done = await scheduler.wait_task(task_id, timeout=20)
    assert (done.status, done.result, done.progress, done.error) == ("completed", {"echo": "héllo"}, 100, None)
    assert done.created_at <= done.started_at <= done.finished_at  # type: ignore[operator] - none of them is None
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.processing_count, stats.completed_count) == (0, 0, 1)
    await scheduler.shutdown()


async def test_a_failing_task_is_retried_with_backoff_and_its_attempts_are_kept(any_server: Server) -> None:
    """Three retries, so four attempts, never before their time, each with its error."""
    scheduler = TaskBackoffScheduler(quick_config(any_server.storage))
    starts: list[float] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        starts.append(time.monotonic())
        raise ValueError(f"attempt {task.attempt}, retry {task.retry_count}")

    async with scheduler:
        done = await scheduler.wait_task(await scheduler.create_task({}), timeout=20)
    assert (done.status, done.attempt, done.retry_count) == ("failed", 4, 3)
    assert str(done.error) == "ValueError: attempt 4, retry 3"
    assert [str(attempt.error) for attempt in done.attempts] == [
        f"ValueError: attempt {n}, retry {n - 1}" for n in range(1, 5)
    ]
    assert all('raise ValueError(f"attempt' in attempt.traceback for attempt in done.attempts)
    assert all(gap >= planned for gap, planned in zip(_gaps(starts), [0.05, 0.1, 0.2], strict=True))


def _gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def test_only_the_last_ten_failed_attempts_are_kept(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> object:
        return ResultEntity.fail(task.attempt, "no")

    async with scheduler:
        task_id = await scheduler.create_task({}, max_retry_count=12, backoff_interval=0)
        done = await scheduler.wait_task(task_id, timeout=20)
    assert [attempt.number for attempt in done.attempts] == list(range(4, 14))
    assert [attempt.error.code for attempt in done.attempts] == list(range(4, 14))


async def test_a_handler_says_what_shall_happen(scheduler: TaskBackoffScheduler) -> None:
    """Retry and Snooze come back, with and without using a retry; Discard and a last failure end the task."""
    seen: dict[str, int] = {}

    @scheduler.set_custom_task_handler
    def handler(task: TaskEntity) -> object:
        seen[task.task_id] = seen.get(task.task_id, 0) + 1
        match task.task_id:
            case "retry" if task.retry_count == 0:
                raise Retry(after=0.01, reason="busy")
            case "snooze" if task.snooze_count < 3:
                raise Snooze(after=timedelta(milliseconds=10))
            case "snooze for ever":
                raise Snooze(after=0)
            case "discard":
                raise Discard("bad prompt")
            case "fail":
                return ResultEntity.fail(42, "no model")
            case _:
                return "done"

    async with scheduler:
        options: dict[str, TaskOptions] = {"fail": {"max_retry_count": 0}, "snooze for ever": {"max_snoozes": 2}}
        names = ["retry", "snooze", "snooze for ever", "discard", "fail"]
        await scheduler.create_tasks(TaskSpec({}, name, **options.get(name, {})) for name in names)
        done = {name: await scheduler.wait_task(name, timeout=20) for name in names}
    assert [done[name].status for name in names] == ["completed", "completed", "failed", "failed", "failed"]
    assert (done["retry"].retry_count, done["retry"].attempts[0].error.message) == (1, "busy")
    assert (done["snooze"].retry_count, done["snooze"].snooze_count, done["snooze"].attempts) == (0, 3, ())
    assert str(done["snooze for ever"].error) == "snoozed_too_often: snoozed 2 times"
    assert str(done["discard"].error) == "discarded: bad prompt"
    assert (done["fail"].error.code, done["fail"].error.message) == (42, "no model")  # type: ignore[union-attr] - there is an error
    assert seen == {"retry": 2, "snooze": 4, "snooze for ever": 3, "discard": 1, "fail": 1}


async def test_an_id_is_an_idempotency_key(scheduler: TaskBackoffScheduler) -> None:
    """The same id with equal params is the same task, in any state; with others it is a conflict."""
    assert await scheduler.create_task({"a": 1, "b": [2]}, "x") == "x"
    assert await scheduler.create_task({"b": (2,), "a": 1}, "x", priority=5, delay=60) == "x"
    with pytest.raises(TaskConflictError) as conflict:
        await scheduler.create_task({"a": 2}, "x")
    assert conflict.value.conflicts == ["x"]
    with pytest.raises(TaskConflictError) as conflict:
        await scheduler.create_tasks(
            [TaskSpec({"a": 2}, "x"), TaskSpec({}, "y"), TaskSpec({}, "y"), TaskSpec({"z": 1}, "y")]
        )
    assert (conflict.value.conflicts, conflict.value.created) == (["x", "y"], ["y", "y"])
    assert (await scheduler.get_queue_stats()).pending_count == 2
    await scheduler.mark_task_completed("x", "by hand")
    assert await scheduler.create_task({"a": 1, "b": [2]}, "x") == "x"
    task = await scheduler.get_task("x")
    assert task is not None
    assert task.result == "by hand"


async def test_fifty_creators_of_one_id_make_one_task(scheduler: TaskBackoffScheduler) -> None:
    ids: list[str] = []

    async def create() -> None:
        ids.append(await scheduler.create_task({"a": 1}, "x"))

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(create)
    assert ids == ["x"] * 50
    assert (await scheduler.get_queue_stats()).pending_count == 1


async def test_delayed_tasks_wait_for_their_time(scheduler: TaskBackoffScheduler) -> None:
    """By delay or moment; a moment in the past is now; none starts early; an idle worker starts each on time."""
    started: dict[str, datetime] = {}

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        started[task.task_id] = datetime.now(UTC)

    async with scheduler:
        now = datetime.now(UTC)
        await scheduler.create_task({}, "past", run_at=now - timedelta(days=1))
        await scheduler.create_task({}, "delay", delay=0.3)
        await scheduler.create_task({}, "moment", run_at=now + timedelta(seconds=0.5))
        task = await scheduler.get_task("moment")
        assert task is not None
        assert task.waiting_for is not None
        assert task.waiting_for.startswith("due at ")
        assert task.next_execute_time is not None
        assert abs(task.next_execute_time - now - timedelta(seconds=0.5)) < timedelta(milliseconds=2)
        for name in ("past", "delay", "moment"):
            await scheduler.wait_task(name, timeout=20)
    assert started["delay"] - now >= timedelta(seconds=0.3)
    assert started["moment"] - now >= timedelta(seconds=0.499)


async def test_what_somebody_wrote_over_by_hand_stops_nobody(scheduler: TaskBackoffScheduler, server: Server) -> None:
    """Params that are not JSON fail as corrupt, and can be read; a key of another type is no task; the others run."""

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        return task.task_id

    for task_id in ("broken", "no params", "no hash", "good"):
        await scheduler.create_task({}, task_id)
    key = "maas:{test}:t:"
    server.client.hset(f"{key}broken", "p", "{x")
    server.client.hset(f"{key}no params", "p", b"\xff")
    server.client.delete(f"{key}no hash")
    server.client.set(f"{key}no hash", "x", ex=60)
    async with scheduler:
        assert (await scheduler.wait_task("good", 20)).result == "good"
        for task_id in ("broken", "no params"):
            task = await scheduler.wait_task(task_id, 20)
            assert (task.status, task.error and task.error.type, task.task_params) == ("failed", "corrupt", {})
        assert {task.task_id for task in (await scheduler.list_tasks("failed")).tasks} == {"broken", "no params"}
        assert (await scheduler.get_queue_stats()).pending_count == 0


@pytest.mark.long
async def test_thousands_that_are_due_in_the_same_ms_run_once_each(scheduler: TaskBackoffScheduler) -> None:
    runs: dict[str, int] = {}

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        runs[task.task_id] = runs.get(task.task_id, 0) + 1

    moment = datetime.now(UTC) + timedelta(seconds=1)
    ids = await scheduler.create_tasks(TaskSpec({}, run_at=moment) for _ in range(10_000))
    async with scheduler:

        async def all_done() -> bool:
            return (await scheduler.get_queue_stats()).completed_count == len(ids)

        await eventually(all_done, "all are done", 40)
    assert runs == dict.fromkeys(ids, 1)


async def test_tasks_run_in_the_order_of_priority_and_age(config: TaskBackoffConfig) -> None:
    """Lower first, first in first out within one, also inside a batch; a step is a head start in waiting time."""
    config.threadpool.concurrency = 1
    config.task.priority_step = 60
    scheduler = TaskBackoffScheduler(config)
    order: list[str] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        order.append(task.task_id)

    plain = [f"plain-{n}" for n in range(30, 0, -1)]
    old = datetime.now(UTC) - timedelta(seconds=130)
    await scheduler.create_tasks(TaskSpec({}, name) for name in plain)
    await scheduler.create_task({}, "urgent", priority=-1)
    await scheduler.create_task({}, "idle", priority=1)
    await scheduler.create_task({}, "most urgent", priority=-2, run_at=old)
    async with scheduler:
        for name in [*plain, "idle"]:
            await scheduler.wait_task(name, timeout=20)
    assert order == ["most urgent", "urgent", *plain, "idle"]
    await scheduler.shutdown()


async def test_the_exception_handler_may_give_a_fallback(scheduler: TaskBackoffScheduler) -> None:
    """Called after exceptions and timeouts, not after a returned failure; its own error changes nothing."""
    called: list[tuple[str, str]] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> object:
        if task.task_id == "returns":
            return ResultEntity.fail(1, "returned")
        if task.task_id == "slow":
            await anyio.sleep(60)
        raise ValueError("boom")

    @scheduler.set_custom_task_exception_handler
    def on_exception(task: TaskEntity) -> object:
        called.append((task.task_id, str(task.error)))
        match task.task_id:
            case "fallback":
                return ResultEntity.ok("cached")
            case "coded":
                return ResultEntity.fail(503, "upstream")
            case "broken":
                raise RuntimeError("in the exception handler")
            case _:
                return None

    names = ["fallback", "coded", "broken", "returns", "slow"]
    async with scheduler:
        await scheduler.create_tasks(TaskSpec({}, name, max_retry_count=0, exec_timeout=0.2) for name in names)
        done = {name: await scheduler.wait_task(name, timeout=20) for name in names}
    assert (done["fallback"].status, done["fallback"].result) == ("completed", "cached")
    assert (done["coded"].error.code, done["coded"].error.message) == (503, "upstream")  # type: ignore[union-attr] - there is an error
    assert str(done["broken"].error) == "ValueError: boom"
    assert str(done["slow"].error) == "timeout: stopped after 0.2 s"
    assert sorted(called) == sorted(
        [
            ("fallback", "ValueError: boom"),
            ("coded", "ValueError: boom"),
            ("broken", "ValueError: boom"),
            ("slow", "timeout: stopped after 0.2 s"),
        ]
    )


async def test_a_callable_backoff_lives_in_the_worker(config: TaskBackoffConfig) -> None:
    config.task.backoff_strategy = lambda retry: timedelta(milliseconds=10 * retry)
    scheduler = TaskBackoffScheduler(config)
    starts: list[float] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        starts.append(time.monotonic())
        raise ValueError

    async with scheduler:
        await scheduler.wait_task(await scheduler.create_task({}, max_retry_count=2), timeout=20)
    assert [gap >= planned for gap, planned in zip(_gaps(starts), [0.01, 0.02], strict=True)] == [True, True]
    await scheduler.shutdown()


async def test_tasks_keep_the_policy_they_were_created_under(config: TaskBackoffConfig) -> None:
    """A worker with another configuration decides by the producer's, and by the task's own overrides."""
    config.task.max_retry_count = 1
    producer = TaskBackoffScheduler(config)
    await producer.create_task({}, "theirs")
    await producer.create_task(
        {}, "own", max_retry_count=2, backoff_strategy="fixed", backoff_interval=timedelta(seconds=0.01)
    )
    config.task.max_retry_count = 7
    worker = TaskBackoffScheduler(config)

    @worker.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        raise ValueError

    async with worker:
        theirs, own = await worker.wait_task("theirs", timeout=20), await worker.wait_task("own", timeout=20)
    assert (theirs.max_retry_count, theirs.attempt) == (1, 2)
    assert (own.max_retry_count, own.attempt) == (2, 3)
    await producer.shutdown()


async def test_a_task_that_was_cancelled_while_it_ran_can_be_taken_up_again(scheduler: TaskBackoffScheduler) -> None:
    begun = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        if task.attempt == 1:
            begun.set()
            await anyio.sleep(60)
        return "second time"

    async with scheduler:
        await scheduler.create_task({}, "x")
        await begun.wait()
        assert await scheduler.cancel_task("x", running=True)
        assert (await scheduler.wait_task("x", timeout=20)).status == "cancelled"
        assert await scheduler.retry_task("x")
        assert (await scheduler.wait_task("x", timeout=20)).result == "second time"


async def test_waiting_ends_by_timeout_or_for_an_unknown_task(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_task({}, "x")
    with pytest.raises(TaskTimeoutError, match=r"did not finish within 0\.1 s"):
        await scheduler.wait_task("x", timeout=0.1)
    with pytest.raises(TaskNotFoundError):
        await scheduler.wait_task("nobody", timeout=5)


async def test_without_time_a_wait_looks_once(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_task({}, "x")
    with pytest.raises(TaskTimeoutError, match="did not finish within 0 s"):
        await scheduler.wait_task("x", timeout=0)
    await scheduler.mark_task_completed("x", 1)
    assert (await scheduler.wait_task("x", timeout=0)).result == 1
    with pytest.raises(TaskNotFoundError):
        await scheduler.wait_task("nobody", timeout=0)


async def test_many_waiters_are_all_woken(scheduler: TaskBackoffScheduler) -> None:
    """A hundred waiters of one process share one connection, and are told, not left to poll."""

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> int:
        return int(task.task_params["n"])

    results: list[int] = []

    async def wait(n: int) -> None:
        results.append((await scheduler.wait_task(f"task-{n}")).result)

    await scheduler.create_tasks(TaskSpec({"n": n}, f"task-{n}") for n in range(100))
    with anyio.fail_after(15):
        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(wait, n)
            await scheduler.start()
    assert sorted(results) == list(range(100))


async def test_a_task_with_a_gpu_demand_waits_and_says_why(scheduler: TaskBackoffScheduler) -> None:
    """No gate looks after GPUs here: such a task is not run, and does not keep others from running."""
    ran: list[str] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        ran.append(task.task_id)

    async with scheduler:
        await scheduler.create_task({}, "gpu", min_gpu_memory_gb=64, min_gpu_utilization=20)
        await scheduler.create_task({}, "later", min_gpu_memory_gb=64, delay=0.01)
        await scheduler.create_task({}, "cpu")
        await scheduler.wait_task("cpu", timeout=20)
        gpu = await scheduler.get_task("gpu")
        assert gpu is not None
        assert gpu.waiting_for == "gpu: needs 64 GiB free and utilisation below 20 %, and no running worker has a GPU"
        assert (await scheduler.get_queue_stats()).pending_count == 2
        assert await scheduler.cancel_task("gpu")
    assert ran == ["cpu"]


async def test_why_a_task_waits(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_task({}, "x")
    task = await scheduler.get_task("x")
    assert task is not None
    assert task.waiting_for == "worker: none is running"
    assert await scheduler.get_task("nobody") is None


async def test_a_result_survives_the_end_of_its_worker(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig
) -> None:
    """shutdown() settles what has ended, and a scheduler may be started again."""

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        return "done"

    for name in ("first", "second"):
        async with scheduler:
            await scheduler.create_task({}, name)
            await scheduler.wait_task(name, timeout=20)
        async with TaskBackoffScheduler(config) as other:
            task = await other.get_task(name)
        assert task is not None
        assert task.result == "done"


def test_dicts_of_a_task_are_json() -> None:
    """to_dict() holds nothing but JSON values."""

    task = TaskEntity("id", "biz", {"a": 1}, next_execute_time=datetime.now(UTC))
    assert json.loads(json.dumps(task.to_dict()))["task_params"] == {"a": 1}


async def test_items_may_come_in_one_dict_that_changes(scheduler: TaskBackoffScheduler) -> None:
    def items() -> Iterator[dict[str, object]]:
        item: dict[str, object] = {}
        for n in range(3):
            item["n"] = n
            yield item

    ids = await scheduler.create_tasks(items())
    found = [await scheduler.get_task(task_id) for task_id in ids]
    assert [task and task.task_params for task in found] == [{"n": 0}, {"n": 1}, {"n": 2}]
