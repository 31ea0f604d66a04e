"""Workers that die, stop or are told to stop: no task is lost, stuck or settled twice."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from support import Server, eventually, quick_config, started_processes

from maas_backoff import (
    StorageConfig,
    StorageUnavailableError,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
)
from maas_backoff.commands.doctor import examine
from maas_backoff.gate.renewal import Renewal
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.loops.reap import settle_lost
from maas_backoff.worker.loops.wake import Wake

pytestmark = [pytest.mark.anyio, pytest.mark.long]

# A worker process that notes each start as "id attempt pid", and dies of the poison task.
WORKER = """
import os, sys, time
import anyio
from maas_backoff import *

port, lease, log, mode, grace = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5])
config = TaskBackoffConfig(
    storage=StorageConfig(host="127.0.0.1", port=port),
    task=TaskConfig(biz_prefix="test", result_ttl=600, failed_ttl=600),
    threadpool=ThreadPoolConfig(concurrency=10, proc_mode=mode),
    scheduler=SchedulerConfig(lease=lease, interval=1, shutdown_grace=grace),
)

def note(task):
    with open(log, "a") as file:
        file.write(f"{task.task_id} {task.attempt} {os.getpid()}\\n")

def handler(task):
    note(task)
    if task.task_params.get("poison"):
        os.kill(os.getppid() if mode == "process" else os.getpid(), 9)
    time.sleep(task.task_params.get("seconds", 0.2))
    return task.attempt

async def coroutine(task):
    note(task)
    if task.task_params.get("poison"):
        os.kill(os.getpid(), 9)
    while task.task_params.get("stubborn"):
        try:
            await anyio.sleep(0.05)
        except BaseException:
            note(task)
    await anyio.sleep(task.task_params.get("seconds", 0.2))
    return task.attempt

if __name__ == "__main__":
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(coroutine if mode == "thread" else handler)
    anyio.run(scheduler.run_until_stopped)
"""

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[Start]:
    """Start a worker process; killed at the end if it still runs."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with started_processes() as started:

        def worker(*, lease: float = 3, mode: str = "thread", grace: float = 0.5) -> subprocess.Popen[bytes]:
            command = [
                sys.executable,
                str(script),
                str(server.port),
                str(lease),
                str(tmp_path / "log"),
                mode,
                str(grace),
            ]
            with (tmp_path / "output").open("ab") as output:
                started.append(subprocess.Popen(command, stdout=output, stderr=output))
            return started[-1]

        yield worker


def starts(folder: Path) -> list[tuple[str, int, int]]:
    """Return the noted starts: id, attempt, pid."""
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [(line.split()[0], int(line.split()[1]), int(line.split()[2])) for line in lines]


async def _all_finished(scheduler: TaskBackoffScheduler) -> bool:
    stats = await scheduler.get_queue_stats()
    return not stats.pending_count and not stats.processing_count


async def test_a_killed_worker_loses_no_task(scheduler: TaskBackoffScheduler, start: Start, tmp_path: Path) -> None:
    """SIGKILL in the middle of 200 tasks, another worker running: each completes, with one accepted outcome."""
    ids = await scheduler.create_tasks({"n": n} for n in range(200))
    victim, _ = start(), start()
    await eventually(
        lambda: len(starts(tmp_path)) >= 60 and victim.pid in {pid for _, _, pid in starts(tmp_path)}, "60 have begun"
    )
    victim.kill()
    await eventually(lambda: _all_finished(scheduler), "all finished", 50)
    tasks = [await scheduler.get_task(task_id) for task_id in ids]
    assert [task and task.status for task in tasks] == ["completed"] * 200
    lost = [task for task in tasks if task is not None and task.lost_count]
    assert 1 <= len(lost) <= 10
    assert all(task.retry_count == 0 and task.result == task.attempt == 2 for task in lost)
    counted = await scheduler.get_queue_stats()
    assert (counted.completed_count, counted.failed_count) == (200, 0)


