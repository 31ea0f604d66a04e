"""The cost of open pages of the dashboard, on a queue of 100,000 tasks with retries and GPUs (a pretended driver).

`python benchmarks/dashboard.py` prints the time per second of the server and of the web process, with 0, 1, 10 and 50
open pages, what the worker itself takes subtracted; and what single requests take of the server. The queue has run for
ten seconds, and is paused while it is measured: ten tasks still run. A page that a
browser shows reads its list of tasks every 3 s besides: that is among the single requests.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import redis
from server import free_port, started_server

from maas_backoff import (
    SchedulerConfig,
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    TaskSpec,
    ThreadPoolConfig,
)
from maas_backoff.testing import FakeGpu, FakeGpuProbe

QUEUE = "images"
PAGES = (0, 1, 10, 50)
SECONDS = 10.0
REQUESTS = {
    "a snapshot": "api/snapshot",
    "50 processing tasks": "api/tasks?state=processing",
    "50 tasks that wait for a GPU": "api/tasks?state=pending&waiting_for=gpu",
    "50 failed tasks": "api/tasks?state=failed",
    "a search through 2,000 tasks": "api/tasks?state=pending&text=nowhere",
}


def config(url: str) -> TaskBackoffConfig:
    task = TaskConfig(biz_prefix=QUEUE, backoff_interval=20, max_retry_count=5, min_gpu_memory_gb=2)
    threadpool = ThreadPoolConfig(concurrency=40, exec_timeout=3600)
    return TaskBackoffConfig(
        storage=StorageConfig(url=url), task=task, threadpool=threadpool, scheduler=SchedulerConfig(shutdown_grace=0)
    )


@contextlib.asynccontextmanager
async def busy_queue(url: str, tasks: int) -> AsyncIterator[None]:
    """Tasks, some scheduled, and a worker with three GPUs, in which one of twenty attempts fails; then a pause."""
    gpus = [FakeGpu(f"GPU-{n}", total_gb=size, other_processes_gb=n) for n, size in enumerate((80, 80, 24))]
    worker = TaskBackoffScheduler(config(url), gpu_probe=FakeGpuProbe(gpus))
    chance = random.Random(1)

    @worker.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.update_progress(50, "denoising")
        await asyncio.sleep(3600 if "long" in task.task_params else chance.uniform(0.1, 1))
        if chance.random() < 0.05:
            raise ConnectionError(f"upstream of attempt {task.attempt}")

    specs = [
        TaskSpec({"prompt": "a cat", "n": n}, **({"delay": chance.uniform(60, 1800)} if n % 7 == 0 else {}))
        for n in range(tasks)
    ]
    await worker.create_tasks([TaskSpec({"long": True}, priority=-1000)] * 10)
    await worker.create_tasks(specs)
    async with worker:
        await asyncio.sleep(10)
        await worker.pause()
        await asyncio.sleep(3)
        yield


def server_us(client: redis.Redis) -> float:
    return sum(command["usec"] for command in client.info("commandstats").values())  # type: ignore[union-attr] - redis-py types it for asyncio, too


def process_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def read(client: httpx2.AsyncClient) -> None:
    async with client.stream("GET", "api/events") as stream:
        async for _ in stream.aiter_lines():
            pass


async def measure(url: str, base: str, pid: int) -> None:
    counts = redis.Redis.from_url(url)
    limits = httpx2.Limits(max_connections=None)
    alone = 0.0
    print("pages  server ms/s  web process, % of a core")
    for pages in PAGES:
        async with httpx2.AsyncClient(base_url=base, timeout=None, limits=limits, trust_env=False) as client:
            readers = [asyncio.create_task(read(client)) for _ in range(pages)]
            await asyncio.sleep(2)
            us, used, at = server_us(counts), process_s(pid), time.monotonic()
            await asyncio.sleep(SECONDS)
            seconds = time.monotonic() - at
            us = (server_us(counts) - us) / seconds
            alone = alone or us
            share = 100 * (process_s(pid) - used) / seconds
            print(f"{pages:5}  {max(0, us - alone) / 1000:11.2f}  {share:24.2f}", flush=True)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
    async with httpx2.AsyncClient(base_url=base, timeout=30, trust_env=False) as client:
        await asyncio.sleep(1)
        for name, path in REQUESTS.items():
            took: list[float] = []
            for _ in range(5):
                before, at = server_us(counts), time.monotonic()
                (await client.get(path)).raise_for_status()
                us = server_us(counts) - before - alone * (time.monotonic() - at)
                took.append(max(0, us) / 1000)
            print(f"{name}: {sorted(took)[2]:.2f} ms of the server")


async def main(tasks: int) -> None:
    with started_server() as url:
        port = free_port()
        command = [sys.executable, "-m", "maas_backoff", "dashboard", "--url", url, "--queue", QUEUE]
        async with busy_queue(url, tasks):
            process = await asyncio.create_subprocess_exec(*command, "--port", str(port), stdout=subprocess.PIPE)
            try:
                assert process.stdout is not None
                await process.stdout.readline()
                await asyncio.sleep(1)
                await measure(url, f"http://127.0.0.1:{port}/", process.pid)
            finally:
                process.terminate()
                await process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100_000)
    logging.getLogger("maas_backoff").setLevel(logging.ERROR)
    asyncio.run(main(parser.parse_args().tasks))
