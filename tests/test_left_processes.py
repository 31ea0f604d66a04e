"""The next worker on a machine ends what the handlers of a killed worker have started, and nothing else."""

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import handlers_for_children as handlers
import psutil
import pytest
from support import Server, eventually

from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig
from maas_backoff.common import orphans
from maas_backoff.common.orphans import MARK, Origin, end_orphans, marked, this_process, unmarked

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is told to be one"),
]

WORKER = """
import os, subprocess, sys, time
from maas_backoff import *

config = TaskBackoffConfig(
    storage=StorageConfig(host="127.0.0.1", port=int(os.environ["PORT"])),
    task=TaskConfig(biz_prefix="killed", max_lost=1),
    threadpool=ThreadPoolConfig(concurrency=1, proc_mode="process"),
    scheduler=SchedulerConfig(lease=3),
)
scheduler = TaskBackoffScheduler(config)

@scheduler.set_custom_task_handler
def handle(task):
    sleep = ["sleep", "600"]
    kept = {name: text for name, text in os.environ.items() if name != "_MAAS_BACKOFF_WORKER"}
    started = [
        subprocess.Popen(sleep),
        subprocess.Popen(sleep, start_new_session=True),
        subprocess.Popen(["sh", "-c", "sleep 600 & wait"], start_new_session=True),
        subprocess.Popen(sleep, env=kept, start_new_session=True),
    ]
    with open("pids.new", "w") as file:
        print(*(one.pid for one in started), file=file)
    os.rename("pids.new", "pids")
    time.sleep(600)
"""


def run(*command: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, **options)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Process ids to be killed at the end."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if lives(pid):
            os.kill(pid, signal.SIGKILL)


@asynccontextmanager
async def killed_worker(
    server: Server, scheduler: TaskBackoffScheduler, folder: Path, started: list[int]
) -> AsyncIterator[psutil.Process]:
    """Give the process beside a worker whose handler has started processes; the worker is killed at the end."""
    (folder / "killed.py").write_text(WORKER)
    command = [sys.executable, "-m", "maas_backoff", "worker", "killed:scheduler"]
    worker = run(*command, cwd=folder, env={**os.environ, "PORT": str(server.port)})
    scheduler.config.task.biz_prefix = "killed"
    scheduler.config.task.max_lost = 1
    try:
        await scheduler.create_task({}, "x")
        file = folder / "pids"
        await eventually(file.exists, "the handler has started them", 40)
        started.extend(map(int, file.read_text().split()))
        (inner,) = (child.pid for child in psutil.Process(started[2]).children())
        started.append(inner)
        (cleaner,) = (one for one in psutil.Process(worker.pid).children() if "orphans.py" in " ".join(one.cmdline()))
        yield cleaner
    finally:
        worker.kill()
        worker.wait()


async def test_the_next_worker_ends_what_a_killed_one_has_left(
    server: Server, scheduler: TaskBackoffScheduler, tmp_path: Path, started: list[int]
) -> None:
    """In sessions of their own or not, and what those have started; but not what was started without the mark."""
    async with killed_worker(server, scheduler, tmp_path, started) as cleaner:
        await anyio.to_thread.run_sync(end_orphans)
        assert all(map(lives, started)), "their worker lives"
        cleaner.kill()
    in_group, in_session, shell, kept, inner = started
    scheduler.set_custom_task_handler(handlers.pid)  # a worker of any kind, of any queue
    async with scheduler:
        assert not any(map(lives, (in_group, in_session, shell, inner))), "they ended before it was ready"
        assert lives(kept)


async def test_what_a_killed_worker_has_left_ends_without_another_worker(
    server: Server, scheduler: TaskBackoffScheduler, tmp_path: Path, started: list[int]
) -> None:
    """Within seconds: GPU memory is worth more. What was started without the mark stays."""
    async with killed_worker(server, scheduler, tmp_path, started) as cleaner:
        pass
    in_group, in_session, shell, kept, inner = started
    await eventually(lambda: not any(map(lives, (in_group, in_session, shell, inner))), "they have ended", 20)
    assert lives(kept)
    await eventually(lambda: not lives(cleaner.pid), "nothing is left to do", 20)