async def test_a_poison_task_ends_as_lease_lost_and_takes_no_innocent_with_it(
    scheduler: TaskBackoffScheduler, start: Start, tmp_path: Path
) -> None:
    """It kills its workers until it is alone in its half three times, or nearly; all others complete."""
    ids = await scheduler.create_tasks({"n": n} for n in range(50))
    await scheduler.create_task({"poison": True}, "poison")
    ids += await scheduler.create_tasks({"n": n} for n in range(50, 100))
    workers = [start(), start()]

    async def keep_running() -> bool:
        for index, worker in enumerate(workers):
            if worker.poll() is not None:
                workers[index] = start()
        return await _all_finished(scheduler)

    await eventually(keep_running, "all finished", 55)
    poison = await scheduler.get_task("poison")
    assert poison is not None
    assert (poison.status, poison.retry_count) == ("failed", 0)
    # Ten at most are lost together, ten again, then 5, 3, 2, and then it is alone until that adds up to 3.
    assert 3 <= poison.lost_count <= 9
    assert poison.error is not None
    assert poison.error.type == "lease_lost"
    assert [attempt.error.type for attempt in poison.attempts] == ["lease_lost"] * poison.lost_count
    tasks = [await scheduler.get_task(task_id) for task_id in ids]
    assert [task and task.status for task in tasks] == ["completed"] * 100
    assert sum(name == "poison" for name, _, _ in starts(tmp_path)) == poison.lost_count


