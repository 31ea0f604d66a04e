"""A real Prometheus scrapes `maas-backoff metrics` of real queues, and fires each alert rule.

Each queue has a trouble of its own. The rules are those of the package, 120 times as fast. One queue is well.
"""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from prometheus_server import Prometheus, free_port, rules
from support import USUAL, Server, eventually, quick_config, started_processes

from maas_backoff import Retry, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskSpec
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(240)]

TIMES = 120

EXPECTED = {
    "down": {"ServerDown"},
    "stopped": {"NoWorkers", "QueueLate"},
    "paused": {"Paused"},
    "late": {"QueueLate", "AttemptStuck", "NothingEnds"},
    "failing": {"Failures", "RetryStorm"},
    "stuck": {"WorkerNotReady"},
    "blocked": {"EventLoopBlocked"},
    "killed": {"LostTasks", "Suspects"},
    "gpus": {"UnfitTasks", "NoRoomOnGpus"},
    "": {"GpuBroken"},  # a GPU belongs to no queue
    "well": set[str](),
}
"""The alerts of each queue. Others may fire, too: a task that is suspect is also late."""

# A worker process: its handler blocks the event loop, or runs for ever.
WORKER = """
import sys, time
import anyio
from maas_backoff import *

url, queue, blocks = sys.argv[1], sys.argv[2], sys.argv[3] == "blocks"
config = TaskBackoffConfig(storage=StorageConfig(url=url), task=TaskConfig(biz_prefix=queue))
config.scheduler.lease = 3
scheduler = TaskBackoffScheduler(config)

@scheduler.set_custom_task_handler
async def handle(task):
    if not blocks:
        await anyio.sleep_forever()
    time.sleep(2.5)
    raise Snooze(0)

anyio.run(scheduler.run_until_stopped)
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


class Fleet:
    """The queues of the test: schedulers in this process, and worker processes."""

    def __init__(self, server: Server, start: Start, stack: AsyncExitStack) -> None:
        self._server = server
        self._start = start
        self._stack = stack

    def config(self, queue: str) -> TaskBackoffConfig:
        config = quick_config(self._server.storage)
        config.task.biz_prefix = queue
        return config

    async def producer(self, queue: str) -> TaskBackoffScheduler:
        return await self._stack.enter_async_context(_closing(TaskBackoffScheduler(self.config(queue))))

    async def worker(self, queue: str, handler: Callable[..., Any], *gpus: FakeGpu) -> TaskBackoffScheduler:
        probe = FakeGpuProbe(gpus)
        config = self.config(queue)
        config.threadpool.concurrency = 2
        config.threadpool.exec_timeout = 3600
        config.scheduler.shutdown_grace = 0.1
        scheduler = TaskBackoffScheduler(config, gpu_probe=probe)
        scheduler.set_custom_task_handler(handler)
        return await self._stack.enter_async_context(scheduler)

    async def process(self, queue: str, how: str) -> "subprocess.Popen[bytes]":
        return await to_thread.run_sync(self._start, f"redis://127.0.0.1:{self._server.port}", queue, how)

    async def running(self, scheduler: TaskBackoffScheduler, number: int) -> None:
        async def run() -> bool:
            return (await scheduler.get_queue_stats()).processing_count == number

        await eventually(run, f"{number} tasks run")

    # The troubles

    async def stopped(self) -> None:
        """A task is due, and no worker is alive."""
        await (await self.producer("stopped")).create_task({})

    async def paused(self) -> None:
        await (await self.producer("paused")).pause()

    async def late(self) -> None:
        """Both slots are taken for ever, and a third task waits."""
        scheduler = await self.worker("late", _never_ends)
        await scheduler.create_tasks([{}] * 3)

    async def failing(self) -> None:
        """Most attempts fail: some are retried, others are not."""

        async def handle(task: TaskEntity) -> None:
            if task.task_params["fails"]:
                raise ValueError("no model")
            raise Retry(after=0.2)

        scheduler = await self.worker("failing", handle)
        await self._go_on(lambda: scheduler.create_task({"fails": True}, max_retry_count=0))
        await scheduler.create_tasks([TaskSpec({"fails": False}, max_retry_count=10_000)] * 3)

    async def stuck(self, release: threading.Event) -> None:
        """A thread outlives the timeout of its task."""

        def handle(task: TaskEntity) -> None:
            release.wait()

        scheduler = await self.worker("stuck", handle)
        await scheduler.create_task({}, exec_timeout=0.2, max_retry_count=0)

    async def blocked(self) -> None:
        await (await self.producer("blocked")).create_task({})
        await self.process("blocked", "blocks")

    async def killed(self) -> None:
        """A task loses its worker twice. A worker that claims nothing settles it."""
        quiet = await self.worker("killed", _never_ends)
        (name,) = {worker.name for worker in await quiet.quiet_workers((await quiet.workers())[0].name)}

        async def is_quiet() -> bool:
            return any(worker.name == name and worker.quiet for worker in await quiet.workers())

        await eventually(is_quiet, "the worker is quiet")
        await quiet.create_task({}, "x")
        for _ in range(2):
            process = await self.process("killed", "runs")
            await self.running(quiet, 1)
            process.kill()
            await self.running(quiet, 0)

    async def gpus(self) -> None:
        """One GPU is in quarantine, others use all of the second, and a task needs more than both have."""
        sick, full = FakeGpu("GPU-sick", total_gb=24), FakeGpu("GPU-full", total_gb=24, other_processes_gb=24)
        scheduler = await self.worker("gpus", _never_ends, sick, full)
        await scheduler.quarantine_gpu("GPU-sick", "ECC errors")
        await scheduler.create_task({}, min_gpu_memory_gb=8)
        await scheduler.create_task({}, min_gpu_memory_gb=80)

    async def well(self) -> None:
        """Tasks come and complete."""

        async def handle(task: TaskEntity) -> None:
            pass

        scheduler = await self.worker("well", handle, FakeGpu("GPU-well", total_gb=24))
        await self._go_on(lambda: scheduler.create_task({}, min_gpu_memory_gb=1))

    async def _go_on(self, create: Callable[[], Awaitable[object]]) -> None:
        """Create a task every 0.1 s until the end of the test."""

        async def run() -> None:
            while True:
                await create()
                await anyio.sleep(0.1)

        call = asyncio.create_task(run())

        async def stop() -> None:
            call.cancel()
            await asyncio.wait([call])

        self._stack.push_async_callback(stop)


async def _never_ends(task: TaskEntity) -> None:
    await anyio.sleep_forever()


@asynccontextmanager
async def _closing(scheduler: TaskBackoffScheduler) -> AsyncIterator[TaskBackoffScheduler]:
    yield scheduler
    await scheduler.shutdown()


@pytest.mark.blocks  # starts processes
async def test_a_real_prometheus_fires_each_alert(server: Server, tmp_path: Path) -> None:
    names = {rule["alert"].removeprefix("MaasBackoff") for rule in rules()}
    assert names == set[str]().union(*EXPECTED.values()), "each rule has a queue"
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    release, down = threading.Event(), Server(USUAL, tmp_path)
    with started_processes() as processes:

        def start(*command: object) -> "subprocess.Popen[bytes]":
            env = {name: text for name, text in os.environ.items() if not name.startswith("MAAS_BACKOFF_")}
            processes.append(subprocess.Popen([sys.executable, *map(str, command)], env=env))
            return processes[-1]

        def exporter(queue: str) -> str:
            port = free_port()
            url = f"redis://127.0.0.1:{down.port if queue == 'down' else server.port}"
            start("-m", "maas_backoff", "metrics", "--url", url, "--queue", queue, "--port", port)
            return f"127.0.0.1:{port}"

        targets = {queue: exporter(queue) for queue in EXPECTED if queue}
        prometheus = Prometheus(tmp_path, targets, TIMES)
        try:
            await to_thread.run_sync(prometheus.wait)
            async with AsyncExitStack() as stack:
                stack.callback(release.set)
                fleet = Fleet(server, lambda *words: start(script, *words), stack)
                await to_thread.run_sync(down.stop)
                for trouble in ("stopped", "paused", "late", "failing", "blocked", "gpus", "well"):
                    await getattr(fleet, trouble)()
                await fleet.stuck(release)
                await fleet.killed()  # last: a loss is an alert for some seconds only
                await _all_fire(prometheus)
        finally:
            prometheus.stop()
            down.stop()


async def _all_fire(prometheus: Prometheus) -> None:
    """Wait until each alert has fired for its queue; print when, and its texts."""
    began, left = time.monotonic(), {(queue, name) for queue, found in EXPECTED.items() for name in found}
    while left:
        for alert in await to_thread.run_sync(prometheus.firing):
            labels, texts = alert["labels"], alert["annotations"]
            queue, name = labels.get("queue", ""), labels["alertname"].removeprefix("MaasBackoff")
            assert queue != "well" and labels.get("gpu") != "GPU-well", alert
            assert "error" not in texts["summary"] and "<no value>" not in str(texts), texts
            if (queue, name) in left:
                left.discard((queue, name))
                print(
                    f"{time.monotonic() - began:5.1f} s  {queue:8} {name:17} {labels['severity']:8} {texts['summary']}"
                )
        assert time.monotonic() - began < 120, f"these have not fired: {left}"
        await anyio.sleep(0.5)
