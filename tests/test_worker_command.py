"""`maas-backoff worker` runs tasks until it is told to stop, and then ends, whatever its handlers do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from support import eventually, started_processes

from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig, TaskStatus

pytestmark = pytest.mark.anyio

MODULE = """
import os, time
from maas_backoff import *

config = TaskBackoffConfig(
    storage=StorageConfig(type="embedded", path="data"),
    task=TaskConfig(biz_prefix="worker"),
    threadpool=ThreadPoolConfig(
        proc_mode=os.environ.get("PROC_MODE", "thread"),
        concurrency=3,
        exec_timeout=float(os.environ.get("EXEC_TIMEOUT", "30")),
    ),
    scheduler=SchedulerConfig(shutdown_grace=10),
)
scheduler = TaskBackoffScheduler(config)

@scheduler.set_custom_task_handler
def handle(task):
    task.update_progress(1)
    time.sleep(task.task_params["seconds"])
    return {"pid": os.getpid(), "parent": os.getppid()}
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a worker in a folder of its own; killed at the end if it still runs."""
    (tmp_path / "mine.py").write_text(MODULE)
    with started_processes() as started:

        def worker(**environment: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "maas_backoff", "worker", "mine:scheduler"]
            env = {**os.environ, **environment}
            started.append(
                subprocess.Popen(
                    command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            return started[-1]

        yield worker


@pytest.fixture
async def producer(tmp_path: Path) -> AsyncIterator[TaskBackoffScheduler]:
    storage = StorageConfig(type="embedded", path=str(tmp_path / "data"))
    async with TaskBackoffScheduler(
        TaskBackoffConfig(storage=storage, task=TaskConfig(biz_prefix="worker", max_retry_count=0))
    ) as producer:
        yield producer


async def status(producer: TaskBackoffScheduler, task_id: str) -> TaskStatus:
    task = await producer.get_task(task_id)
    assert task is not None
    return task.status


@pytest.mark.parametrize(
    ("number", "mode"),
    [(signal.SIGTERM, "thread"), (signal.SIGINT, "thread"), (signal.SIGHUP, "thread"), (signal.SIGTERM, "process")],
)
async def test_a_worker_runs_tasks_and_drains_when_told_to_stop(
    producer: TaskBackoffScheduler, start: Start, number: signal.Signals, mode: str
) -> None:
    """Running tasks are finished, waiting ones are left to others, and the exit code is 0."""
    worker = start(PROC_MODE=mode)
    first = await producer.create_task({"seconds": 0})
    result = (await producer.wait_task(first, timeout=20)).result
    assert result["pid" if mode == "thread" else "parent"] == worker.pid
    running = await producer.create_task({"seconds": 0.6})
    # A task that is claimed but not yet started would be handed back.
    await eventually(lambda: _started(producer, running), "the handler has started")
    worker.send_signal(number)
    assert (await producer.wait_task(running, timeout=20)).status == TaskStatus.COMPLETED
    later = await producer.create_task({"seconds": 0})
    output, errors = worker.communicate(timeout=20)
    assert (worker.returncode, output) == (0, ""), errors
    assert f"{number.name}: finishing running attempts" in errors
    assert "Traceback" not in errors
    assert await status(producer, later) == TaskStatus.PENDING


async def _started(producer: TaskBackoffScheduler, task_id: str) -> bool:
    task = await producer.get_task(task_id)
    return task is not None and task.progress == 1


async def test_a_worker_that_ends_by_itself_exits_with_1(
    producer: TaskBackoffScheduler, start: Start, tmp_path: Path
) -> None:
    """Supervisors restart what has failed, and only that."""
    (tmp_path / "mine.py").write_text(
        MODULE
        + """
import asyncio

@scheduler.set_custom_task_handler
async def cancel_all(task):
    for one in asyncio.all_tasks():
        if one.get_name() == "maas-backoff":
            one.cancel()
"""
    )
    worker = start()
    await producer.create_task({})
    output, errors = worker.communicate(timeout=20)
    assert (worker.returncode, output) == (1, ""), errors
    assert "CRITICAL maas_backoff.worker: the worker has died: other code of this process cancelled" in errors


async def test_a_thread_that_does_not_end_does_not_keep_the_worker_alive(
    producer: TaskBackoffScheduler, start: Start
) -> None:
    worker = start(EXEC_TIMEOUT="0.1")
    task_id = await producer.create_task({"seconds": 3600})
    assert (await producer.wait_task(task_id, timeout=20)).status == TaskStatus.FAILED
    stopped = time.monotonic()
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=20)
    assert (worker.returncode, time.monotonic() - stopped < 8) == (0, True), errors
    assert "left behind, as they do not end: threads" in errors


async def test_a_coroutine_that_does_not_end_does_not_keep_the_worker_alive(
    producer: TaskBackoffScheduler, start: Start, tmp_path: Path
) -> None:
    """It swallows each cancel, also those with which asyncio ends. Its task is left to its lease."""
    (tmp_path / "mine.py").write_text(
        MODULE
        + """