async def test_the_halves_of_what_was_lost_follow_one_another_at_once(
    config: TaskBackoffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each half runs at once and by itself; the other waits for no poll and no wake-up."""
    config.scheduler.interval = 3600
    monkeypatch.setattr(Wake, "run", lambda _: anyio.sleep_forever())
    scheduler = TaskBackoffScheduler(config)
    first_half, second_half = anyio.Event(), anyio.Event()
    running: set[str] = set()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        running.add(task.task_id)
        await (second_half if first_half.is_set() else first_half).wait()
        running.discard(task.task_id)

    ids = await scheduler.create_tasks({"n": n} for n in range(6))
    store = QueueStore.of(config)
    await _lose_twice(store, 6)
    await settle_lost(store, "reaper", (await store.lost.look(gap=1e6, grace=0))[0])
    async with scheduler:
        await eventually(lambda: len(running) == 3, "a half runs")
        first = set(running)
        explained = "3 tasks lost their worker again and come back in halves: 3 running now."
        assert (await scheduler.explain()).endswith(explained)
        assert (await scheduler.get_queue_stats()).suspect_count == 3
        tasks = (await scheduler.list_tasks("pending", brief=True)).tasks
        assert {task.task_id for task in tasks} == set(ids) - first
        expected = (
            "suspect: its worker was lost again; it comes back in halves of what was lost, with up to 2 other tasks"
        )
        assert {task.waiting_for for task in tasks} == {expected}
        words = [word for word in await examine(store) if explained in word.text]
        assert [word.kind for word in words] == ["warning"]
        first_half.set()
        await eventually(lambda: running == set(ids) - first, "the other half runs")
        second_half.set()
        done = [await scheduler.wait_task(task_id, timeout=20) for task_id in ids]
    assert [(task.status, task.lost_count) for task in done] == [("completed", 2)] * 6
    await store.aclose()


async def test_two_idle_workers_take_a_half_each(config: TaskBackoffConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one wakes the second; neither looks by itself for a minute."""
    config.scheduler.interval, config.scheduler.lease = 3600, 300
    monkeypatch.setattr("maas_backoff.worker.loops.wake.LONGEST_BLOCK", 60.0)
    monkeypatch.setattr("maas_backoff.worker.service.LONGEST_BLOCK", 60.0)
    running: dict[int, list[str]] = {0: [], 1: []}
    go_on = anyio.Event()
    schedulers = [TaskBackoffScheduler(config) for _ in running]
    for number, scheduler in enumerate(schedulers):

        async def handler(task: TaskEntity, number: int = number) -> None:
            running[number].append(task.task_id)
            await go_on.wait()

        scheduler.set_custom_task_handler(handler)
    store = QueueStore.of(config)
    await schedulers[0].create_tasks({"n": n} for n in range(12))
    await _lose_twice(store, 12)
    async with schedulers[0], schedulers[1]:
        await eventually(lambda: all(one._service.parts.requests.sleeps_on_slots for one in schedulers), "both sleep")
        # The workers' own reapers have given live workers a while to renew.
        await store.connection.server.execute("HSET", store.connection.keys("meta"), "grace_until", "0")
        await settle_lost(store, "reaper", (await store.lost.look(gap=1e6, grace=0))[0])
        await eventually(lambda: [len(ids) for ids in running.values()] == [6, 6], "each runs a half")
        go_on.set()
    await store.aclose()


async def _lose_twice(store: QueueStore, count: int) -> None:
    """Let two workers die with these tasks, long ago. The second loss is still to be found."""
    connection = store.connection
    for number, ago in enumerate((7200, 3600)):
        connection.clock = f"{(time.time() - ago) * 1000:.0f}"
        await settle_lost(store, "reaper", (await store.lost.look(gap=1e6, grace=0))[0])
        request = BatchRequest((), count, may_claim_suspect=False, request_id=f"{number}", exchange=0)
        assert len((await store.exchange.send(request, f"worker {number} that dies")).claimed) == count
    connection.clock = ""


@pytest.mark.parametrize("mode", ["thread", "process"])
async def test_what_is_lost_for_the_first_time_comes_back_at_once(
    scheduler: TaskBackoffScheduler, start: Start, mode: str
) -> None:
    """Mostly the machine was taken away, and no task is to blame."""
    ids = await scheduler.create_tasks({"seconds": 60} for _ in range(4))

    async def run(attempt: int) -> bool:
        tasks = [await scheduler.get_task(task_id) for task_id in ids]
        return all(task is not None and (task.status, task.attempt) == ("processing", attempt) for task in tasks)

    victim = start(mode=mode)
    await eventually(lambda: run(1), "all run")
    victim.kill()
    start(mode=mode)
    await eventually(lambda: run(2), "all run again, at the same time", 40)
    assert [task.lost_count for task in (await scheduler.list_tasks("processing")).tasks] == [1] * 4


async def test_a_worker_that_slept_past_its_lease_finds_its_work_taken(
    scheduler: TaskBackoffScheduler, start: Start, tmp_path: Path
) -> None:
    """SIGSTOP, longer than the lease, then SIGCONT: the second run's result stands, the first is told it lost."""
    await scheduler.create_task({"seconds": 6}, "x")
    sleeper = start()
    await eventually(lambda: starts(tmp_path), "it has begun")
    sleeper.send_signal(signal.SIGSTOP)
    start()
    await eventually(lambda: len(starts(tmp_path)) == 2, "another has taken it")
    sleeper.send_signal(signal.SIGCONT)
    done = await scheduler.wait_task("x", timeout=30)
    assert (done.status, done.result, done.lost_count) == ("completed", 2, 1)
    assert sleeper.poll() is None


@pytest.mark.parametrize("mode", ["thread", "process"])
async def test_a_drain_hands_back_what_does_not_end_in_time(
    scheduler: TaskBackoffScheduler, start: Start, tmp_path: Path, mode: str
) -> None:
    """SIGTERM: exit code 0 within the grace, the task pending again at once, no retry and no loss counted."""
    await scheduler.create_task({"seconds": 60}, "x")
    worker = start(mode=mode)
    await eventually(lambda: starts(tmp_path), "it has begun")
    worker.terminate()
    assert await anyio.to_thread.run_sync(lambda: worker.wait(timeout=20)) == 0
    task = await scheduler.get_task("x")
    assert task is not None
    assert (task.status, task.attempt, task.retry_count, task.lost_count, task.attempts) == ("pending", 1, 0, 0, ())


@pytest.mark.parametrize("mode", ["thread", "process"])
async def test_a_second_signal_ends_the_patience_of_a_drain(
    scheduler: TaskBackoffScheduler, start: Start, tmp_path: Path, mode: str
) -> None:
    """The grace is a minute; with the second SIGTERM what runs is handed back, and the worker ends within 5 s."""
    await scheduler.create_task({"seconds": 60}, "x")
    worker = start(mode=mode, grace=60)
    await eventually(lambda: starts(tmp_path), "it has begun")
    worker.terminate()
    await eventually(lambda: b"finishing running attempts" in (tmp_path / "output").read_bytes(), "it drains")
    worker.terminate()
    assert await anyio.to_thread.run_sync(lambda: worker.wait(timeout=5)) == 0
    task = await scheduler.get_task("x")
    assert task is not None
    assert (task.status, task.attempt, task.retry_count, task.lost_count) == ("pending", 1, 0, 0)


async def test_a_third_signal_ends_the_worker_at_once(
    scheduler: TaskBackoffScheduler, start: Start, tmp_path: Path
) -> None:
    """Though a handler swallows its cancellation; its task comes back by its lease."""
    await scheduler.create_task({"stubborn": True}, "x")
    worker = start(grace=60)
    await eventually(lambda: starts(tmp_path), "it has begun")
    worker.terminate()
    await eventually(lambda: b"finishing running attempts" in (tmp_path / "output").read_bytes(), "it drains")
    worker.terminate()
    await eventually(lambda: len(starts(tmp_path)) > 1, "it swallows its cancellation")
    worker.terminate()
    assert await anyio.to_thread.run_sync(lambda: worker.wait(timeout=2)) != 0


async def test_a_worker_that_sleeps_less_than_its_lease_is_not_noticed(
    scheduler: TaskBackoffScheduler, start: Start, tmp_path: Path
) -> None:
    await scheduler.create_task({"seconds": 2}, "x")
    sleeper, _ = start(lease=6), start(lease=6)
    await eventually(lambda: starts(tmp_path), "it has begun")
    pid = starts(tmp_path)[0][2]
    os.kill(pid, signal.SIGSTOP)
    await anyio.sleep(2.5)
    os.kill(pid, signal.SIGCONT)
    done = await scheduler.wait_task("x", timeout=20)
    assert (done.status, done.attempt, done.lost_count) == ("completed", 1, 0)
    assert len(starts(tmp_path)) == 1
    assert sleeper.poll() is None


async def test_an_idle_worker_takes_what_another_has_lost(config: TaskBackoffConfig) -> None:
    """It is told: neither a poll nor another task brings it."""
    config.scheduler.interval = 60
    scheduler = TaskBackoffScheduler(config)

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> int:
        return task.attempt

    producer = TaskBackoffScheduler(config)
    ids = await producer.create_tasks({} for _ in range(3))
    store = QueueStore.of(config)
    request = BatchRequest((), 3, may_claim_suspect=False, request_id="x", exchange=0)
    assert len((await store.exchange.send(request, "ghost")).claimed) == 3
    async with scheduler:
        tasks = [await producer.wait_task(task_id, timeout=15) for task_id in ids]
    assert [(task.result, task.lost_count) for task in tasks] == [(2, 1)] * 3
    await producer.shutdown()
    await store.aclose()


async def test_lost_tasks_come_back_while_the_ledger_of_a_gpu_cannot_be_reached(
    scheduler: TaskBackoffScheduler,
    config: TaskBackoffConfig,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In a Cluster, it may be on another node than the queue."""

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> int:
        return task.attempt

    async def renew(*_: object) -> list[str]:
        raise StorageUnavailableError("the node of the ledger is down")

    monkeypatch.setattr(Renewal, "by_device", lambda _: {"GPU-a": []})
    monkeypatch.setattr(Renewal, "renew", renew)
    task_id = await scheduler.create_task({})
    store = QueueStore.of(config)
    request = BatchRequest((), 1, may_claim_suspect=False, request_id="x", exchange=0)
    assert len((await store.exchange.send(request, "ghost")).claimed) == 1
    async with scheduler:
        task = await scheduler.wait_task(task_id, timeout=20)
    assert (task.result, task.lost_count) == (2, 1)
    assert caplog.text.count("the node of the ledger is down") == 1 and "reconnected" not in caplog.text
    await store.aclose()


async def test_an_idle_worker_that_stands_still_keeps_two_tasks_at_most(
    scheduler: TaskBackoffScheduler, start: Start, server: Server
) -> None:
    """Its claim waits on the server, and is a small one: they come back with its lease, and others run the rest."""
    frozen, _ = start(), start()
    # Each sleeps for tasks, and listens for cancels.
    await eventually(lambda: server.client.info("clients")["blocked_clients"] == 4, "both are idle")
    os.kill(frozen.pid, signal.SIGSTOP)
    ids = await scheduler.create_tasks({"seconds": 0} for _ in range(20))
    tasks = [await scheduler.wait_task(task_id, timeout=20) for task_id in ids]
    assert [task.status for task in tasks] == ["completed"] * 20
    assert sum(task.lost_count for task in tasks) <= 2


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process are Linux's")
@pytest.mark.parametrize("mode", ["thread", "process"])
@pytest.mark.parametrize("files", [24, 64])
async def test_a_worker_with_few_files_loses_no_task(
    scheduler: TaskBackoffScheduler, start: Start, tmp_path: Path, mode: str, files: int
) -> None:
    """64 open files, or too few for all children: what cannot run says so, and the worker does not die of it."""
    config_of_task = {"max_retry_count": 1000, "backoff_strategy": "fixed", "backoff_interval": 0.05}
    worker = start(mode=mode)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (files, files))
    ids = await scheduler.create_tasks(TaskSpec({"seconds": 0.01}, **config_of_task) for _ in range(50))
    await eventually(lambda: _all_finished(scheduler), "all finished", 40)
    tasks = [await scheduler.get_task(task_id) for task_id in ids]
    assert [task and task.status for task in tasks] == ["completed"] * 50
    assert worker.poll() is None


async def test_a_shutdown_lets_running_tasks_end(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    begun = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        begun.set()
        await anyio.sleep(0.3)
        return "done"

    async with scheduler:
        await scheduler.create_task({}, "x")
        await begun.wait()
    async with TaskBackoffScheduler(config) as other:
        task = await other.get_task("x")
    assert task is not None
    assert task.result == "done"


async def test_a_server_that_stands_still_counts_no_live_task_as_lost(
    config: TaskBackoffConfig, server: Server
) -> None:
    """SIGSTOP of the server for longer than the lease: when it goes on, nothing is reaped before live workers renew.

    Attempts are stopped when their lease is over, and their tasks handed back: with no loss and no retry counted.
    """
    scheduler = TaskBackoffScheduler(config)
    runs: list[str] = []
    go_on = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        runs.append(task.task_id)
        await go_on.wait()
        return "done"

    async with scheduler:
        await scheduler.create_tasks(TaskSpec({}, f"task-{n}") for n in range(5))
        await eventually(lambda: len(runs) == 5, "all run")
        server.process.send_signal(signal.SIGSTOP)
        await anyio.sleep(config.scheduler.lease + 1.5)
        server.process.send_signal(signal.SIGCONT)
        # Two reaps and a heartbeat later.
        await anyio.sleep(config.scheduler.lease)
        go_on.set()
        for n in range(5):
            task = await scheduler.wait_task(f"task-{n}", timeout=20)
            assert (task.status, task.retry_count, task.lost_count) == ("completed", 0, 0)
    await scheduler.shutdown()


async def test_a_start_or_a_run_that_is_cancelled_leaves_no_worker_behind(scheduler: TaskBackoffScheduler) -> None:
    """A cancelled scope around `async with scheduler` still drains; a cancelled start stops what it had begun."""

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        await anyio.sleep(0.05)

    with anyio.CancelScope() as scope:
        async with scheduler:
            task_id = await scheduler.create_task({})
            await eventually(lambda: _status(scheduler, task_id, "processing"), "it runs")
            scope.cancel()
    assert scheduler.health().reasons == ("not started",)
    assert await _status(scheduler, task_id, "completed")
    for delay in [n / 2000 for n in range(40)]:  # one of them meets each answer of the server
        with anyio.move_on_after(delay):
            await scheduler.start()
        await scheduler.shutdown()
        assert scheduler.health().reasons == ("not started",)


async def test_a_shutdown_whose_caller_is_cancelled_goes_on_to_its_end(scheduler: TaskBackoffScheduler) -> None:
    """asyncio's own cancellation goes through anyio's shields; the worker is stopped whole all the same."""

    began = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> str:
        began.set()
        await anyio.sleep(0.3)
        return "done"

    task_id = await scheduler.create_task({})
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit, scheduler:
            await began.wait()
            limit.reschedule(asyncio.get_running_loop().time())
            await anyio.sleep(60)
    assert scheduler.health().reasons == ("not started",)
    assert await _status(scheduler, task_id, "completed")


async def _status(scheduler: TaskBackoffScheduler, task_id: str, wanted: str) -> bool:
    task = await scheduler.get_task(task_id)
    return task is not None and task.status == wanted


async def test_a_killed_embedded_server_is_started_again(tmp_path: Path) -> None:
    """SIGKILL of the embedded server in the middle of a run: it comes back with its data, and nothing runs twice.

    But for what had ended in the last two seconds before: where the disk is slow, `everysec` may lose so much.
    """
    storage = StorageConfig(type="embedded", path=tmp_path / "data")
    scheduler = TaskBackoffScheduler(quick_config(storage))
    runs: dict[str, int] = {}
    first_ended: dict[str, float] = {}

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        runs[task.task_id] = runs.get(task.task_id, 0) + 1
        await anyio.sleep(0.01)
        first_ended.setdefault(task.task_id, time.monotonic())

    async with scheduler:
        ids = await scheduler.create_tasks({"n": n} for n in range(400))
        await eventually(lambda: len(runs) > 50, "some have run")
        os.kill(int((tmp_path / "data" / "server.pid").read_text()), signal.SIGKILL)
        killed = time.monotonic()
        await eventually(lambda: _all_finished(scheduler), "all finished", 40)
    assert runs.keys() == set(ids)
    twice = [task_id for task_id, number in runs.items() if number > 1]
    assert all(killed - 2.5 < first_ended[task_id] < killed + 0.5 for task_id in twice), twice


async def test_connections_that_are_killed_cost_nothing(config: TaskBackoffConfig, server: Server) -> None:
    """CLIENT KILL of all, over and over, and SCRIPT FLUSH: everything runs exactly once."""
    scheduler = TaskBackoffScheduler(config)
    runs: dict[str, int] = {}

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        runs[task.task_id] = runs.get(task.task_id, 0) + 1
        await anyio.sleep(0.01)

    async with scheduler:
        ids = await scheduler.create_tasks({"n": n} for n in range(300))
        deadline = time.monotonic() + 40
        while len(runs) < 300 and time.monotonic() < deadline:
            await anyio.to_thread.run_sync(
                lambda: server.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            )
            await anyio.to_thread.run_sync(server.client.script_flush)
            await anyio.sleep(0.05)
        await eventually(lambda: _all_finished(scheduler), "all finished", 20)
    assert runs == dict.fromkeys(ids, 1)
    await scheduler.shutdown()


async def test_the_seed_example_as_a_script(server: Server, tmp_path: Path) -> None:
    """A handler in `__main__` with proc_mode="process" works."""
    script = tmp_path / "seed.py"
    script.write_text(
        """
import os
import anyio
from maas_backoff import *

def task_handler(task):
    return ResultEntity.ok({"echo": task.task_params["key"], "child": os.getpid() != int(os.environ["PARENT"])})

async def main():
    config = TaskBackoffConfig()
    config.storage = StorageConfig(type="redis", host="127.0.0.1", port=PORT, database=0, password="")
    config.task = TaskConfig(biz_prefix="seed", result_ttl=600)
    config.threadpool = ThreadPoolConfig(concurrency=2, exec_timeout=30, proc_mode="process")
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(task_handler)
    async with scheduler:
        task_id = await scheduler.create_task(task_params={"key": "value"}, task_id="unique_task_id")
        print((await scheduler.wait_task(task_id, timeout=30)).result)

if __name__ == "__main__":
    os.environ["PARENT"] = str(os.getpid())
    anyio.run(main)
""".replace("PORT", str(server.port))
    )
    run = await anyio.run_process([sys.executable, str(script)], check=False, env=dict(os.environ))
    assert run.stdout.decode().strip() == "{'child': True, 'echo': 'value'}", run.stderr.decode()
