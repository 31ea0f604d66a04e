"""Measure the latency and the costs of streams: `nox -s streams`, or `python benchmarks/streams.py`.

Row `first`: how soon a part of a task that has been silent is in a reader of another process; beside it, by turns,
how soon a bare PUBLISH is in a bare subscriber. Read the ratio: both are slower on a busy machine.
Row `next`: the same for parts of ten tasks, one every 50 ms of each.
Row `load`: 2,000 tasks that emit 50 parts a second each, through one server and two workers; without readers, then with
a reader of every tenth task. It shows the share of a core that the server, a worker and the readers take, and CPU
time for each part, which may be several tokens that were joined. The rate was held if 100 % of the tokens were read.
`--rows first,load --tasks 200 --seconds 5` makes it smaller.
Row `kills`, only if it is asked for: whether each reader has the final text, byte for byte, after workers were killed
and readers came back: `--rows kills --kills 1000 --reconnects 10000 --minutes 20 --seed 1`.

All clocks are CLOCK_MONOTONIC of this machine. Without persistence.
"""

import argparse
import asyncio
import contextlib
import functools
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import redis
import redis.asyncio
from server import machine, started_server
from stream_kills import kills

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    TaskSpec,
    ThreadPoolConfig,
)

WORKERS = 2
TOKEN = "token "
"""A part of the row `load`: what a model says at once."""


def new_scheduler() -> TaskBackoffScheduler:
    """Return the scheduler of the queue, by the environment that is set for the workers."""
    made = TaskBackoffScheduler(
        TaskBackoffConfig(
            storage=StorageConfig(url=os.environ["STREAMS_URL"]),
            task=TaskConfig(biz_prefix="streams", result_ttl=60, max_stream_bytes=16 * 1_048_576),
            threadpool=ThreadPoolConfig(concurrency=int(os.environ["STREAMS_SLOTS"]), exec_timeout=600),
        )
    )
    made.set_custom_task_handler(emit)
    return made


def __getattr__(name: str) -> TaskBackoffScheduler:
    """Return the scheduler for `maas-backoff worker streams:scheduler`."""
    if name != "scheduler":
        raise AttributeError(name)
    return new_scheduler()


async def emit(task: TaskEntity) -> None:
    """Emit parts at a steady rate: moments, or tokens."""
    params = task.task_params
    await asyncio.sleep(params["silent"])
    if "channel" in params:
        await _client().publish(params["channel"], repr(time.monotonic()))
        return
    began = time.monotonic()
    for number in range(params["parts"]):
        task.emit({"at": time.monotonic()} if params["timed"] else TOKEN)
        await asyncio.sleep(max(0.0, began + (number + 1) * params["pause"] - time.monotonic()))


@functools.cache
def _client() -> redis.asyncio.Redis:
    """Return a client of this process for the bare PUBLISH."""
    return redis.asyncio.Redis.from_url(os.environ["STREAMS_URL"])


def start(command: Sequence[str], count: int) -> "list[subprocess.Popen[bytes]]":
    return [subprocess.Popen(command, cwd=Path(__file__).parent) for _ in range(count)]


@contextlib.asynccontextmanager
async def workers(url: str, count: int, slots: int) -> AsyncIterator[tuple[TaskBackoffScheduler, list[psutil.Process]]]:
    """Workers in processes of their own, and a scheduler of this process that creates and reads."""
    os.environ["STREAMS_URL"], os.environ["STREAMS_SLOTS"] = url, f"{slots}"
    command = [sys.executable, "-m", "maas_backoff", "worker", "streams:scheduler", "--log-level", "error"]
    started = start(command, count)
    scheduler = new_scheduler()
    try:
        while sum(one.ready for one in await scheduler.workers()) < count:
            await asyncio.sleep(0.05)
        yield scheduler, [psutil.Process(one.pid) for one in started]
    finally:
        for one in started:
            one.terminate()
        for one in started:
            one.wait()
        await scheduler.shutdown()


async def latencies(scheduler: TaskBackoffScheduler, task_id: str) -> list[float]:
    """Return for each part of a task how many ms it took from the handler to this reader."""
    return [(time.monotonic() - part.data["at"]) * 1000 async for part in scheduler.stream(task_id)]


def shown(found: Sequence[float]) -> str:
    ranked = sorted(found)
    at = {share: ranked[min(len(ranked) - 1, int(len(ranked) * share))] for share in (0.5, 0.99)}
    return f"p50 {at[0.5]:.2f} ms, p99 {at[0.99]:.2f} ms, of {len(ranked)}"


