"""Steering a queue: pause, resume, retry all, change, purge; and what is told of it: reasons, history, what is due."""

from datetime import UTC, datetime, timedelta
from typing import Any, cast

import anyio
import pytest
from support import Server, eventually

from maas_backoff import (
    Durations,
    InvalidValueError,
    Retry,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
    TaskStatus,
)
from maas_backoff.domain.pause import checked_by, fitting_by

pytestmark = pytest.mark.anyio


async def _nothing(task: TaskEntity) -> None:
    pass


async def _ids(scheduler: TaskBackoffScheduler, status: str) -> list[str]:
    return [task.task_id for task in (await scheduler.list_tasks(status)).tasks]


@pytest.fixture
async def other(config: TaskBackoffConfig) -> TaskBackoffScheduler:
    """Somebody else's client of the same queue."""
    return TaskBackoffScheduler(config.copy())


async def test_a_paused_queue_starts_nothing_and_one_that_is_resumed_goes_on(
    scheduler: TaskBackoffScheduler, other: TaskBackoffScheduler, server: Server
) -> None:
    """For tasks that are ready, come later, come back from a failure, or are suspects; workers sleep meanwhile."""
    started: list[str] = []
    failing = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        started.append(task.task_id)
        if task.task_id == "fails" and task.attempt == 1:
            failing.set()
            await anyio.sleep(0.3)
            raise ValueError

    async with scheduler:
        await scheduler.create_task({}, "fails")
        await failing.wait()
        assert await other.pause() and not await other.pause()
        await other.create_tasks([TaskSpec({}, "now"), TaskSpec({}, "soon", delay=0.2)])
        await eventually(lambda: server.client.zcard("maas:{test}:leases") == 0, "it has failed")
        before = server.client.info("stats")["total_commands_processed"]
        await anyio.sleep(1)
        assert server.client.info("stats")["total_commands_processed"] - before < 60, "nobody looks in vain"
        assert started == ["fails"]
        task = await other.get_task("now")
        assert task is not None and task.waiting_for == "paused"
        stats = await other.get_queue_stats()
        assert stats.paused and stats.pending_count == 3
        assert "The queue is paused: 3 tasks due, nothing runs" in await other.explain()
        assert await other.resume() and not await other.resume()
        for task_id in ("now", "soon", "fails"):
            assert (await scheduler.wait_task(task_id, 10)).status is TaskStatus.COMPLETED
        assert not (await other.get_queue_stats()).paused
    await other.shutdown()


async def test_a_paused_kind_starts_nothing_and_goes_on_after_a_resume(
    scheduler: TaskBackoffScheduler, other: TaskBackoffScheduler, server: Server
) -> None:
    """Running tasks of the kind go on, and other kinds run; workers sleep meanwhile."""
    running, may_fail = anyio.Event(), anyio.Event()

    @scheduler.task(max_retry_count=3, backoff_interval=0.05)
    async def render(task: TaskEntity, name: str) -> str:
        if name == "fails" and task.attempt == 1:
            running.set()
            await may_fail.wait()
            raise ValueError
        return name

    @scheduler.task
    async def count(name: str) -> str:
        return name

    async with scheduler:
        fails = await render.create("fails")
        await running.wait()
        assert await other.pause(kind="render") and not await other.pause(kind="render")
        may_fail.set()
        images = [fails, await render.create("now"), await render.options(delay=0.2).create("soon")]
        await eventually(lambda: server.client.zcard("maas:{test}:k:render:ready") == 3, "all of them are due")
        assert [await (await count.create(f"{n}")).result(10) for n in range(3)] == ["0", "1", "2"]

        async def counted() -> bool:
            found = (await other.get_breakdown("kind")).totals.get("count")
            return found is not None and found.completed == 3

        await eventually(counted, "the worker has sent what it has settled")
        before = server.client.info("stats")["total_commands_processed"]
        await anyio.sleep(1)
        assert server.client.info("stats")["total_commands_processed"] - before < 60, "nobody looks in vain"
        assert [await image.status() for image in images] == ["pending"] * 3
        for image in images:
            task = await image.task()
            assert task is not None and task.waiting_for == "kind render: paused"
        assert "kind render: paused, 3 tasks due" in await other.explain()
        assert await other.resume(kind="render") and not await other.resume(kind="render")
        assert [await image.result(10) for image in images] == ["fails", "now", "soon"]
    await other.shutdown()


async def test_wrong_kinds_are_refused(other: TaskBackoffScheduler) -> None:
    for wrong in ("", "two words", "a/b", "x" * 65, 7):
        for call in (other.pause, other.resume):
            with pytest.raises(InvalidValueError, match="kind: expected a letter or _"):
                await call(kind=wrong)  # type: ignore[arg-type] - wrong on purpose
    await other.shutdown()


