"""A worker ends when its work is done: `until_idle`, `run_until_stopped(until=)`, and `maas-backoff worker --burst`."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from proxy import Proxy
from support import Server, eventually, quick_config, started_processes

from maas_backoff import (
    HandlerError,
    InvalidValueError,
    RateLimited,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskKind,
    TaskStatus,
    WorkerEndedError,
)
from maas_backoff.store.reader import Reader
from maas_backoff.testing import FakeGpu, FakeGpuProbe
from maas_backoff.worker.idle import LOOK

pytestmark = pytest.mark.anyio


@pytest.fixture
async def worker(scheduler: TaskBackoffScheduler) -> TaskBackoffScheduler:
    """A scheduler that is not started. Its tasks fail as often as their params say."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> int:
        task.update_progress(1)
        await anyio.sleep(task.task_params.get("seconds", 0))
        if task.retry_count < task.task_params.get("failures", 0):
            raise ValueError
        return task.attempt

    return scheduler


async def run_burst(worker: TaskBackoffScheduler, within: float = 0) -> str:
    """Run the worker to the end of its work; return what it says of the tasks that are left."""
    left = ""

    async def until_idle() -> None:
        nonlocal left
        left = await worker.until_idle(within)

    with anyio.fail_after(30):
        await worker.run_until_stopped(until=until_idle)
    return left


async def counts(worker: TaskBackoffScheduler) -> tuple[int, int]:
    """Return how many tasks are completed and pending."""
    stats = await worker.get_queue_stats()
    return stats.completed_count, stats.pending_count


async def test_a_worker_ends_when_all_due_tasks_are_done(worker: TaskBackoffScheduler) -> None:
    """Delayed ones are left, and counted."""
    await worker.create_tasks({"seconds": 0.01} for _ in range(50))
    for delay in (3600, 7200):
        await worker.create_task({}, delay=delay)
    left = await run_burst(worker)
    assert await counts(worker) == (50, 2)
    assert left.startswith(
        "2 delayed and 0 due tasks are left. Nothing is due: nothing runs; the next of 2 tasks is due"
    )
    assert await run_burst(worker), "and at once if there is nothing to do"


async def test_tasks_that_are_due_soon_are_waited_for(worker: TaskBackoffScheduler) -> None:
    """Retries are, too."""
    await worker.create_task({"failures": 1}, backoff_interval=0.5)
    await worker.create_task({}, delay=1)
    await worker.create_task({}, delay=3600)
    await run_burst(worker, within=30)
    assert await counts(worker) == (2, 1)


