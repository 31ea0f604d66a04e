"""A worker that ends at any point of the way of a task: another one completes each task, with one accepted outcome."""

import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest
from support import Server, eventually, load_scripts, quick_config

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.queue_store import QueueStore

pytestmark = [pytest.mark.anyio, pytest.mark.long]

REACHED = 77

# Ends itself, as SIGKILL would, at the point that is named; `unanswered` is after a send, before its answer.
PROGRAM = """
import os, sys
from contextvars import ContextVar
import anyio
from redis.asyncio.connection import AbstractConnection
from maas_backoff import *
from maas_backoff.worker.loops import reap
from maas_backoff.worker.loops.heartbeat import Heartbeat
from maas_backoff.worker.attempts import Attempts
from maas_backoff.store.exchange import Exchange
from maas_backoff.store.lost import LostAttempts
from maas_backoff.store.writer import Writer
from maas_backoff.worker.work import Work

port, point, log = int(sys.argv[1]), sys.argv[2], sys.argv[3]

def end(*_, **__):
    os._exit(77)

def end_before(owner, name, when=lambda *_: True):
    original = getattr(owner, name)
    def patched(*args, **kwargs):
        return end() if when(*args) else original(*args, **kwargs)
    setattr(owner, name, patched)

def end_after(owner, name, when=lambda *_: True):
    original = getattr(owner, name)
    async def patched(*args, **kwargs):
        answer = await original(*args, **kwargs)
        return end() if when(*args) else answer
    setattr(owner, name, patched)

def end_unanswered(owner, name, when=lambda *_: True):
    original, send = getattr(owner, name), AbstractConnection.send_packed_command
    async def patched(*args, **kwargs):
        armed.set(when(*args))
        return await original(*args, **kwargs)
    async def sent(connection, command, *args, **kwargs):
        await send(connection, command, *args, **kwargs)
        if armed.get() and b"EVALSHA" in b"".join([command] if isinstance(command, bytes) else command):
            end()
    setattr(owner, name, patched)
    AbstractConnection.send_packed_command = sent

armed = ContextVar("armed", default=False)
settles = lambda store, request, *_: bool(request.settles)
holds = lambda heartbeat, client: bool(heartbeat._slots.attempts)
claims = lambda store, request, *_: bool(request.claims)
match point:
    case "claim sent": end_unanswered(Exchange, "send", claims)
    case "claim answered": end_before(Attempts, "claimed")
    case "before the handler": end_before(Work, "_begin")
    case "after the handler": end_before(Attempts, "end")
    case "before the settle": end_before(Exchange, "send", settles)
    case "settle sent": end_unanswered(Exchange, "send", settles)
    case "settle answered": end_after(Exchange, "send", settles)
    case "before a heartbeat": end_before(Heartbeat, "_renew", holds)
    case "heartbeat sent": end_unanswered(Heartbeat, "_renew", holds)
    case "lost ones listed": end_before(reap, "settle_lost", lambda store, worker, lost: bool(lost))
    case "lost ones settled": end_after(LostAttempts, "settle")
    case "task sent": end_unanswered(Writer, "enqueue_what_fits", lambda store, tasks, _: tasks[0].task_id == "task-0")

config = TaskBackoffConfig(
    storage=StorageConfig(host="127.0.0.1", port=port),
    task=TaskConfig(biz_prefix=point.replace(" ", "_"), result_ttl=600, failed_ttl=600),
    threadpool=ThreadPoolConfig(concurrency=5),
    scheduler=SchedulerConfig(lease=3, interval=1),
)
scheduler = TaskBackoffScheduler(config)

@scheduler.set_custom_task_handler
async def handler(task):
    with open(log, "a") as file:
        file.write(f"{task.task_id} {task.token}\\n")
    if point == "in the handler":
        end()
    await anyio.sleep(60 if "heartbeat" in point or "lost" in point else 0.05)
    return task.token

if point == "task sent":
    async def create():
        for n in (1, 0):
            await scheduler.create_task({"n": n}, f"task-{n}")
    anyio.run(create)
anyio.run(scheduler.run_until_stopped)
"""

OF_A_WORKER = (
    "claim sent",
    "claim answered",
    "before the handler",
    "in the handler",
    "after the handler",
    "before the settle",
    "settle sent",
    "settle answered",
    "before a heartbeat",
    "heartbeat sent",
)
OF_A_REAPER = ("lost ones listed", "lost ones settled")

TASKS = [f"task-{n}" for n in range(12)]


