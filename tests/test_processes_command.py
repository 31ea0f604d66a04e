"""`maas-backoff worker --processes N`: a parent that replaces workers, and hands signals on."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import psutil
import pytest
from support import Server, eventually

from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

MODULE = """
import os
import anyio
from maas_backoff import *

scheduler = TaskBackoffScheduler(
    TaskBackoffConfig(
        storage=StorageConfig(host="127.0.0.1", port=int(os.environ["TEST_PORT"])),
        task=TaskConfig(biz_prefix="test", result_ttl=600, failed_ttl=600),
        threadpool=ThreadPoolConfig(concurrency=4),
        scheduler=SchedulerConfig(lease=300, shutdown_grace=20),
    )
)

@scheduler.set_custom_task_handler
async def handle(task):
    await anyio.sleep(task.task_params.get("seconds", 600) if task.attempt == 1 else 0)
    return os.getpid()
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path, server: Server) -> Iterator[Start]:
    """Start the command in a folder of its own; what still runs at the end is killed."""
    (tmp_path / "mine.py").write_text(MODULE)
    started: list[subprocess.Popen[str]] = []

    def command(*options: str, target: str = "mine:scheduler", nohup: bool = False) -> subprocess.Popen[str]:
        words = [*(["nohup"] if nohup else []), sys.executable, "-m", "maas_backoff", "worker", target, *options]
        env = {**os.environ, "TEST_PORT": str(server.port)}
        started.append(subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield command
    for process in started:
        left = workers_of(process)
        process.kill()
        process.communicate()
        for worker in left:
            if worker.is_running():
                worker.kill()


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
async def producer(server: Server) -> AsyncIterator[TaskBackoffScheduler]:
    storage = StorageConfig(host="127.0.0.1", port=server.port)
    task = TaskConfig(biz_prefix="test", result_ttl=600, failed_ttl=600)
    async with TaskBackoffScheduler(TaskBackoffConfig(storage=storage, task=task)) as producer:
        yield producer


async def pids(producer: TaskBackoffScheduler, count: int) -> set[int]:
    """Return the processes of the workers that are ready, once there are so many."""
    found: set[int] = set()

    async def there() -> bool:
        found.clear()
        found.update(worker.pid for worker in await producer.workers() if worker.ready)
        return len(found) == count

    await eventually(there, f"{count} workers are ready", 60)
    return found


async def test_a_killed_worker_is_replaced_and_its_tasks_come_back(
    producer: TaskBackoffScheduler, start: Start
) -> None:
    """SIGTERM to the parent then drains them all, and the exit code is 0."""
    parent = start("--processes", "2", "--name", "gpu-a")
    first = await pids(producer, 2)
    assert {worker.name[:-7] for worker in await producer.workers()} == {"gpu-a-1", "gpu-a-2"}
    ids = await producer.create_tasks({"n": n} for n in range(8))
    await eventually(lambda: _running(producer, 8), "all run")
    victim = next(iter(first))
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: _finished(producer, 4), "the tasks of the killed one are done", 30)
    assert len(await pids(producer, 2) - first) == 1
    for task_id in ids:
        await producer.cancel_task(task_id, running=True)
    parent.terminate()
    assert await anyio.to_thread.run_sync(parent.wait) == 0
    assert parent.stderr is not None
    said = parent.stderr.read()
    assert "has ended by SIGKILL; the next one starts in" in said
    assert said.count("maas_backoff.command: stopped") == 2


async def _running(producer: TaskBackoffScheduler, count: int) -> bool:
    return (await producer.get_queue_stats()).processing_count == count


async def _finished(producer: TaskBackoffScheduler, count: int) -> bool:
    return (await producer.get_queue_stats()).completed_count == count


@pytest.mark.long
async def test_a_worker_that_cannot_be_started_ends_no_other(producer: TaskBackoffScheduler, start: Start) -> None:
    """Here the parent may open no file for a while. A hang-up of its terminal ends none, too, after `nohup`."""
    parent = start("--processes", "2", nohup=True)
    first = await pids(producer, 2)
    limit = psutil.Process(parent.pid).rlimit
    _, most = limit(psutil.RLIMIT_NOFILE)
    limit(psutil.RLIMIT_NOFILE, (3, most))
    victim = next(iter(first))
    os.kill(victim, signal.SIGKILL)
    assert parent.stderr is not None
    line = ""
    while "worker 1 cannot be started: " not in line and "worker 2 cannot be started: " not in line:
        line = await anyio.to_thread.run_sync(parent.stderr.readline)
        assert line, "the parent has ended"
    assert "Too many open files; the next one starts in" in line
    limit(psutil.RLIMIT_NOFILE, (256, most))
    os.kill(parent.pid, signal.SIGHUP)

    async def is_replaced() -> bool:
        now = {worker.pid for worker in await producer.workers() if worker.ready}
        return len(now) == 2 and now & first == first - {victim}

    await eventually(is_replaced, "another one is started, and the first ones go on", 60)
    parent.terminate()
    assert await anyio.to_thread.run_sync(parent.wait) == 0


@pytest.mark.long
async def test_without_their_parent_the_workers_drain(producer: TaskBackoffScheduler, start: Start) -> None:
    """Running tasks are finished."""
    parent = start("--processes", "2")
    found = await pids(producer, 2)
    task_id = await producer.create_task({"seconds": 2})
    await eventually(lambda: _running(producer, 1), "it runs")
    parent.kill()
    assert (await producer.wait_task(task_id, 30)).result in found
    await eventually(lambda: not any(map(psutil.pid_exists, found)), "the workers have ended", 30)


@pytest.mark.long
async def test_a_second_signal_is_handed_on_too(producer: TaskBackoffScheduler, start: Start) -> None:
    """Running tasks are handed back."""
    parent = start("--processes", "2")
    await pids(producer, 2)
    task_id = await producer.create_task({})
    await eventually(lambda: _running(producer, 1), "it runs")
    parent.send_signal(signal.SIGINT)
    await eventually(lambda: _draining(producer), "they drain")
    parent.send_signal(signal.SIGINT)
    assert await anyio.to_thread.run_sync(parent.wait) == 0
    task = await producer.get_task(task_id)
    assert task is not None and (task.status, task.lost_count) == ("pending", 0)


async def _draining(producer: TaskBackoffScheduler) -> bool:
    workers = await producer.workers()
    return len(workers) <= 1


@pytest.mark.long
async def test_what_no_worker_can_run_ends_the_parent(start: Start) -> None:
    """Wrong usage would be the same each time."""
    parent = start("--processes", "3", target="mine:nothing")
    assert await anyio.to_thread.run_sync(parent.wait) == 2
    assert parent.stderr is not None
    assert "has no attribute 'nothing'" in parent.stderr.read()
    assert start("--processes", "0").wait() == 2