import asyncio

config.scheduler.shutdown_grace = 0.1

@scheduler.set_custom_task_handler
async def stubborn(task):
    task.update_progress(1)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
"""
    )
    worker = start()
    task_id = await producer.create_task({})
    await eventually(lambda: _started(producer, task_id), "the handler has started")
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=30)
    assert worker.returncode == 0, errors
    assert f"task '{task_id}' is left to its lease at shutdown" in errors
    assert "left behind, as they do not end: coroutines maas-backoff" in errors
    assert await status(producer, task_id) == TaskStatus.PROCESSING


async def test_a_thread_of_asyncio_that_does_not_end_does_not_keep_the_worker_alive(
    producer: TaskBackoffScheduler, start: Start, tmp_path: Path
) -> None:
    """Its coroutine is cancelled, and has ended. asyncio joins the thread."""
    (tmp_path / "mine.py").write_text(
        MODULE
        + """
import asyncio

@scheduler.set_custom_task_handler
async def waits_for_a_thread(task):
    await asyncio.to_thread(time.sleep, 3600)
"""
    )
    worker = start(EXEC_TIMEOUT="0.1")
    task_id = await producer.create_task({})
    assert (await producer.wait_task(task_id, timeout=20)).status == TaskStatus.FAILED
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=30)
    assert worker.returncode == 0, errors
    assert "left behind, as they do not end: threads asyncio_0" in errors


async def test_a_signal_ends_the_start(start: Start, tmp_path: Path) -> None:
    """A model takes long to load, or its download hangs."""
    (tmp_path / "mine.py").write_text(
        MODULE
        + """
import asyncio, contextlib

@scheduler.set_custom_task_handler
async def handle(task, model): ...

@scheduler.set_worker_lifespan
@contextlib.asynccontextmanager
async def loads():
    try:
        print("loading", flush=True)
        await asyncio.sleep(3600)
        yield
    finally:
        print("cleaned up", flush=True)
"""
    )
    worker = start()
    assert worker.stdout is not None
    assert await anyio.to_thread.run_sync(worker.stdout.readline) == "loading\n"
    worker.send_signal(signal.SIGTERM)
    output, errors = worker.communicate(timeout=20)
    assert (worker.returncode, output) == (0, "cleaned up\n"), errors
    assert "SIGTERM: giving up the start" in errors


@pytest.mark.long
async def test_a_start_that_swallows_its_cancel_is_given_up_all_the_same(start: Start, tmp_path: Path) -> None:
    """As a download does that is tried again after each exception."""
    (tmp_path / "mine.py").write_text(
        MODULE
        + """
import asyncio, contextlib

@scheduler.set_custom_task_handler
async def handle(task, model): ...

@scheduler.set_worker_lifespan
@contextlib.asynccontextmanager
async def loads():
    print("loading", flush=True)
    while True:
        try:
            await asyncio.sleep(3600)
        except BaseException:
            pass
    yield
"""
    )
    worker = start()
    assert worker.stdout is not None
    assert await anyio.to_thread.run_sync(worker.stdout.readline) == "loading\n"
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors
    assert "left behind, as they do not end: coroutines maas-backoff" in errors


SLOW = (
    MODULE
    + """
from contextlib import contextmanager

@scheduler.set_worker_lifespan
@contextmanager
def model():
    open("loading", "w").close()
    while not os.path.exists("may_go_on"):
        time.sleep(0.01)
    yield

@scheduler.set_custom_task_handler
def handle(task, model):
    pass
"""
)


@pytest.mark.parametrize("mode", ["thread", "process"])
async def test_a_worker_is_ready_when_its_lifespan_is_entered(
    producer: TaskBackoffScheduler, start: Start, tmp_path: Path, mode: str
) -> None:
    """Until then `check --ready` fails, though the registry has it; the log says when it is."""
    (tmp_path / "mine.py").write_text(SLOW)
    worker = start(PROC_MODE=mode)

    async def is_ready() -> tuple[int, str]:
        command = [sys.executable, "-m", "maas_backoff", "check", "--ready"]
        own = {"TYPE": "embedded", "PATH": str(tmp_path / "data"), "BIZ_PREFIX": "worker"}
        env = {**os.environ, **{f"MAAS_BACKOFF_{name}": value for name, value in own.items()}}
        done = await anyio.run_process(command, env=env, check=False)
        return done.returncode, done.stderr.decode()

    await eventually((tmp_path / "loading").exists, "the lifespan is being entered")
    await eventually(producer.workers, "it is in the registry")
    code, error = await is_ready()
    assert code == 1
    assert "no worker of this queue on this host is ready: starting" in error
    (tmp_path / "may_go_on").touch()

    async def says_ready() -> bool:
        return all(one.ready for one in await producer.workers())

    await eventually(says_ready, "it says so at once")
    assert (await is_ready())[0] == 0
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=20)
    assert "INFO maas_backoff.worker: ready: worker " in errors