async def first(url: str, tasks: int) -> str:
    """Measure single parts of tasks that run one after the other; by turns, a bare PUBLISH to a bare subscriber."""
    found: list[float] = []
    bare: list[float] = []
    client = redis.asyncio.Redis.from_url(url)
    subscription = client.pubsub(ignore_subscribe_messages=True)
    await subscription.subscribe("bare")
    async with workers(url, 1, 10) as (scheduler, _):
        for _ in range(tasks):
            task_id = await scheduler.create_task({"silent": 0.03, "parts": 1, "pause": 0, "timed": True})
            found += await latencies(scheduler, task_id)
            task_id = await scheduler.create_task({"silent": 0.03, "channel": "bare"})
            while (message := await subscription.get_message(timeout=10)) is None:
                pass
            bare.append((time.monotonic() - float(message["data"])) * 1000)
            await scheduler.wait_task(task_id)
    await subscription.aclose()
    await client.aclose()
    skipped = tasks // 10  # the first ones make connections
    return f"{shown(found[skipped:])}; a bare PUBLISH by turns: {shown(bare[skipped:])}"


async def following(url: str, tasks: int) -> str:
    """Measure parts of ten tasks at once, one every 50 ms of each, without the first one."""
    async with workers(url, 1, 10) as (scheduler, _):
        params = {"silent": 0.2, "parts": max(2, tasks // 10), "pause": 0.05, "timed": True}
        ids = [await scheduler.create_task(params) for _ in range(10)]
        found = await asyncio.gather(*(latencies(scheduler, task_id) for task_id in ids))
    return shown([one for of_task in found for one in of_task[1:]])


class Meter:
    """CPU time and calls between two moments."""

    def __init__(self, client: Any, processes: Sequence[psutil.Process]) -> None:
        self._client = client
        self._processes = processes
        self._before = self._now()

    def _now(self) -> list[float]:
        cpu = self._client.info("cpu")
        times = [process.cpu_times() for process in self._processes]
        calls = self._client.info("commandstats").get("cmdstat_xadd", {}).get("calls", 0)
        server = cpu["used_cpu_user"] + cpu["used_cpu_sys"]
        return [time.monotonic(), server, sum(one.user + one.system for one in times), time.process_time(), calls]

    def read(self) -> str:
        """Return the shares of a core, and the CPU time of each part."""
        seconds, server, worker, here, parts = (
            now - before for now, before in zip(self._now(), self._before, strict=True)
        )
        shares = f"server {server / seconds:.0%}, worker {worker / seconds / len(self._processes):.0%}"
        each = f"{server / max(1, parts) * 1e6:.1f} us of the server, {worker / max(1, parts) * 1e6:.1f} us of a worker"
        return f"{parts / seconds:,.0f} parts/s; {shares}, readers {here / seconds:.0%}; {each} for a part"


async def load(url: str, tasks: int, rate: float, seconds: float, *, readers: int) -> str:
    """Measure many tasks at once; `readers` of them are read."""
    client = redis.Redis.from_url(url)
    got = [0] * readers

    async def read(scheduler: TaskBackoffScheduler, number: int) -> None:
        async for part in scheduler.stream(f"t{number}"):
            got[number] += len(part.data) // len(TOKEN)

    async with workers(url, WORKERS, -(-tasks // WORKERS)) as (scheduler, processes):
        silent = 2 + tasks / 500  # until all are claimed, and read
        params = {"silent": silent, "parts": int(rate * (seconds + 4)), "pause": 1 / rate, "timed": False}
        await scheduler.create_tasks(TaskSpec(params, f"t{number}") for number in range(tasks))
        reading = [asyncio.create_task(read(scheduler, number)) for number in range(readers)]
        await asyncio.sleep(silent + 2)
        meter, before, began = Meter(client, processes), sum(got), time.monotonic()
        await asyncio.sleep(seconds)
        told = meter.read()
        wanted = readers * rate * (time.monotonic() - began)
        read_share = f"{(sum(got) - before) / wanted:.0%} of the rate of tokens was read" if readers else "none read"
        for one in reading:
            one.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        await scheduler.pause()
    client.flushall()
    client.close()
    return f"{told}; {read_share}"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="first,next,load", help="rows, with commas between (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=2000, help="tasks of the row load; a sixth in the other rows")
    parser.add_argument("--rate", type=float, default=50, help="parts a second of each task (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15, help="length of a measurement (default: %(default)s)")
    parser.add_argument(
        "--kills", type=int, default=1000, help="workers to kill in the row kills (default: %(default)s)"
    )
    parser.add_argument("--reconnects", type=int, default=10_000, help="of readers, there (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=20, help="the most, there (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the row kills (default: %(default)s)")
    options = parser.parse_args()
    rows, few = options.rows.split(","), max(20, options.tasks // 6)
    print(machine())
    with started_server() as url:
        if "first" in rows:
            print(f"first part of a task, in a reader of another process: {await first(url, few)}")
        if "next" in rows:
            print(f"further parts, every 50 ms of 10 tasks: {await following(url, few)}")
        if "kills" in rows:
            print(await kills(url, options.seed, options.kills, options.reconnects, options.minutes))
        if "load" in rows:
            for readers in (0, options.tasks // 10):
                told = await load(url, options.tasks, options.rate, options.seconds, readers=readers)
                print(f"{options.tasks:,} tasks, {options.rate:g} parts/s each, {readers} of them read: {told}")


if __name__ == "__main__":
    asyncio.run(main())
