"""The tasks of a killed worker come back at once where another process can see that it has ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import Server, eventually, started_processes

from maas_backoff import ConfigError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.common import orphans
from maas_backoff.common.orphans import Origin
from maas_backoff.worker import service
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.loops import neighbours
from maas_backoff.worker.loops.neighbours import Neighbours

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

LEASE = 300.0
"""Seconds: no test here lasts that long, so that what comes back does so by another way."""

WORKER = """
import sys
import anyio
from maas_backoff import *

scheduler = TaskBackoffScheduler(
    TaskBackoffConfig(
        storage=StorageConfig(host="127.0.0.1", port=int(sys.argv[1])),
        task=TaskConfig(biz_prefix="test", result_ttl=600, failed_ttl=600),
        scheduler=SchedulerConfig(lease=300, worker_name=sys.argv[2] or None),
    )
)

@scheduler.set_custom_task_handler
async def handle(task):
    await anyio.sleep(0 if task.attempt > 1 else 600)
    return "by a process"

anyio.run(scheduler.run_until_stopped)
"""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Start]:
    """Start a worker in a process of its own."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with started_processes() as started:

        def worker(name: str = "") -> subprocess.Popen[bytes]:
            started.append(subprocess.Popen([sys.executable, str(script), str(server.port), name]))
            return started[-1]

        yield worker


@pytest.fixture
def own(config: TaskBackoffConfig) -> TaskBackoffScheduler:
    """A worker in this process, with few slots."""
    config.scheduler.lease = LEASE
    config.threadpool.concurrency = 10
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        return "here"

    return scheduler


async def run(producer: TaskBackoffScheduler, ids: list[str]) -> bool:
    tasks = [await producer.get_task(task_id) for task_id in ids]
    return all(task is not None and task.status == "processing" for task in tasks)


async def test_a_neighbour_has_the_tasks_of_a_killed_worker_back_at_once(
    own: TaskBackoffScheduler, scheduler: TaskBackoffScheduler, start: Start
) -> None:
    """It knows the other since the other's start, or its own."""
    victim = start()
    ids = await scheduler.create_tasks({"n": n} for n in range(8))
    await eventually(lambda: run(scheduler, ids), "all run")
    async with own:
        await eventually(lambda: watched(own), "it watches the other")
        victim.kill()
        tasks = [await scheduler.wait_task(task_id, 30) for task_id in ids]
        assert {(task.status, task.result, task.lost_count, task.retry_count) for task in tasks} == {
            ("completed", "here", 1, 0)
        }
        assert [worker.pid for worker in await scheduler.workers()] == [os.getpid()]


def watched(scheduler: TaskBackoffScheduler) -> bool:
    assert scheduler._service is not None and scheduler._service._heartbeat is not None
    return len(scheduler._service._heartbeat._neighbours._pidfds) == 1


async def test_a_worker_that_is_started_afterwards_has_them_back_at_once(
    own: TaskBackoffScheduler, scheduler: TaskBackoffScheduler, start: Start, server: Server
) -> None:
    """Also long after the death, when live workers would get time to renew their leases first."""
    victim = start()
    ids = await scheduler.create_tasks({"n": n} for n in range(8))
    await eventually(lambda: run(scheduler, ids), "all run")
    victim.kill()
    victim.wait()
    server.client.hset("maas:{test}:meta", "reaped_at", 1)
    async with own:
        tasks = [await scheduler.wait_task(task_id, 30) for task_id in ids]
    assert {(task.result, task.lost_count) for task in tasks} == {("here", 1)}
    assert server.client.hlen(next(server.client.scan_iter("maas:{test}:host:*"), b"gone")) == 0