async def test_a_task_that_fails_during_the_last_look_is_waited_for(
    worker: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It begins after the look has found nothing, and waits for its retry when the answer is made."""
    next_due, created = Reader.next_due, False

    async def before_a_failure(reader: Reader) -> float | None:
        nonlocal created
        found = await next_due(reader)
        if not created:
            created = True
            task_id = await worker.create_task({"failures": 1}, backoff_interval=1)
            await eventually(lambda: _failed(worker, task_id), "its first attempt has failed")
        return found

    monkeypatch.setattr(Reader, "next_due", before_a_failure)
    await run_burst(worker, within=30)
    assert created and await counts(worker) == (1, 0)


async def test_a_batch_whose_claim_is_not_answered_yet_is_waited_for(server: Server) -> None:
    """The server has given the tasks away, and their params are still on their way."""

    def made() -> tuple[TaskBackoffScheduler, TaskKind[[str], int]]:
        scheduler = TaskBackoffScheduler(quick_config(server.storage))

        @scheduler.batch(max_size=32)
        async def embed(texts: list[str]) -> list[int]:
            return list(map(len, texts))

        @scheduler.task
        async def other() -> None: ...

        return scheduler, embed

    producer, embed = made()
    await producer.start(run_tasks=False)
    for _ in range(3):
        await embed.create_many(embed.spec("x" * 200_000) for _ in range(96))
        worker, _ = made()
        left = await run_burst(worker)
        assert left == "0 delayed and 0 due tasks are left. Nothing is due: nothing runs."
    assert await counts(producer) == (3 * 96, 0)
    await producer.shutdown()


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("batches", [1, 3])
async def test_looks_for_batches_end(config: TaskBackoffConfig, slots: int, batches: int) -> None:
    """Each kind has a look of its own, and with few slots it waits for other claims."""
    config.threadpool.concurrency = slots
    worker = TaskBackoffScheduler(config)

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> None: ...

    for n in range(batches):

        @worker.batch(name=f"embed{n}", max_size=4)
        async def embed(texts: list[str]) -> list[int]:
            return list(map(len, texts))

        await embed.create("a cat")
    await worker.create_task({})
    await run_burst(worker)
    assert await counts(worker) == (batches + 1, 0)


async def test_a_slow_network_only_makes_the_end_later(server: Server) -> None:
    """An answer takes longer than the pause between two looks."""
    async with Proxy(server.port) as proxy:
        worker = TaskBackoffScheduler(quick_config(proxy.storage))

        @worker.set_custom_task_handler
        async def handle(task: TaskEntity) -> None: ...

        await worker.create_task({})
        proxy.delay = 1.5 * LOOK
        await run_burst(worker)
        proxy.delay = 0
        assert await counts(worker) == (1, 0)
        await worker.shutdown()


async def _failed(worker: TaskBackoffScheduler, task_id: str) -> bool:
    task = await worker.get_task(task_id)
    return task is not None and task.retry_count == 1


async def test_paused_tasks_and_those_of_other_kinds_are_left(
    worker: TaskBackoffScheduler, config: TaskBackoffConfig
) -> None:
    other = TaskBackoffScheduler(config)

    @other.task
    async def upscale() -> None: ...

    @worker.task
    async def render() -> None: ...

    await upscale.create()
    await render.create()
    await worker.create_task({})
    await worker.create_task({}, tenant="acme")
    await worker.pause(kind="render")
    await worker.pause(tenant="acme")
    left = await run_burst(worker)
    assert await counts(worker) == (1, 3)
    assert left.startswith("0 delayed and 3 due tasks are left. 3 tasks due")
    assert "kind render: paused" in left and "tenant acme is paused" in left and "of kind upscale" in left
    await worker.resume(kind="render")
    await worker.resume(tenant="acme")
    await worker.pause()
    assert "The queue is paused: 3 tasks due" in await run_burst(worker)
    await other.shutdown()


@pytest.mark.long
async def test_tasks_that_wait_for_a_limit_are_waited_for(scheduler: TaskBackoffScheduler) -> None:
    """Here the limit is closed for a second, by the first task."""

    @scheduler.task(limits={"openai": 1})
    async def ask(task: TaskEntity) -> None:
        if task.snooze_count == 0 and (await scheduler.get_queue_stats()).completed_count == 0:
            raise RateLimited(after=1)

    await scheduler.set_limit("openai", concurrency=1)
    for _ in range(5):
        await ask.create()
    await run_burst(scheduler, within=2)
    assert await counts(scheduler) == (5, 0)


async def test_tasks_wait_for_room_on_a_gpu_that_is_large_enough(server: Server) -> None:
    """Others are left: no device here will ever do."""
    gpu = FakeGpu("GPU-a", total_gb=16, other_processes_gb=14)
    probe = FakeGpuProbe([gpu])
    worker = TaskBackoffScheduler(quick_config(server.storage), gpu_probe=probe)

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> None: ...

    await worker.create_task({}, "fits", min_gpu_memory_gb=8)
    await worker.create_task({}, "large", min_gpu_memory_gb=80)
    idle = anyio.Event()

    async def wait() -> None:
        await worker.until_idle()
        idle.set()

    async with worker, anyio.create_task_group() as group:
        group.start_soon(wait)
        await eventually(lambda: _waits(worker, "fits", "free"), "it has looked for room")
        with anyio.move_on_after(1):
            await idle.wait()
        assert not idle.is_set(), "there will be room"
        gpu.other_processes_gb = 0
        probe.poke()
        with anyio.fail_after(20):
            await idle.wait()
        assert await counts(worker) == (1, 1)


async def _waits(worker: TaskBackoffScheduler, task_id: str, why: str) -> bool:
    task = await worker.get_task(task_id)
    return task is not None and why in (task.waiting_for or "")


async def test_an_outage_does_not_end_the_wait(worker: TaskBackoffScheduler, server: Server) -> None:
    task_id = await worker.create_task({"seconds": 0.5})
    async with worker, anyio.create_task_group() as group:
        group.start_soon(worker.until_idle)
        await eventually(lambda: _runs(worker, task_id), "it runs")
        server.pause()
        await anyio.sleep(1)
        server.go_on()
    assert await counts(worker) == (1, 0)


async def _runs(worker: TaskBackoffScheduler, task_id: str) -> bool:
    """Whether the handler has begun: a task that is claimed and has not begun is handed back by a drain."""
    task = await worker.get_task(task_id)
    return task is not None and task.progress == 1


@pytest.mark.parametrize("by", ["shutdown", "failure"])
async def test_the_end_of_the_worker_ends_the_wait(worker: TaskBackoffScheduler, by: str) -> None:
    task_id = await worker.create_task({"seconds": 60})
    await worker.start()
    errors: list[WorkerEndedError] = []

    async def wait() -> None:
        with anyio.fail_after(20):
            try:
                await worker.until_idle()
            except WorkerEndedError as error:
                errors.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await eventually(lambda: _runs(worker, task_id), "it runs")
        if by == "failure":
            next(one for one in asyncio.all_tasks() if one.get_name() == "maas-backoff poll").cancel()
        else:
            worker.config.scheduler.shutdown_grace = 0
            await worker.shutdown()
    assert len(errors) == 1
    if by == "failure":
        with pytest.raises(WorkerEndedError):
            await worker.shutdown()


async def test_what_runs_beside_a_worker_ends_it(worker: TaskBackoffScheduler) -> None:
    """Its error is raised after the drain."""
    seen: list[object] = []

    async def create_and_fail() -> None:
        task_id = await worker.create_task({"seconds": 0.5})
        await eventually(lambda: _runs(worker, task_id), "it runs")
        seen.append(task_id)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), anyio.fail_after(20):
        await worker.run_until_stopped(until=create_and_fail)
    task = await worker.get_task(str(seen[0]))
    assert task is not None and task.status is TaskStatus.COMPLETED


async def test_a_signal_cancels_what_runs_beside_a_worker(worker: TaskBackoffScheduler) -> None:
    """The scheduler can be used until it has cleaned up."""
    seen: list[TaskStatus] = []

    async def create_and_stop() -> None:
        task_id = await worker.create_task({"seconds": 0.5})
        await eventually(lambda: _runs(worker, task_id), "it runs")
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                seen.append((await worker.wait_task(task_id)).status)

    with anyio.fail_after(20):
        await worker.run_until_stopped(until=create_and_stop)
    assert seen == [TaskStatus.COMPLETED]


async def test_a_cancel_of_the_call_drains_the_worker(worker: TaskBackoffScheduler) -> None:
    task_id = await worker.create_task({"seconds": 0.5})
    with anyio.fail_after(20):
        async with asyncio.TaskGroup() as group:
            run = group.create_task(worker.run_until_stopped())
            await eventually(lambda: _runs(worker, task_id), "it runs")
            run.cancel()
            await anyio.wait_all_tasks_blocked()
            os.kill(os.getpid(), signal.SIGTERM)  # would end this process, were it not waited for
        assert run.cancelled() and worker.health().reasons == ("not started",)
    assert await counts(worker) == (1, 0)


async def test_wrong_arguments_and_a_missing_worker_are_refused(worker: TaskBackoffScheduler) -> None:
    for within in (-1, float("nan"), "1", True, None):
        with pytest.raises(InvalidValueError, match="within: expected seconds"):
            await worker.until_idle(within)  # type: ignore[arg-type] - wrong on purpose
    with pytest.raises(HandlerError, match="no worker runs here"):
        await worker.until_idle()


MODULE = """
import os
from maas_backoff import *

scheduler = TaskBackoffScheduler(TaskBackoffConfig(
    storage=StorageConfig(host="127.0.0.1", port=int(os.environ["TEST_PORT"])),
    task=TaskConfig(biz_prefix="test", result_ttl=600, failed_ttl=600, backoff_interval=0.1),
    threadpool=ThreadPoolConfig(concurrency=4),
))

@scheduler.set_custom_task_handler
def handle(task):
    if task.attempt == 1 and task.task_params["n"] == 0:
        raise ValueError
    return os.getpid()
"""

Burst = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def burst(tmp_path: Path, server: Server) -> Iterator[Burst]:
    """Start the command in a folder of its own."""
    (tmp_path / "mine.py").write_text(MODULE)
    with started_processes() as started:

        def command(*options: str) -> subprocess.Popen[str]:
            words = [sys.executable, "-m", "maas_backoff", "worker", "mine:scheduler", *options]
            env = {**os.environ, "TEST_PORT": str(server.port)}
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(words, cwd=tmp_path, env=env, stdout=pipe, stderr=pipe, text=True))
            return started[-1]

        yield command


@pytest.fixture
async def producer(server: Server) -> AsyncIterator[TaskBackoffScheduler]:
    async with TaskBackoffScheduler(quick_config(server.storage)) as producer:
        yield producer


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.long)])
async def test_the_command_ends_with_0_and_says_what_is_left(
    producer: TaskBackoffScheduler, burst: Burst, processes: int
) -> None:
    await producer.create_tasks({"n": n} for n in range(20))
    await producer.create_task({"n": 1}, delay=3600)
    process = burst("--burst", "--burst-wait", "10", "--processes", str(processes))
    output, errors = await anyio.to_thread.run_sync(lambda: process.communicate(timeout=50))
    assert (process.returncode, output) == (0, ""), errors
    assert errors.count("burst: 1 delayed and 0 due tasks are left. ") == processes
    assert await counts(producer) == (20, 1)


def test_a_wait_without_a_burst_is_wrong_usage(burst: Burst) -> None:
    assert "--burst-wait is for a worker with --burst" in _errors_of(burst("--burst-wait", "1"))
    assert "expected seconds from 0 on, got '-1'" in _errors_of(burst("--burst", "--burst-wait", "-1"))


def _errors_of(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    return errors
