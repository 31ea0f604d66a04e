"""Wrong clocks of workers change nothing; a server's clock that jumps costs a grace; strangers' fields are ignored."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import anyio
import pytest
from support import Server, eventually, quick_config

from maas_backoff import TaskBackoffScheduler, TaskEntity, TaskError, TaskStatus
from maas_backoff.commands.doctor import examine
from maas_backoff.domain.outcome import Failed
from maas_backoff.domain.page import Listing
from maas_backoff.domain.settlement import Settlement
from maas_backoff.store import scripts
from maas_backoff.store.batch import NO_SUSPECTS, BatchRequest, Settle
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.creation import NewTask
from maas_backoff.store.ledger import Ledgers, Reservation
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.server import Server as ServerOfQueue
from maas_backoff.store.settled import AttemptInfo
from maas_backoff.worker.loops.reap import settle_lost

pytestmark = [pytest.mark.anyio, pytest.mark.long]

HOUR = 3600.0

# A worker whose wall clock is wrong: by so many seconds, or by others each time it is read.
WORKER = """
import datetime, random, sys, time
real, by = time.time, sys.argv[2]
offset = (lambda: random.uniform(-1e5, 1e5)) if by == "jumping" else (lambda: float(by))
time.time = lambda: real() + offset()
time.time_ns = lambda: int(time.time() * 1e9)
class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(time.time(), tz)
datetime.datetime = Wrong

import anyio
from maas_backoff import *

config = TaskBackoffConfig(
    storage=StorageConfig(host="127.0.0.1", port=int(sys.argv[1])),
    task=TaskConfig(biz_prefix="test", backoff_interval=0.05, result_ttl=600, failed_ttl=600),
    scheduler=SchedulerConfig(lease=3, interval=1),
)
scheduler = TaskBackoffScheduler(config)

@scheduler.set_custom_task_handler
async def handler(task):
    if "create" in task.task_params:
        await scheduler.create_task({}, task.task_params["create"], delay=0.3)
    if "fail" in task.task_params and task.attempt == 1:
        raise ValueError("once")
    await anyio.sleep(task.task_params.get("seconds", 0))

anyio.run(scheduler.run_until_stopped)
"""


def seconds_between(earlier: datetime | None, later: datetime | None) -> float:
    assert earlier is not None
    assert later is not None
    return (later - earlier).total_seconds()


@pytest.mark.parametrize("by", ["3600", "-3600", "jumping"])
async def test_a_workers_wall_clock_does_not_matter(
    scheduler: TaskBackoffScheduler, server: Server, tmp_path: Path, by: str
) -> None:
    """Leases are kept, delays and backoffs are as long as they are, times are the server's."""
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py"), str(server.port), by]
    await scheduler.create_task({"seconds": 4}, "longer than a lease")
    await scheduler.create_task({"fail": True}, "retried")
    await scheduler.create_task({"create": "child"}, "parent")
    await scheduler.create_task({}, "delayed", delay=2)
    worker = await anyio.to_thread.run_sync(partial(subprocess.Popen[bytes], command, env=dict(os.environ)))
    try:
        await eventually(lambda: _exists(scheduler, "child"), "the child is created")
        names = ("longer than a lease", "retried", "parent", "delayed", "child")
        done = {name: await scheduler.wait_task(name, timeout=20) for name in names}
    finally:
        worker.terminate()
        await anyio.to_thread.run_sync(worker.wait)
    assert {task.status for task in done.values()} == {"completed"}
    assert {name: (task.attempt, task.lost_count) for name, task in done.items()} == {
        **dict.fromkeys(names, (1, 0)),
        "retried": (2, 0),
    }
    assert seconds_between(done["delayed"].created_at, done["delayed"].started_at) >= 2
    assert 0.3 <= seconds_between(done["child"].created_at, done["child"].started_at) < 5
    for task in done.values():
        assert 0 <= seconds_between(done["parent"].created_at, task.finished_at) < 30
    (failed,) = done["retried"].attempts
    assert abs(seconds_between(done["retried"].created_at, failed.started_at)) < 30


async def _exists(scheduler: TaskBackoffScheduler, task_id: str) -> bool:
    return await scheduler.get_task(task_id) is not None