@pytest.fixture(autouse=True)
def prepared(server: Server, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    load_scripts(server)


def ends(server: Server, folder: Path, point: str) -> subprocess.Popen[bytes]:
    """Start a process that ends itself at this point."""
    command = [sys.executable, str(folder / "program.py"), str(server.port), point, str(folder / point)]
    with (folder / f"{point}.output").open("wb") as output:
        return subprocess.Popen(command, stdout=output, stderr=output)


async def reached(process: subprocess.Popen[bytes], folder: Path, point: str) -> None:
    try:
        await eventually(lambda: process.poll() is not None, f"{point} is reached", 40)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == REACHED, (point, (folder / f"{point}.output").read_text())


def config_of(server: Server, point: str) -> TaskBackoffConfig:
    config = quick_config(server.storage)
    config.task.biz_prefix = point.replace(" ", "_")
    return config


async def create(scheduler: TaskBackoffScheduler) -> None:
    for n, task_id in enumerate(TASKS):
        await scheduler.create_task({"n": n}, task_id)


async def another_completes_all(server: Server, folder: Path, point: str) -> list[TaskEntity]:
    """Run a second worker until nothing is left; the tasks."""
    scheduler = TaskBackoffScheduler(config_of(server, point))
    runs: list[tuple[str, int]] = []

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> int:
        runs.append((task.task_id, task.token or 0))
        return runs[-1][1]

    async with scheduler:
        done = [await scheduler.wait_task(task_id, timeout=40) for task_id in TASKS]
        stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.processing_count, stats.failed_count) == (0, 0, 0), point
    assert stats.completed_count == len(TASKS), point
    assert server.client.hget(f"maas:{{{point.replace(' ', '_')}}}:meta", "completed") == b"%d" % len(TASKS), point
    tokens: dict[str, list[int]] = {}
    log = folder / point
    lines = log.read_text().splitlines() if log.exists() else []
    for task_id, token in [*((line.split()[0], int(line.split()[1])) for line in lines), *runs]:
        tokens.setdefault(task_id, []).append(token)
    for task in done:
        # A second run only where the first was lost; what stands is the last one's word.
        assert (task.status, task.result) == ("completed", max(tokens[task.task_id])), (point, task)
        assert len(tokens[task.task_id]) <= task.attempt == 1 + task.lost_count <= 2, (point, task)
        assert task.retry_count == 0, (point, task)
    return done


async def test_a_worker_that_ends_at_any_point_loses_nothing(server: Server, tmp_path: Path) -> None:
    """All points at once, each in a queue of its own."""

    async def one(point: str) -> None:
        async with TaskBackoffScheduler(config_of(server, point)) as producer:
            await create(producer)
        await reached(ends(server, tmp_path, point), tmp_path, point)
        done = await another_completes_all(server, tmp_path, point)
        lost = sum(task.lost_count for task in done)
        # A task that was settled before the end is done, whether the worker heard so or not.
        assert (0 if point.startswith("settle") else 1) <= lost <= 5, (point, lost)

    async with anyio.create_task_group() as group:
        for point in OF_A_WORKER:
            group.start_soon(one, point)


async def test_a_reaper_that_ends_half_way_loses_nothing(server: Server, tmp_path: Path) -> None:
    """Between its list and its settlements, and after them: each loss is counted once."""

    async def one(point: str) -> None:
        async with TaskBackoffScheduler(config_of(server, point)) as producer:
            await create(producer)
        store = QueueStore.of(config_of(server, point))
        request = BatchRequest((), 5, may_claim_suspect=False, request_id="1", exchange=0)
        assert len((await store.exchange.send(request, "a worker that died")).claimed) == 5
        await store.aclose()
        await reached(ends(server, tmp_path, point), tmp_path, point)
        done = await another_completes_all(server, tmp_path, point)
        assert 5 <= sum(task.lost_count for task in done) <= 10, point

    async with anyio.create_task_group() as group:
        for point in OF_A_REAPER:
            group.start_soon(one, point)


async def test_a_producer_that_ends_before_the_answer_may_create_again(server: Server, tmp_path: Path) -> None:
    """Its successor creates the same id: one task, that runs once."""
    point = "task sent"
    started = time.monotonic()
    await reached(ends(server, tmp_path, point), tmp_path, point)
    async with TaskBackoffScheduler(config_of(server, point)) as producer:

        async def there() -> bool:
            return (await producer.get_queue_stats()).pending_count == 2

        await eventually(there, "the task that was sent is there")
        await create(producer)
        assert (await producer.get_queue_stats()).pending_count == len(TASKS)
    done = await another_completes_all(server, tmp_path, point)
    assert [task.attempt for task in done] == [1] * len(TASKS)
    assert done[0].created_at is not None
    assert time.monotonic() - started < 40