@pytest.mark.parametrize("part", [{}, {"kind": "render"}, {"tenant": "acme"}], ids=["queue", "kind", "tenant"])
async def test_a_pause_says_who_paused_and_since_when(
    other: TaskBackoffScheduler, server: Server, part: dict[str, str]
) -> None:
    """The first pause counts. A name does not that an older release has left."""

    async def told() -> tuple[str, datetime | None]:
        stats = await other.get_queue_stats()
        by = stats.kinds_paused_by | stats.tenants_paused_by
        since = stats.paused_kinds | stats.paused_tenants
        return stats.paused_by or "".join(by.values()), stats.paused_since or next(iter(since.values()), None)

    assert await other.pause(**part, by="Ada Lovelace 😀")
    by, since = await told()
    assert by == "Ada Lovelace 😀" and since is not None
    assert not await other.pause(**part, by="bob")
    assert await told() == (by, since)
    stored = {"meta": "paused", "kinds": "render", "tenants": "acme", "paused_tenants": "acme"}
    for key, field in stored.items():
        if server.client.hexists(f"maas:{{test}}:{key}", field):
            weight = "1 " if key == "tenants" else ""
            server.client.hset(f"maas:{{test}}:{key}", field, f"{weight}1800000000000")
    assert (await told())[0] == "" and await other.resume(**part) and await other.pause(**part, by="bob")
    assert (await told())[0] == "bob"
    assert await other.resume(**part, by="bob") and await told() == ("", None)
    assert server.client.exists("maas:{test}:paused_by") == 0
    assert await other.pause(**part)
    assert (await told())[0] == "" and server.client.exists("maas:{test}:paused_by") == 0
    assert await other.resume(**part)
    for wrong in ("a\nb", " ada", "a" * 101, None, 1, "\ud800"):
        with pytest.raises(InvalidValueError, match="by: expected up to 100 printable"):
            await other.pause(**part, by=cast(Any, wrong))


def test_the_name_of_a_visitor_is_shortened() -> None:
    assert fitting_by("ada\n" + "x" * 200) == "ada" + "x" * 97
    assert checked_by(fitting_by(" \x1b[2J ")) == "[2J"


async def test_a_worker_that_starts_on_a_paused_queue_waits(
    scheduler: TaskBackoffScheduler, other: TaskBackoffScheduler
) -> None:
    await other.create_task({}, "x")
    await other.pause()
    scheduler.set_custom_task_handler(_nothing)
    async with scheduler:
        await anyio.sleep(0.3)
        assert (await other.get_queue_stats()).pending_count == 1
        await other.resume()
        assert (await scheduler.wait_task("x", 5)).attempt == 1
    await other.shutdown()


async def test_all_failed_tasks_are_retried_or_those_with_an_error(scheduler: TaskBackoffScheduler) -> None:
    """By a part of "type: message"; each once; others are left alone."""
    broken = True

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        if broken:
            raise (OSError("disk full") if task.task_params["n"] % 2 else ValueError("no number"))

    async with scheduler:
        specs = [TaskSpec({"n": n}, f"t{n}", max_retry_count=0) for n in range(250)]
        await scheduler.create_tasks([*specs, TaskSpec({"n": 0}, "gone", delay=60)])
        await scheduler.cancel_task("gone")
        await eventually(lambda: _all_failed(scheduler), "all have failed")
        broken = False
        assert await scheduler.retry_tasks(error="OSError: disk") == 125
        await eventually(lambda: _completed(scheduler, 125), "they are completed")
        assert await scheduler.retry_tasks() == 125
        assert await scheduler.retry_tasks("cancelled") == 1
        await eventually(lambda: _completed(scheduler, 251), "the others, too")
        assert await scheduler.retry_tasks() == 0
        with pytest.raises(InvalidValueError, match="status: expected one of failed, cancelled, got 'pending'"):
            await scheduler.retry_tasks("pending")
        with pytest.raises(InvalidValueError, match="error: expected text of 1 to 1000 characters, or None, got 5"):
            await scheduler.retry_tasks(error=5)  # type: ignore[arg-type] - wrong on purpose


async def _all_failed(scheduler: TaskBackoffScheduler) -> bool:
    return (await scheduler.get_queue_stats()).failed_count == 250


async def _completed(scheduler: TaskBackoffScheduler, number: int) -> bool:
    return (await scheduler.get_queue_stats()).completed_count == number