class Clock:
    """The server's clock as all of a scheduler's scripts are told it: the real one, and a jump."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jump = 0.0
        loop_time = anyio.current_time
        begun, at = loop_time(), float(server.client.time()[0])  # type: ignore[index] - redis-py types it for asyncio, too

        def now(_: QueueConnection) -> str:
            return f"{(at + loop_time() - begun + self.jump) * 1000:.3f}"

        monkeypatch.setattr(QueueConnection, "clock", property(now, lambda *_: None), raising=False)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_a_jump_of_the_servers_clock_costs_no_live_task_its_lease(
    server: Server, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """An hour forth or back, while tasks run that take longer than a lease: each runs once; new ones run, too."""
    scheduler = TaskBackoffScheduler(quick_config(server.storage))
    runs: list[str] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        runs.append(task.task_id)
        await anyio.sleep(task.task_params["seconds"])

    async with scheduler:
        clock = Clock(server, monkeypatch)
        long = await scheduler.create_tasks({"seconds": 5, "n": n} for n in range(5))
        await eventually(lambda: len(runs) == 5, "all run")
        clock.jump = jump
        new = await scheduler.create_task({"seconds": 0.1})
        for task_id in (new, *long):
            await eventually(lambda task_id=task_id: _completed(scheduler, task_id), f"{task_id} is completed")
            task = await scheduler.get_task(task_id)
            assert task is not None
            assert (task.attempt, task.lost_count) == (1, 0)
    assert sorted(runs) == sorted([*long, new])


async def _completed(scheduler: TaskBackoffScheduler, task_id: str) -> bool:
    task = await scheduler.get_task(task_id)
    return task is not None and task.status == "completed"


async def test_a_dead_workers_task_comes_back_soon_though_the_clock_was_set_back(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour: a lease that lies an hour in the future is taken back with the clock."""
    clock = Clock(server, monkeypatch)
    config = quick_config(server.storage)
    store = QueueStore.of(config)
    scheduler = TaskBackoffScheduler(config)
    await scheduler.create_task({}, "x")
    request = BatchRequest((), 1, may_claim_suspect=False, request_id="1", exchange=0)
    assert len((await store.exchange.send(request, "a worker that dies")).claimed) == 1
    await settle_lost(store, "reaper", (await store.lost.look(gap=1.5, grace=3))[0])
    clock.jump = -HOUR

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        pass

    async with scheduler:
        await eventually(lambda: _completed(scheduler, "x"), "it is completed by another worker")
        task = await scheduler.get_task("x")
    assert task is not None
    assert (task.attempt, task.lost_count) == (2, 1)
    await store.aclose()


async def test_fields_of_another_release_are_ignored(scheduler: TaskBackoffScheduler, server: Server) -> None:
    """Fields of a task, of its policy and of the registry: the task runs, and its fields are kept."""
    await scheduler.create_task({"a": 1}, "x", max_retry_count=1)
    prefix = "maas:{test}:"
    server.client.hset(prefix + "t:x", mapping={"zz": "new", "q9": "\xff"})
    server.client.hset(prefix + "meta", "some_new_counter", "7")
    for digest, text in server.client.hgetall(prefix + "policies").items():
        assert text.endswith(b"}")
        server.client.hset(prefix + "policies", digest, text[:-1] + b',"a_new_option":[1,{"b":2}]}')
    overrides = server.client.hget(prefix + "t:x", "o")
    assert overrides is not None
    server.client.hset(prefix + "t:x", "o", overrides[:-1] + b',"another_new_option":null}')
    other = TaskBackoffScheduler(scheduler.config.copy())  # knows no policy yet
    other.config.task.backoff_interval = 7

    @other.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        if task.attempt == 1:
            raise ValueError("once")
        return "done"

    async with other:
        done = await other.wait_task("x", timeout=20)
    assert (done.status, done.result, done.max_retry_count) == ("completed", "done", 1)
    assert server.client.hget(prefix + "t:x", "zz") == b"new"


# The queue's clock, of a server whose own is set back


