"""Deadlines: a task that cannot start or end in time is cancelled as expired, once, and never starts late."""

import math
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from support import Server, eventually, quick_config

from maas_backoff import (
    Ensured,
    ResultEntity,
    Snooze,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConflictError,
    TaskEntity,
    TaskError,
    TaskSpec,
)
from maas_backoff.domain.outcome import Failed, LeaseExpired, Unstarted
from maas_backoff.domain.settlement import Counts, Settlement, decide
from maas_backoff.store.batch import BatchReply, BatchRequest, Claimed, Settle
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.testing import SimulatedScheduler

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000


class Queue:
    """A queue on a virtual clock, which is moved in seconds."""

    def __init__(self, server: Server, config: TaskBackoffConfig) -> None:
        self.scheduler = TaskBackoffScheduler(config)
        self.client = server.client
        self.requests = 0
        self.at(0)

    def at(self, seconds: float) -> None:
        self.store.connection.clock = f"{START + 1000 * seconds:.0f}"

    @property
    def store(self) -> QueueStore:
        return self.scheduler._client.store

    async def exchange(self, claims: int = 0, settles: tuple[Settle, ...] = (), **options: Any) -> BatchReply:
        self.requests += 1
        request = BatchRequest(settles, claims, True, f"{self.requests}", 0, **options)
        return await self.store.exchange.send(request, "worker")

    async def settle(self, claimed: Claimed, outcome: Any) -> str:
        settlement = decide(outcome, "x", claimed.counts, claimed.policy, claimed.policy.backoff())
        assert settlement is not None
        settle = Settle(claimed.task.task_id, "lease", claimed.token, settlement, claimed.counts)
        return (await self.exchange(settles=(settle,))).answers[0]

    async def shown(self, task_id: str) -> tuple[str, str | None]:
        task = await self.scheduler.get_task(task_id)
        assert task is not None
        return task.status.value, task.cancel_reason

    async def counts(self) -> tuple[int, int, int]:
        """Return the pending tasks, the cancelled ones, and those that have expired so far."""
        stats, history = await self.scheduler.get_queue_stats(), await self.scheduler.get_history()
        return stats.pending_count, stats.cancelled_count, history.total.expired

    def listed(self, index: str) -> list[str]:
        return [member.decode() for member in self.client.zrange(f"maas:{{test}}:{index}", 0, -1)]


@pytest.fixture
async def queue(server: Server) -> AsyncIterator[Queue]:
    config = quick_config(server.storage)
    config.task.max_retry_count, config.task.backoff_interval = 5, 10
    found = Queue(server, config)
    yield found
    await found.scheduler.shutdown()


EXPIRED = ("cancelled", "expired")


async def test_readers_know_an_expired_task_without_a_worker(queue: Queue) -> None:
    await queue.scheduler.create_task({}, "x", start_within=5)
    queue.at(4.999)
    assert await queue.shown("x") == ("pending", None)
    assert await queue.counts() == (1, 0, 0)
    queue.at(5)
    task = await queue.scheduler.wait_task("x", 20)
    assert (task.status, task.cancel_reason, task.waiting_for, task.next_execute_time) == (*EXPIRED, None, None)
    assert task.finished_at == task.created_at + timedelta(seconds=5)
    assert await queue.counts() == (0, 1, 0), "nobody has settled it"
    assert (await queue.scheduler.list_tasks("pending")).tasks == []


async def test_operations_meet_an_expired_task_as_a_cancelled_one(queue: Queue) -> None:
    scheduler = queue.scheduler
    await scheduler.create_task({}, "x", start_within=5)
    queue.at(5)
    assert not await scheduler.cancel_task("x")
    assert not await scheduler.cancel_task("x", running=True)
    assert not await scheduler.mark_task_processing("x")
    assert not await scheduler.mark_task_completed("x")
    assert not await scheduler.mark_task_failed("x")
    assert not await scheduler.update_task("x", priority=3)
    assert await queue.shown("x") == EXPIRED
    assert await scheduler.delete_task("x")
    assert queue.listed("deadlines") == []