def test_what_is_marked_is_ended_only_if_its_worker_is_gone_for_certain(started: list[int]) -> None:
    mine = this_process()
    assert mine is not None
    assert Origin.parse(str(mine)) == mine
    gone = run("sleep", "600")
    theirs = Origin(mine.boot, mine.namespace, gone.pid, orphans._status(gone.pid)[1])
    gone.kill()
    gone.wait()
    kept = {
        "of this worker": str(mine),
        "of another start of the machine": str(Origin("other", theirs.namespace, theirs.pid, theirs.started)),
        "of another container": str(Origin(theirs.boot, "1", theirs.pid, theirs.started)),
        "nonsense": "a/b/c/d",
        "empty": "",
    }
    ended = {
        "of one that has ended": str(theirs),
        "of one whose number is another's now": str(Origin(mine.boot, mine.namespace, mine.pid, mine.started - 1)),
    }
    marks = {**kept, **ended}
    processes = {name: run("sleep", "600", env={**os.environ, MARK: mark}) for name, mark in marks.items()}
    processes["without"] = run("sleep", "600", env=unmarked(marked(os.environ)))
    started.extend(one.pid for one in processes.values())
    found = end_orphans()
    expected = {processes[name].pid for name in ended}
    ours = {one.pid for one in processes.values()}  # tests that run beside this one may leave processes, too
    assert {pid for pids in found.values() for pid in pids} & ours == expected
    assert {owner for owner, pids in found.items() if ours.intersection(pids)} == {theirs.pid, mine.pid}
    for name in ended:
        assert processes[name].wait(10) == -signal.SIGKILL
    assert all(lives(one.pid) for name, one in processes.items() if name not in ended)
    for one in processes.values():
        one.kill()
        one.wait()


def test_a_worker_that_is_a_zombie_is_gone(started: list[int]) -> None:
    """Its parent has not reaped it; nothing of it runs."""
    mine = this_process()
    assert mine is not None
    process = subprocess.Popen(["sleep", "600"])
    started.append(process.pid)
    origin = Origin(mine.boot, mine.namespace, process.pid, orphans._status(process.pid)[1])
    assert not origin.is_gone(mine.boot, mine.namespace)
    process.kill()
    while lives(process.pid):
        pass
    assert origin.is_gone(mine.boot, mine.namespace)
    process.wait()


async def test_a_worker_looks_now_and_then(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not only when it starts; what it finds is logged, and that it cannot look ends nothing."""
    looks: list[None] = []

    def found() -> dict[int, list[int]]:
        looks.append(None)
        if len(looks) == 2:
            raise RuntimeError("can't start new thread")
        return {4711: [1, 2]} if len(looks) == 3 else {}

    monkeypatch.setattr("maas_backoff.worker.loops.orphans.end_orphans", found)
    monkeypatch.setattr("maas_backoff.worker.loops.orphans.PERIOD", 0.01)
    scheduler.set_custom_task_handler(handlers.pid)
    async with scheduler:
        await eventually(lambda: len(looks) > 3, "it goes on to look")
        assert scheduler.health().ready
    assert "ended 2 processes that handlers of process 4711 had started, which has ended: 1, 2" in caplog.messages


async def test_an_embedded_server_that_a_handler_has_started_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may use it by now; it ends with its last user."""
    mine = this_process()
    assert mine is not None
    monkeypatch.setenv(MARK, str(Origin(mine.boot, mine.namespace, mine.pid, mine.started - 1)))
    storage = StorageConfig(type="embedded", path=str(tmp_path / "data"))
    async with TaskBackoffScheduler(TaskBackoffConfig(storage=storage, task=TaskConfig(biz_prefix="q"))) as producer:
        assert mine.pid not in await anyio.to_thread.run_sync(end_orphans)
        await producer.create_task({})