@pytest.fixture
async def jumping(any_server: Server) -> AsyncIterator[QueueStore]:
    """A store on a virtual clock, at 0 s, that `at` moves; its reaper has looked."""
    store = QueueStore.of(quick_config(any_server.storage))
    at(store, 0)
    await store.lost.look(1e6, 0)
    yield store
    await store.aclose()


def at(store: QueueStore, seconds: float) -> None:
    store.connection.clock = f"{1_800_000_000_000 + seconds * 1000:.0f}"


async def create(store: QueueStore, task_id: str, due: float | datetime = 0) -> None:
    await store.writer.enqueue([NewTask(task_id, "{}", 0, due, store.connection.config.task.policy, "")])


async def claimed(store: QueueStore, request_id: str) -> list[str]:
    request = BatchRequest((), 5, may_claim_suspect=True, request_id=request_id, exchange=0)
    return [one.task.task_id for one in (await store.exchange.send(request, "worker")).claimed]


@pytest.mark.parametrize("reaped", [True, False], ids=["noted", "not noted yet"])
async def test_a_delay_is_as_long_as_it_is_though_the_clock_is_set_back(jumping: QueueStore, reaped: bool) -> None:
    """By an hour: what was to come in 10 s does, whoever notices the jump first; and what is created then, too."""
    await create(jumping, "before", due=10)
    at(jumping, 4)
    await jumping.lost.look(1e6, 0)
    at(jumping, 4 - HOUR)
    if reaped:
        await jumping.lost.look(1e6, 0)
    await create(jumping, "after", due=10)
    await jumping.lost.look(1e6, 0)
    at(jumping, 9 - HOUR)
    assert await claimed(jumping, "1") == []
    at(jumping, 10.1 - HOUR)
    assert await claimed(jumping, "2") == ["before"]
    at(jumping, 13.9 - HOUR)
    assert await claimed(jumping, "3") == []
    at(jumping, 14.1 - HOUR)
    assert await claimed(jumping, "4") == ["after"]


async def test_an_absolute_time_is_the_callers_before_and_after_a_set_back(jumping: QueueStore) -> None:
    """`run_at` is meant by the clock as it is then; times are shown by it, and never run ahead of it."""
    at(jumping, HOUR)
    await create(jumping, "early")
    await jumping.lost.look(1e6, 0)
    at(jumping, 10)
    await jumping.lost.look(1e6, 0)
    start = datetime.fromtimestamp(1_800_000_000, UTC)
    await create(jumping, "late", due=start + timedelta(seconds=20))
    late = await jumping.reader.get("late")
    assert late is not None
    assert (late.created_at, late.next_execute_time) == (start + timedelta(seconds=10), start + timedelta(seconds=20))
    early = await jumping.reader.get("early")
    assert early is not None and early.created_at == start + timedelta(seconds=10)
    assert await claimed(jumping, "1") == ["early"]
    at(jumping, 20.1)
    request = BatchRequest((), 5, may_claim_suspect=True, request_id="2", exchange=0)
    (one,) = (await jumping.exchange.send(request, "worker")).claimed
    assert (one.task.task_id, one.task.created_at) == ("late", start + timedelta(seconds=10))
    assert one.task.started_at == start + timedelta(seconds=20, milliseconds=100)
    failed = Failed(TaskError("ValueError", "boom"))
    info = AttemptInfo(1, one.started_ms, one.started_ms + 50, "worker")
    settlement = Settlement.retry(failed, one.counts, 7, one.policy)
    settle = Settle("late", "lease", one.token, settlement, one.counts, info)
    assert (await jumping.exchange.send(BatchRequest((settle,), 0, False, "3", 0), "worker")).answers == ["ok"]
    (task,) = (await jumping.reader.page(TaskStatus.PENDING, Listing())).tasks
    assert task.next_execute_time == start + timedelta(seconds=27, milliseconds=100)
    assert task.attempts[0].started_at == start + timedelta(seconds=20, milliseconds=100)
    found = await jumping.reader.find_pending("late")
    assert found is not None
    assert await jumping.writer.settle(found.rescheduled(None, start + timedelta(seconds=21))) == "ok"
    at(jumping, 20.9)
    assert await claimed(jumping, "4") == []
    at(jumping, 21.1)
    assert await claimed(jumping, "5") == ["late"]
    (minute,) = [one for one in (await jumping.reader.history(3)).minutes if one.retried]
    assert minute.start is not None and abs((minute.start - start).total_seconds()) < 60