async def test_a_waiter_is_told_when_the_moment_comes(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_task({}, "x", start_within=0.3)
    task = await scheduler.wait_task("x", 15)  # a waiter looks by itself each 20 s
    assert (task.status, task.cancel_reason) == EXPIRED


@pytest.mark.parametrize(
    "limits", [{"start_within": 5}, {"complete_within": 5}, {"start_within": 9, "complete_within": 5}]
)
async def test_a_claim_ends_what_it_meets_too_late_and_takes_the_next(queue: Queue, limits: Any) -> None:
    """Without the reaper: the claim that drops them finds the next task in the same call, or in the next one."""
    late = [TaskSpec({}, f"late-{n}", **limits) for n in range(3)]
    await queue.scheduler.create_tasks([*late, TaskSpec({}, "good", start_within=60), TaskSpec({}, "plain")])
    queue.at(5)
    first = await queue.exchange(2)
    assert first.claimed == [] and first.hit, "there may be more"
    ids = [one.task.task_id for _ in range(2) for one in (await queue.exchange(2)).claimed]
    assert ids == ["good", "plain"]
    assert [await queue.shown(f"late-{n}") for n in range(3)] == [EXPIRED] * 3
    assert await queue.counts() == (0, 3, 3)
    assert queue.listed("deadlines") == queue.listed("ready") == []
    assert queue.client.hget("maas:{test}:meta", "cancelled") == b"3"
    ttl = queue.client.ttl("maas:{test}:t:late-0")
    assert 0 < ttl <= queue.scheduler.config.task.result_ttl


async def test_the_reaper_ends_many_tasks_a_hundred_at_a_time(queue: Queue) -> None:
    await queue.scheduler.create_tasks(TaskSpec({}, f"{n}", start_within=5, delay=2) for n in range(250))
    await queue.scheduler.create_task({}, "later", start_within=60, result_ttl=77)
    queue.at(6.999)
    assert (await queue.store.lost.look(1e6, 0))[1] == pytest.approx(0.001, abs=0.001)
    assert len(queue.listed("scheduled")) == 250
    queue.at(7)
    looks = [(await queue.store.lost.look(1e6, 0))[1] for _ in range(3)]
    assert looks == [0, 0, 53]
    assert await queue.counts() == (1, 250, 250)
    queue.at(60)
    assert (await queue.store.lost.look(1e6, 0))[1] is None
    assert 0 < queue.client.ttl("maas:{test}:t:later") <= 77, "its own time to live"
    assert queue.listed("deadlines") == queue.listed("ready") == queue.listed("scheduled") == []


async def test_an_entry_without_a_late_task_is_dropped(queue: Queue) -> None:
    """An older release claims a task and leaves its entry."""
    await queue.scheduler.create_task({}, "x", start_within=5)
    await queue.exchange(1)
    for member in ("x", "gone"):
        queue.client.zadd("maas:{test}:deadlines", {member: START})
    queue.at(5)
    assert await queue.store.lost.end_overdue(["x", "gone"]) == ["lost", "unknown"]
    assert queue.listed("deadlines") == []
    assert await queue.shown("x") == ("processing", None)


async def test_a_backoff_beyond_the_deadline_ends_the_task_at_once(queue: Queue) -> None:
    failed = Failed(TaskError("ValueError", "no"), raised=True)
    for task_id, limits in (("start", {"start_within": 15}), ("end", {"complete_within": 15})):
        queue.at(0)
        await queue.scheduler.create_task({}, task_id, **limits)
        (claimed,) = (await queue.exchange(1)).claimed
        queue.at(1)
        assert await queue.settle(claimed, failed) == "ok", "comes back at 11 s"
        assert queue.listed("deadlines") == [task_id]
        queue.at(11)
        (claimed,) = (await queue.exchange(1)).claimed
        assert await queue.settle(claimed, failed) == "cancelled", "it would come back at 31 s"
        task = await queue.scheduler.get_task(task_id)
        assert task is not None and (task.status, task.cancel_reason) == EXPIRED
        assert task.error == TaskError("ValueError", "no"), "the last error is visible"
        assert task.finished_at == datetime.fromtimestamp(START / 1000 + 11, UTC)
    history = await queue.scheduler.get_history()
    assert (history.total.expired, history.total.retried, history.total.cancelled) == (2, 2, 2)
    assert queue.listed("deadlines") == queue.listed("scheduled") == queue.listed("leases") == []


async def test_a_lost_task_whose_time_is_over_ends(queue: Queue) -> None:
    await queue.scheduler.create_task({}, "x", complete_within=40)
    (claimed,) = (await queue.exchange(1)).claimed
    queue.at(100)
    lost = decide(LeaseExpired(), "x", Counts(), claimed.policy, claimed.policy.backoff())
    assert lost is not None
    assert await queue.store.lost.settle([Settle("x", "expired", claimed.token, lost)], "reaper") == ["cancelled"]
    assert await queue.shown("x") == EXPIRED


async def test_a_task_that_was_not_started_in_time_does_not_come_back(queue: Queue) -> None:
    await queue.scheduler.create_task({}, "x", start_within=5)
    (claimed,) = (await queue.exchange(1)).claimed
    assert claimed.start_before < math.inf
    queue.at(4)
    assert await queue.settle(claimed, Unstarted()) == "ok"
    (claimed,) = (await queue.exchange(1)).claimed
    queue.at(5)
    assert await queue.settle(claimed, Unstarted()) == "cancelled"
    assert await queue.shown("x") == EXPIRED


@pytest.mark.parametrize("is_noted", [False, True])
async def test_a_redrive_gives_a_deadline_of_the_same_length(queue: Queue, is_noted: bool) -> None:
    await queue.scheduler.create_task({}, "x", start_within=5, complete_within=20)
    queue.at(100)
    if is_noted:
        await queue.store.lost.look(1e6, 0)
    assert await queue.scheduler.retry_task("x")
    task = await queue.scheduler.get_task("x")
    assert task is not None and (task.status, task.cancel_reason) == ("pending", None)
    assert task.deadline == datetime.fromtimestamp(START / 1000 + 120, UTC)
    queue.at(104.9)
    assert await queue.shown("x") == ("pending", None)
    queue.at(105)
    assert await queue.shown("x") == EXPIRED


async def test_deadlines_count_from_the_first_due_time(queue: Queue) -> None:
    await queue.scheduler.create_task({}, "delayed", delay=100, start_within=5)
    moment = datetime.fromtimestamp(START / 1000 + 100, UTC)
    await queue.scheduler.create_task({}, "timed", run_at=moment, start_within=5)
    queue.at(104.9)
    assert await queue.shown("delayed") == await queue.shown("timed") == ("pending", None)
    assert await queue.scheduler.update_task("timed", delay=60), "a reschedule moves no deadline"
    queue.at(105)
    assert await queue.shown("delayed") == await queue.shown("timed") == EXPIRED


async def test_time_runs_on_while_the_queue_is_paused(queue: Queue) -> None:
    await queue.scheduler.create_task({}, "x", start_within=5)
    await queue.scheduler.pause()
    queue.at(5)
    assert await queue.shown("x") == EXPIRED
    await queue.store.lost.look(1e6, 0)
    assert await queue.counts() == (0, 1, 1)


async def test_a_default_of_the_queue_and_no_deadline_for_one_task(server: Server) -> None:
    config = quick_config(server.storage)
    config.task.start_within = timedelta(seconds=5)  # type: ignore[assignment] # pyright: ignore[reportAttributeAccessIssue] - a converter makes seconds
    queue = Queue(server, config)
    await queue.scheduler.create_task({}, "default")
    await queue.scheduler.create_tasks([{"n": 1}, TaskSpec({}, "longer", start_within=10)])
    await queue.scheduler.create_task({}, "none", start_within=None)
    await queue.scheduler.create_task({}, "with another option", priority=-3)
    queue.at(7)
    stats = await queue.scheduler.get_queue_stats()
    assert (stats.pending_count, stats.cancelled_count) == (2, 3)
    assert await queue.shown("none") == await queue.shown("longer") == ("pending", None)
    await queue.scheduler.shutdown()


async def test_an_expired_task_that_needs_a_gpu_takes_no_room(queue: Queue) -> None:
    for task_id, limits in (("late", {"start_within": 5}), ("good", {})):
        await queue.scheduler.create_task({}, task_id, min_gpu_memory_gb=1, **limits)
    queue.at(5)
    reply = await queue.exchange(1, fits=("1024:0 GPU-a 0 1024",))
    assert [one.task.task_id for one in reply.claimed] == ["good"]
    assert await queue.shown("late") == EXPIRED


# In a worker


async def test_the_time_of_an_attempt_is_cut_to_the_deadline(scheduler: TaskBackoffScheduler) -> None:
    asked: list[str] = []
    seen: list[datetime | None] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        seen.append(task.deadline)
        await anyio.sleep(60)

    @scheduler.set_custom_task_exception_handler
    async def fallback(task: TaskEntity) -> ResultEntity:
        asked.append(task.task_id)
        return ResultEntity.ok(None)

    async with scheduler:
        await scheduler.create_task({}, "x", complete_within=0.7)
        task = await scheduler.wait_task("x", 20)
    assert (task.status, task.cancel_reason) == EXPIRED
    assert task.error is not None and task.error.type == "timeout" and "deadline" in task.error.message
    assert len(task.attempts) == 1
    assert seen == [task.deadline]
    assert task.deadline is not None and task.deadline - task.created_at == timedelta(seconds=0.7)
    assert asked == [], "no fallback runs after the deadline"


def deadline_of(task: TaskEntity) -> str | None:
    return None if task.deadline is None else task.deadline.isoformat()


@pytest.mark.parametrize("mode", ["thread", pytest.param("process", marks=pytest.mark.long)])
async def test_a_handler_in_a_thread_or_a_child_sees_the_deadline(config: TaskBackoffConfig, mode: str) -> None:
    config.threadpool.proc_mode = mode
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(deadline_of)
    async with scheduler:
        ids = await scheduler.create_tasks([TaskSpec({}, "x", complete_within=60), TaskSpec({}, "y", start_within=60)])
        with_one, without = [await scheduler.wait_task(task_id, 60) for task_id in ids]
    assert with_one.deadline is not None and with_one.result == with_one.deadline.isoformat()
    assert without.result is without.deadline is None


async def test_a_task_that_waits_behind_others_never_starts_late(scheduler: TaskBackoffScheduler) -> None:
    """Half of the tasks cannot start in time: each of them is expired, and none of them has run."""
    started: dict[str, datetime] = {}

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        assert task.started_at is not None
        started[task.task_id] = task.started_at
        await anyio.sleep(0.2)

    scheduler.config.threadpool.concurrency = 2
    async with scheduler:
        ids = await scheduler.create_tasks(TaskSpec({}, f"{n}", start_within=0.9) for n in range(20))
        tasks = [await scheduler.wait_task(task_id, 30) for task_id in ids]
    expired = {task.task_id for task in tasks if task.cancel_reason == "expired"}
    assert 0 < len(expired) < 20
    listed = (await scheduler.list_tasks("cancelled", brief=True)).tasks
    assert {task.task_id: task.cancel_reason for task in listed} == dict.fromkeys(expired, "expired")
    assert expired.isdisjoint(started)
    assert all(
        started[task.task_id] < task.created_at + timedelta(seconds=0.9) for task in tasks if task.task_id in started
    )


async def test_a_snooze_beyond_the_deadline_ends_the_task(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        raise Snooze(after=60)

    async with scheduler:
        await scheduler.create_task({}, "x", complete_within=30)
        task = await scheduler.wait_task("x", 20)
    assert (task.status, task.cancel_reason, task.snooze_count) == (*EXPIRED, 1)


async def test_a_thread_that_completes_after_the_deadline_is_stopped_in_name(scheduler: TaskBackoffScheduler) -> None:
    go_on = threading.Event()

    @scheduler.set_custom_task_handler
    def handle(task: TaskEntity) -> None:
        go_on.wait(20)

    async with scheduler:
        await scheduler.create_task({}, "x", complete_within=0.3)
        task = await scheduler.wait_task("x", 20)
        go_on.set()
    assert (task.status, task.cancel_reason) == EXPIRED


@pytest.mark.blocks
async def test_a_simulated_clock_passes_deadlines() -> None:
    scheduler = SimulatedScheduler()
    ran: list[str] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        ran.append(task.task_id)
        raise ConnectionError

    async with scheduler:
        await scheduler.pause()
        await scheduler.create_task({}, "waits", start_within=timedelta(hours=1))
        await scheduler.advance(timedelta(hours=1))
        await scheduler.resume()
        await scheduler.create_task({}, "fails", complete_within=100)  # due at 30 and 90 s; the next would be at 210 s
        await scheduler.advance(timedelta(hours=1))
        stats = await scheduler.get_queue_stats()
        assert (stats.pending_count, stats.cancelled_count) == (0, 2)
        assert (await scheduler.get_history()).total.expired == 2
    assert ran == ["fails"] * 3


# ensure_task


async def test_ensure_task_says_whether_the_task_is_new(scheduler: TaskBackoffScheduler) -> None:
    first, again = [await scheduler.ensure_task({"n": 1}, "x") for _ in range(2)]
    assert (first, again) == (Ensured("x", is_new=True), Ensured("x", is_new=False))
    unnamed = await scheduler.ensure_task({"n": 1}, start_within=60)
    assert unnamed.is_new and len(unnamed.task_id) == 16
    with pytest.raises(TaskConflictError):
        await scheduler.ensure_task({"n": 2}, "x")
    found: list[Ensured] = []

    async def ensure() -> None:
        found.append(await scheduler.ensure_task({}, "same"))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(ensure)
    assert sum(one.is_new for one in found) == 1


async def test_an_expired_task_is_found(scheduler: TaskBackoffScheduler) -> None:
    await scheduler.create_task({}, "x", start_within=0.05)

    async def is_over() -> bool:
        task = await scheduler.get_task("x")
        return task is not None and task.status == "cancelled"

    await eventually(is_over, "it has expired")
    assert not (await scheduler.ensure_task({}, "x")).is_new


async def test_a_claim_ends_few_late_tasks_and_finds_the_next_one_behind_them(queue: Queue) -> None:
    """Also if a thousand came first: one script takes few ms, and the next claims and the reaper end the others."""
    late = [TaskSpec({}, f"{n}", start_within=1, min_gpu_memory_gb=1) for n in range(450)]
    await queue.scheduler.create_tasks([*late, TaskSpec({}, "on time", min_gpu_memory_gb=1)])
    queue.at(2)
    fits = ("1024:0 GPU-a 0 1024",)
    first = await queue.exchange(1, fits=fits)
    assert [one.task.task_id for one in first.claimed] == ["on time"]
    assert (len(queue.listed("gpu:1024:0")), len(queue.listed("deadlines")), first.hit) == (250, 250, True)
    for left in (50, 0):
        assert (await queue.exchange(1, fits=fits)).hit
        assert len(queue.listed("gpu:1024:0")) == len(queue.listed("deadlines")) == left
    assert not (await queue.exchange(1, fits=fits)).hit
    assert await queue.counts() == (0, 450, 450)


async def test_a_late_word_of_the_reaper_leaves_a_new_deadline(queue: Queue) -> None:
    await queue.scheduler.create_task({}, "x", start_within=1)
    queue.at(2)
    assert await queue.scheduler.retry_task("x")
    assert await queue.store.lost.end_overdue(["x"]) == ["lost"]
    assert await queue.shown("x") == ("pending", None)
    assert queue.listed("deadlines") == ["x"]
    queue.at(3)
    assert await queue.shown("x") == EXPIRED


async def test_a_stale_entry_makes_no_finished_task_expire(queue: Queue) -> None:
    await queue.scheduler.create_task({}, "x", start_within=1)
    (one,) = (await queue.exchange(1)).claimed
    queue.at(2)
    settle = Settle("x", "lease", one.token, Settlement.complete("1", one.policy), one.counts)
    assert (await queue.exchange(settles=(settle,))).answers == ["ok"]
    queue.client.zadd("maas:{test}:ready", {"x": 1})
    assert (await queue.exchange(1)).claimed == []
    assert (await queue.shown("x"), queue.listed("ready")) == (("completed", None), [])
    assert await queue.counts() == (0, 0, 0)