async def test_a_pending_task_is_made_more_urgent_or_put_off(scheduler: TaskBackoffScheduler) -> None:
    """Its params, and so its idempotency, stay; what runs or is finished is left alone."""
    await scheduler.create_tasks([TaskSpec({"n": n}, f"t{n}") for n in range(3)])
    assert await scheduler.update_task("t2", priority=-5)
    assert await _ids(scheduler, "pending") == ["t2", "t0", "t1"]
    task = await scheduler.get_task("t2")
    assert task is not None and (task.priority, task.task_params) == (-5, {"n": 2})
    assert await scheduler.create_task({"n": 2}, "t2") == "t2"
    assert await scheduler.update_task("t2", delay=60)
    assert await _ids(scheduler, "pending") == ["t0", "t1", "t2"]
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    assert await scheduler.update_task("t0", run_at=moment, priority=7)
    task = await scheduler.get_task("t0")
    assert task is not None and (task.next_execute_time, task.priority) == (moment, 7)
    assert await scheduler.update_task("t0", priority=1)
    task = await scheduler.get_task("t0")
    assert task is not None and (task.next_execute_time, task.priority) == (moment, 1), "it is due as before"
    assert await scheduler.update_task("t0", delay=0)
    assert (await scheduler.get_queue_stats()).scheduled_count == 1
    await scheduler.cancel_task("t1")
    await scheduler.mark_task_processing("t0")
    assert not await scheduler.update_task("t1", priority=1)
    assert not await scheduler.update_task("t0", priority=1)
    assert not await scheduler.update_task("unknown", priority=1)
    with pytest.raises(InvalidValueError, match="update_task: expected priority, delay or run_at, got 'none of them'"):
        await scheduler.update_task("t0")
    with pytest.raises(InvalidValueError, match="priority"):
        await scheduler.update_task("t0", priority=5000)
    with pytest.raises(InvalidValueError, match="update_task: expected priority, delay or run_at, got 'max_lost"):
        await scheduler.update_task("t0", max_lost=5, priority=5)  # type: ignore[call-arg] - wrong on purpose


async def test_a_task_that_waits_for_a_gpu_keeps_its_need_when_it_is_moved(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_task({}, "a", min_gpu_memory_gb=4)
    await scheduler.create_task({}, "b", min_gpu_memory_gb=4)
    assert await scheduler.update_task("b", priority=-1)
    assert await _ids(scheduler, "pending") == ["b", "a"]
    assert (await scheduler.get_queue_stats()).gpu_count == 2


async def test_a_moved_task_is_run_when_it_is_due(scheduler: TaskBackoffScheduler) -> None:
    scheduler.set_custom_task_handler(_nothing)
    async with scheduler:
        await scheduler.create_task({}, "x", delay=3600)
        assert await scheduler.update_task("x", delay=0)
        assert (await scheduler.wait_task("x", 5)).status is TaskStatus.COMPLETED


async def test_a_state_is_purged(scheduler: TaskBackoffScheduler, server: Server) -> None:
    """All of its tasks and nothing else; what is processed is refused."""
    specs = [TaskSpec({}, f"t{n}", delay=60 * (n % 2)) for n in range(1200)]
    await scheduler.create_tasks([*specs, TaskSpec({}, "gpu", min_gpu_memory_gb=1)])
    await scheduler.mark_task_completed("t0")
    await scheduler.cancel_task("t1")
    await scheduler.mark_task_processing("t2")
    assert await scheduler.purge_tasks("pending") == 1198
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.processing_count, stats.completed_count, stats.cancelled_count) == (0, 1, 1, 1)
    assert await scheduler.purge_tasks("completed") == 1 and await scheduler.purge_tasks("completed") == 0
    assert await scheduler.purge_tasks("cancelled") == 1
    assert server.client.keys("maas:{test}:t:*") == [b"maas:{test}:t:t2"]
    with pytest.raises(InvalidValueError, match="status: expected one of pending, completed, failed, cancelled"):
        await scheduler.purge_tasks("processing")


# Messages