async def test_a_worker_takes_over_from_the_one_that_had_its_name(
    own: TaskBackoffScheduler, scheduler: TaskBackoffScheduler, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ran on another host: nothing is known of its process. A worker with another name takes nothing."""
    victim = start("one")
    ids = await scheduler.create_tasks({"n": n} for n in range(8))
    await eventually(lambda: run(scheduler, ids), "all run")
    monkeypatch.setattr(service, "this_process", lambda: None)
    own.config.scheduler.worker_name = "another"
    async with own:
        victim.kill()
        assert await run(scheduler, ids)
    own.config.scheduler.worker_name = "one"
    async with own:
        tasks = [await scheduler.wait_task(task_id, 30) for task_id in ids]
    assert {(task.result, task.lost_count) for task in tasks} == {("here", 1)}


async def test_two_workers_of_a_host_cannot_have_one_name(
    own: TaskBackoffScheduler, scheduler: TaskBackoffScheduler, start: Start
) -> None:
    """The second refuses to start; the tasks of the first are left alone."""
    start("one")
    ids = await scheduler.create_tasks({"n": n} for n in range(3))
    await eventually(lambda: run(scheduler, ids), "all run")
    own.config.scheduler.worker_name = "one"
    with pytest.raises(ConfigError, match=r"scheduler.worker_name.*a name that no running worker has.*process"):
        await own.start()
    assert await run(scheduler, ids)


async def test_a_worker_whose_name_is_taken_elsewhere_says_so(
    config: TaskBackoffConfig, own: TaskBackoffScheduler, server: Server
) -> None:
    own.config.scheduler.worker_name = "one"
    own.config.scheduler.lease = 3
    async with own:
        server.client.set("maas:{test}:name:one", "another-123456", px=60_000)
        await eventually(lambda: not own.health().ready, "its heartbeat has seen it")
        assert "worker another-123456 has started under the same worker_name" in own.health().reasons[0]


async def test_a_name_that_was_lost_is_taken_again(own: TaskBackoffScheduler, server: Server) -> None:
    """As by an outage that is longer than a lease, or a failover."""
    own.config.scheduler.worker_name = "one"
    own.config.scheduler.lease = 3
    async with own:
        mine = server.client.get("maas:{test}:name:one")
        assert mine is not None
        server.client.delete("maas:{test}:name:one")

        async def is_taken_again() -> bool:
            return server.client.get("maas:{test}:name:one") == mine

        await eventually(is_taken_again, "a heartbeat has taken it")
        assert server.client.pttl("maas:{test}:name:one") > 0
        assert own.health().ready


async def test_full_memory_refuses_a_lost_name_and_stops_no_heartbeat(
    own: TaskBackoffScheduler, scheduler: TaskBackoffScheduler, server: Server
) -> None:
    """A person quiets the worker meanwhile, which the rest of the heartbeat notes."""
    own.config.scheduler.worker_name = "one"
    own.config.scheduler.lease = 3
    async with own:
        (worker,) = await scheduler.workers()
        await scheduler.quiet_workers(worker.name)
        server.client.config_set("maxmemory", 1)
        try:
            server.client.delete("maas:{test}:name:one")
            await eventually(lambda: _is_quiet(scheduler), "a heartbeat has noted it")
            assert server.client.get("maas:{test}:name:one") is None
        finally:
            server.client.config_set("maxmemory", 0)


async def _is_quiet(scheduler: TaskBackoffScheduler) -> bool:
    return [worker.quiet for worker in await scheduler.workers()] == [True]


async def test_a_neighbour_that_cannot_be_watched_is_polled(
    own: TaskBackoffScheduler, scheduler: TaskBackoffScheduler, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a process has no more open files."""

    def refuse(_: int) -> int:
        raise OSError(24, "Too many open files")

    victim = start()
    ids = await scheduler.create_tasks({"n": n} for n in range(3))
    await eventually(lambda: run(scheduler, ids), "all run")
    monkeypatch.setattr(neighbours.os, "pidfd_open", refuse)
    monkeypatch.setattr(neighbours, "POLL", 0.05)
    async with own:
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert (await scheduler.wait_task(ids[0], 30)).result == "here"


async def test_an_outage_when_a_neighbour_ends_is_outlived(
    own: TaskBackoffScheduler, scheduler: TaskBackoffScheduler, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leases are taken when the server answers again."""
    from maas_backoff.errors import StorageError
    from maas_backoff.store.registry import Registry

    victim = start()
    ids = await scheduler.create_tasks({"n": n} for n in range(3))
    await eventually(lambda: run(scheduler, ids), "all run")
    expire, calls = Registry.expire, list[str]()

    async def failing(self: Registry, worker: str) -> int:
        calls.append(worker)
        if len(calls) < 3:
            raise StorageError("a fault of the test") if len(calls) == 1 else ValueError("another one")
        return await expire(self, worker)

    monkeypatch.setattr(Registry, "expire", failing)
    monkeypatch.setattr(neighbours, "POLL", 0.05)
    monkeypatch.setattr("maas_backoff.worker.loops.heartbeat.Heartbeat._longest_block", 0.1)
    own.config.scheduler.lease = 3
    async with own:
        victim.kill()
        assert (await scheduler.wait_task(ids[0], 30)).result == "here"


async def test_leases_of_others_and_of_later_attempts_are_left_alone(
    scheduler: TaskBackoffScheduler, server: Server
) -> None:
    """expire.lua ends the leases of one worker, however many there are, and counts each once."""
    store = scheduler._client.store
    await scheduler.create_tasks({"n": n} for n in range(2500))
    from maas_backoff.store.batch import BatchRequest

    for worker, count in (("dead", 2000), ("live", 500)):
        for number in range(count // 500):
            request = BatchRequest((), 500, may_claim_suspect=False, request_id=f"{number}", exchange=0)
            assert len((await store.exchange.send(request, worker)).claimed) == 500
    assert await store.registry.expire("dead") == 2000
    assert await store.registry.expire("dead") == 0
    assert server.client.zcount("maas:{test}:leases", "-inf", 0) == 2000
    lost, next_end = await store.lost.look(1e6, 0, 10)
    assert {one.info.worker for one in lost} == {"dead"}
    assert next_end is not None and next_end > 0


@pytest.mark.blocks
async def test_the_process_of_a_neighbour_is_known_for_certain(own: TaskBackoffScheduler) -> None:
    """A process id that another process has by now is the id of an ended one; other hosts are not judged."""
    this = orphans.this_process()
    assert this is not None and not this.has_ended()
    assert this._replace(started=this.started - 1).has_ended()
    assert not this._replace(boot="another", started=1).has_ended()
    ended: list[str] = []
    context = WorkerContext.of("me", own._client.store, own.config)
    watch = Neighbours(context, None, ended.append)  # type: ignore[arg-type] - no lease is taken here
    watch.note({"me": this, "there": this, "gone": this._replace(started=1)})
    await watch._look()
    assert ended == ["gone"]
    assert list(watch._pidfds) == ["there"]
    watch.note({})
    assert not watch._pidfds and not watch._ended
    assert Origin.parse("no/process") is None