async def test_the_registry_and_holds_end_in_their_time_though_the_clock_is_set_back(jumping: QueueStore) -> None:
    keys = jumping.connection.keys.all(scripts.RENEW.keys, info=jumping.connection.keys.info("gone"))
    await jumping.connection.server.run(
        scripts.RENEW, keys, [jumping.connection.clock, jumping.connection.keys.prefix, "gone", "{}", "3000", ""]
    )
    assert await jumping.writer.hold("1:0 GPU-a gone", 5)
    at(jumping, -HOUR)
    await jumping.lost.look(1e6, 0)
    assert (
        len(await jumping.registry.fleet()) == 1 and (await jumping.reader.demands(NO_SUSPECTS))[2] == "1:0 GPU-a gone"
    )
    assert not await jumping.writer.hold("1:0 GPU-a other", 5)
    at(jumping, 3.1 - HOUR)
    assert await jumping.registry.fleet() == []
    at(jumping, 5.1 - HOUR)
    assert (await jumping.reader.demands(NO_SUSPECTS))[2] == ""
    assert await jumping.writer.hold("1:0 GPU-a other", 5)


async def test_a_small_step_back_stops_the_clock_and_does_not_move_it(jumping: QueueStore) -> None:
    """NTP does that: nothing is shown otherwise afterwards."""
    at(jumping, 0.5)
    await jumping.lost.look(1e6, 0)
    at(jumping, 0)
    await jumping.lost.look(1e6, 0)
    await create(jumping, "a")
    task = await jumping.reader.get("a")
    assert task is not None and task.created_at == datetime.fromtimestamp(1_800_000_000.5, UTC)
    assert await jumping.connection.server.execute("HGET", jumping.connection.keys("meta"), "ahead") is None


async def test_the_ledger_of_a_gpu_follows_a_clock_that_is_set_back(any_server: Server) -> None:
    """Reservations of a dead worker, a hold and a quarantine end in their time, not an hour later."""
    storage = any_server.storage
    server = ServerOfQueue(storage, "maas:{test}:")
    ledgers = Ledgers(storage, server, lease=3)

    def at(seconds: float) -> None:
        ledgers.clock = f"{1_800_000_000_000 + seconds * 1000:.0f}"

    async def try_to_reserve(name: str, uuid: str = "GPU-x") -> str:
        wanted = Reservation(name, 10, "running", "-", "w", "q", "t")
        return await ledgers.reserve(uuid, wanted, free=10, used={}, limit=0, start_grace=0, holder="q 1:0")

    at(0)
    assert await try_to_reserve("dead") == "ok"
    assert await ledgers.doubt("GPU-y", "t", "Xid", limit=1, seconds=5)
    assert await ledgers.hold("GPU-z", "other 1:0", 1, 5)
    at(-HOUR)
    assert await try_to_reserve("new") == "room"
    for uuid in ("GPU-y", "GPU-z"):
        await ledgers.read(uuid)
    at(2.9 - HOUR)
    assert await try_to_reserve("new") == "room"
    assert (await ledgers.read("GPU-y")).quarantine_for == pytest.approx(2.1, abs=0.01)
    at(3.1 - HOUR)
    assert await try_to_reserve("new") == "ok"
    at(4.9 - HOUR)
    assert await try_to_reserve("q", "GPU-y") == "shut"
    assert await try_to_reserve("q", "GPU-z") == "held"
    at(5.1 - HOUR)
    assert await try_to_reserve("q", "GPU-y") == "ok"
    assert await try_to_reserve("q", "GPU-z") == "ok"
    await ledgers.aclose()
    await server.aclose()


async def test_the_doctor_tells_what_the_clock_is_ahead(jumping: QueueStore) -> None:
    at(jumping, -HOUR)
    await jumping.lost.look(1e6, 0)
    words = [str(word) for word in await examine(jumping)]
    assert any("clock: the queue's is 3600.0 s ahead of the server's" in word for word in words)