async def test_the_history_tells_what_has_happened(scheduler: TaskBackoffScheduler) -> None:
    """Ends, retries, errors by type, and how long tasks waited, ran and took to be settled; each attempt once."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        await anyio.sleep(0.05)
        if task.task_params["n"] == 0:
            raise OSError
        if task.task_params["n"] == 1 and task.attempt == 1:
            raise Retry(after=0)

    async with scheduler:
        await scheduler.create_tasks([TaskSpec({"n": n}, f"t{n}", max_retry_count=1) for n in range(5)])
        for n in range(5):
            await scheduler.wait_task(f"t{n}", 10)
        await scheduler.create_task({"n": 9}, "by hand", delay=60)
        await scheduler.mark_task_failed("by hand", "no", retry=False)
    history = await scheduler.get_history(2)
    for told in (history.total, history.recent):
        assert (told.completed, told.failed, told.cancelled, told.retried, told.lost) == (4, 2, 0, 2, 0)
        assert told.errors == {"OSError": 2, "Retry": 1, "failed": 1}
        assert told.waits.count == told.runs.count == 7 and 1 <= told.settles.count <= 7
        median = told.runs.quantile(0.5)
        assert median is not None and 0.032 <= median <= 2
    assert len(history.minutes) == 2 and history.minutes[0].start is not None
    with pytest.raises(InvalidValueError, match="minutes: expected a whole number from 1 to 120"):
        await scheduler.get_history(0)


async def test_errors_with_names_of_any_kind_cannot_fill_the_server(
    scheduler: TaskBackoffScheduler, server: Server
) -> None:
    """At most about 400 names are kept; the others are "other"."""
    specs = [TaskSpec({"n": n}, max_retry_count=0) for n in range(600)]

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        raise type(f"Error of\n{task.task_params['n']} " + "x" * 100, (Exception,), {})

    async with scheduler:
        await scheduler.create_tasks(specs)
        await eventually(lambda: _number_failed(scheduler, 600), "all have failed")
    errors = (await scheduler.get_history()).total.errors
    assert sum(errors.values()) == 600 and errors["other"] > 100
    assert all(len(name) <= 64 and name.split() == [name] for name in errors)
    assert server.client.hlen("maas:{test}:totals") <= 520


async def _number_failed(scheduler: TaskBackoffScheduler, number: int) -> bool:
    return (await scheduler.get_queue_stats()).failed_count == number


@pytest.mark.parametrize("name", ["watched", "totals"])
async def test_bookkeeping_that_was_written_over_keeps_no_task_from_its_end(
    scheduler: TaskBackoffScheduler, server: Server, name: str
) -> None:
    """By hand, with a key of another type: tasks are run and settled, each once; nothing is cut in half."""
    server.client.set(f"maas:{{test}}:{name}", "nonsense", ex=600)
    runs: list[str] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        runs.append(task.task_id)
        if task.task_id == "fails":
            raise OSError

    async with scheduler:
        await scheduler.create_tasks([TaskSpec({}, f"t{n}") for n in range(20)])
        await scheduler.create_task({}, "fails", max_retry_count=0)
        await eventually(lambda: _completed(scheduler, 20), "all are completed")
        await eventually(lambda: _number_failed(scheduler, 1), "and one has failed")
    assert len(runs) == len(set(runs)) == 21
    server.client.delete(f"maas:{{test}}:{name}")
    server.client.hset("maas:{test}:totals", "w1", "nonsense")
    assert (await scheduler.get_history()).recent.completed == 20


async def test_what_becomes_due_is_counted_by_steps(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_tasks([TaskSpec({}, delay=delay) for delay in (0, 5, 15, 15, 35, 1000)])
    assert await scheduler.get_upcoming(10, 4) == [1, 2, 0, 1]
    with pytest.raises(InvalidValueError, match="step: expected seconds"):
        await scheduler.get_upcoming(0)


async def test_one_sentence_says_why_nothing_runs(server: Server, config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    assert await scheduler.explain() == "Nobody has used the queue 'test' on this server yet."
    await scheduler.delete_task(await scheduler.create_task({}))
    assert await scheduler.explain() == "The queue is empty, and no worker is connected."
    await scheduler.create_task({}, delay=600)
    assert (
        await scheduler.explain()
        == "Nothing is due: nothing runs; the next of 1 task is due in 10 min, and no worker is connected."
    )
    await scheduler.create_task({})
    assert await scheduler.explain() == "No worker is running: 1 task due."
    await scheduler.purge_tasks("pending")

    release = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        await release.wait()

    scheduler.config.threadpool.concurrency = 2
    async with scheduler:
        await eventually(scheduler.workers, "the first heartbeat has told of it")
        (worker,) = await scheduler.workers()
        assert worker.slots == 2 and worker.pid and worker.version
        await scheduler.create_tasks([{}] * 5)
        await eventually(lambda: _slots_are_taken(scheduler), "the heartbeat tells of it")
        assert await scheduler.explain() == "3 tasks due, 2 tasks running: all 2 slots of 1 worker are busy."
        await scheduler.purge_tasks("pending")
        await scheduler.create_task({}, min_gpu_memory_gb=4)
        expected = "1 need a GPU with 4 GiB free, and no running worker has a GPU."
        assert (await scheduler.explain()).endswith(expected)
        await scheduler.purge_tasks("pending")
        release.set()


async def _slots_are_taken(scheduler: TaskBackoffScheduler) -> bool:
    return (await scheduler.workers())[0].running == 2


def test_a_quantile_is_right_within_its_bucket() -> None:
    counts = [0] * 24
    counts[6] = 90  # 32 to 64 ms
    counts[11] = 10  # 1.024 to 2.048 s
    durations = Durations(tuple(counts))
    assert durations.count == 100 and Durations().quantile(0.5) is None
    assert 0.032 < (durations.quantile(0.5) or 0) < 0.064
    assert durations.quantile(0.9) == 0.064
    assert 1.024 < (durations.quantile(0.95) or 0) < 2.048
    assert (durations + durations).count == 200
