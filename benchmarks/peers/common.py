"""Shared by the adapters of the race: the workloads, the body of every handler, the checks. Standard library only.

An adapter is a program. `python peers/arq_.py drain --url redis://127.0.0.1:6379/0 --queue q1 --tasks 1000` runs one
workload in the adapter's own virtual environment and prints one line of JSON. `work` runs a worker until it is killed.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

Params = dict[str, Any]
Metrics = dict[str, float | None]

TASKS = {
    "drain": 20_000,
    "create": 3_000,
    "crowd": 10_000,
    "lone": 400,
    "latency": 300,
    "delayed": 2_000,
    "retry": 2_000,
    "memory": 50_000,
    "startup": 5,
    "kill": 10,
}
ATTEMPTS = 3
LONG = 2.0  # seconds that a task of `kill` takes
FORBEARANCE = 90.0  # seconds until a killed worker's tasks count as not rescued
PAUSE = 0.002
IDLE = 3.0  # seconds for which an idle worker is watched


class Failure(Exception):  # noqa: N818 - it stands for whatever a user raises
    """The exception of the handler of `retry`; an adapter turns it into the one that its queue wants to see."""


class Body:
    """The body of every queue's handler, and what it saw."""

    def __init__(self, fails: int = 0, seconds: float = 0, log: str | None = None) -> None:
        self.fails = fails
        self.seconds = seconds
        self.calls: list[int] = []
        self.begun = 0.0
        self._runs: Counter[int] = Counter()
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if log else None

    async def call(self, params: Params) -> None:
        self._begin(params["n"])
        if self.seconds:
            await asyncio.sleep(self.seconds)
            self._write("end", params["n"])

    def call_in_thread(self, params: Params) -> None:
        self._begin(params["n"])
        if self.seconds:
            time.sleep(self.seconds)
            self._write("end", params["n"])

    def _begin(self, n: int) -> None:
        self._write("start", n)
        if not self.calls:
            self.begun = time.perf_counter()
        self.calls.append(n)
        if self.fails:
            self._runs[n] += 1
            if self._runs[n] <= self.fails:
                raise Failure

    def _write(self, event: str, n: int) -> None:
        if self._log is not None:
            os.write(self._log, f"{event} {n} {time.time()!r}\n".encode())


@dataclass(frozen=True)
class About:
    """The report's entry of a queue. The keys of the dictionaries are workloads."""

    packages: tuple[str, ...]
    imports: str  # what a program imports that enqueues and works, as a statement
    settings: str  # what was set, why, and the page of the documentation that says so
    notes: dict[str, str] = field(default_factory=dict)
    unable: dict[str, str] = field(default_factory=dict)  # why the queue cannot do it
    ahead: dict[str, str] = field(default_factory=dict)  # what explains it when this queue is ahead of ours

    def report(self) -> dict[str, Any]:
        versions = {package: metadata.version(package) for package in self.packages}
        return {**asdict(self), "versions": versions, "python": platform.python_version()}


class Peer:
    """One queue. Everything that differs between queues is here; the workloads below are the same for all."""

    about: ClassVar[About]

    def __init__(self, url: str, queue: str, concurrency: int, body: Body) -> None:
        self.url = url
        self.queue = queue
        self.concurrency = concurrency
        self.body = body

    async def open(self) -> None:
        """Connect as a producer."""

    async def create(self, params: Params, due: float | None = None) -> None:
        """Enqueue one task, to run now or at a time of the wall clock."""
        raise NotImplementedError

    async def create_many(self, items: Iterable[Params]) -> None:
        """Enqueue as fast as the queue's documentation knows how; without a batch call, 32 at a time."""
        await spread((lambda params=params: self.create(params) for params in items), 32)

    async def serve(self) -> None:
        """Run a worker until cancelled or killed."""
        raise NotImplementedError

    async def unfinished(self) -> int:
        """Count the tasks whose end the queue has not recorded."""
        raise NotImplementedError

    async def close(self) -> None:
        """Disconnect."""


async def spread(calls: Iterable[Callable[[], Awaitable[None]]], width: int) -> None:
    """Await the calls, so many at a time."""
    rest = iter(calls)

    async def run() -> None:
        for call in rest:
            await call()

    await asyncio.gather(*(run() for _ in range(width)))


def command(url: str, words: str) -> str:
    """Send one inline command to the server and return its reply, without a client library."""
    address = urlsplit(url)
    with (
        socket.create_connection((address.hostname or "127.0.0.1", address.port or 6379), timeout=60) as connection,
        connection.makefile("rb") as replies,
    ):
        connection.sendall(words.encode() + b"\r\n")
        first = replies.readline().decode().strip()
        if first.startswith("-"):
            raise ConnectionError(first[1:])
        return replies.read(int(first[1:])).decode() if first.startswith("$") else first[1:]


def info(url: str, section: str) -> dict[str, str]:
    lines = command(url, f"INFO {section}").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def server_cpu(url: str) -> float:
    """Return the seconds of CPU that the server has used."""
    cpu = info(url, "cpu")
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def params_of(n: int) -> Params:
    return {"n": n, "prompt": "a cat in a hat, drawn with ink"}


def miscounted(calls: Iterable[int], tasks: int, times: int) -> str | None:
    """Say what did not run exactly so many times."""
    counts = Counter(calls)
    wrong = Counter(counts[n] for n in range(tasks) if counts[n] != times)
    if not wrong:
        return None
    return f"each of {tasks} must run {times}x, but " + ", ".join(f"{many} ran {ran}x" for ran, many in wrong.items())


class Child:
    """A worker in a process of its own. It writes down every start and end of a task."""

    def __init__(self, peer: Peer, log: str) -> None:
        self.log = Path(log)
        options = {
            "url": peer.url,
            "queue": peer.queue,
            "concurrency": peer.concurrency,
            "log": log,
            "seconds": peer.body.seconds,
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        self._process = subprocess.Popen([sys.executable, sys.argv[0], "work", *words])

    def seen(self, event: str) -> list[tuple[int, float]]:
        lines = (line.split() for line in self.log.read_text().splitlines()) if self.log.exists() else ()
        return [(int(line[1]), float(line[2])) for line in lines if line[0] == event]

    async def wait(self, event: str, tasks: int, limit: float) -> bool:
        """Wait until so many tasks (the warm-up aside) had the event."""
        deadline = time.monotonic() + limit
        while len({n for n, _ in self.seen(event) if n >= 0}) < tasks:
            if time.monotonic() > deadline:
                return False
            if self._process.poll() is not None:
                raise RuntimeError(f"the worker ended with {self._process.returncode}")
            await asyncio.sleep(0.02)
        return True

    async def warm_up(self, peer: Peer) -> None:
        """Run one task, so that the worker is up and idle before anything is measured."""
        await peer.create(params_of(-1))
        deadline = time.monotonic() + 30
        while not self.seen("start"):
            if time.monotonic() > deadline:
                raise TimeoutError("the worker ran nothing within 30 s")
            await asyncio.sleep(0.02)
        await asyncio.sleep(1)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


async def settle(peer: Peer, calls: int) -> float:
    """Run a worker here until so many calls were made and the queue has recorded all ends; return the seconds.

    The clock starts at the first call of the handler: the same rule for all, as not every queue tells when it is up.
    """
    worker = asyncio.create_task(peer.serve())
    deadline = time.monotonic() + 600
    while len(peer.body.calls) < calls or await peer.unfinished():
        if worker.done():
            worker.result()
            raise RuntimeError("the worker stopped")
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(peer.body.calls)} of {calls} calls within 600 s")
        await asyncio.sleep(PAUSE)
    took = time.perf_counter() - peer.body.begun
    await asyncio.sleep(0.3)  # time for a task that would run once too often
    return took


async def drain(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Enqueue no-op tasks, then let one worker run them all."""
    begun = time.perf_counter()
    await peer.create_many([params_of(n) for n in range(tasks)])
    created = time.perf_counter() - begun
    took = await settle(peer, tasks)
    return {"rate": tasks / took, "created": tasks / created}, miscounted(peer.body.calls, tasks, 1)


async def create(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Await one enqueue after the other."""
    await peer.create(params_of(-1))
    begun = time.perf_counter()
    for n in range(tasks):
        await peer.create(params_of(n))
    return {"rate": tasks / (time.perf_counter() - begun)}, None


async def crowd(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Let 100 coroutines enqueue, each one after the other, as the requests of a web service do."""
    await peer.create(params_of(-1))
    begun = time.perf_counter()
    await spread((lambda n=n: peer.create(params_of(n)) for n in range(tasks)), 100)
    return {"rate": tasks / (time.perf_counter() - begun)}, None


async def startup(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Import what a program needs in a fresh process: ms of CPU above a process that imports nothing, by turns.

    CPU time, as the time on the clock of a shared machine says how busy the machine was.
    """
    more = [_cpu_of(peer.about.imports) - _cpu_of("pass") for _ in range(tasks)]
    return {"cpu": statistics.median(more) * 1000}, None


def _cpu_of(statement: str) -> float:
    pid = os.posix_spawn(sys.executable, [sys.executable, "-P", "-c", statement], os.environ)
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"`{statement}` ended with {status}")
    return usage.ru_utime + usage.ru_stime


async def retry(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Let tasks fail twice, with 0.1 s between the attempts."""
    await peer.create_many([params_of(n) for n in range(tasks)])
    took = await settle(peer, tasks * ATTEMPTS)
    return {"seconds": took}, miscounted(peer.body.calls, tasks, ATTEMPTS)


def spread_of(late: list[float]) -> Metrics:
    cuts = statistics.quantiles(late, n=100, method="inclusive")
    return {"p50": cuts[49] * 1000, "p99": cuts[98] * 1000, "first": min(late) * 1000}


async def _lateness(child: Child, due: dict[int, float], limit: float) -> tuple[Metrics, str | None]:
    if not await child.wait("start", len(due), limit):
        starts = len({n for n, _ in child.seen("start") if n >= 0})
        return {}, f"{starts} of {len(due)} tasks started within {limit:.0f} s"
    await asyncio.sleep(0.3)
    starts = [(n, at) for n, at in child.seen("start") if n >= 0]
    return spread_of([at - due[n] for n, at in starts]), miscounted((n for n, _ in starts), len(due), 1)


async def latency(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Enqueue one task every 20 ms for an idle worker in another process."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(peer, f"{folder}/log")
        try:
            await child.warm_up(peer)
            sent: dict[int, float] = {}
            begun = time.monotonic()
            for n in range(tasks):
                await asyncio.sleep(max(0, begun + n * 0.02 - time.monotonic()))
                sent[n] = time.time()
                await peer.create(params_of(n))
            return await _lateness(child, sent, 30)
        finally:
            child.kill()


async def lone(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Enqueue one task every 5 ms for an idle worker in another process: server µs per task, less those when idle."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(peer, f"{folder}/log")
        try:
            await child.warm_up(peer)
            begun, before = time.monotonic(), server_cpu(peer.url)
            await asyncio.sleep(IDLE)
            idle = (server_cpu(peer.url) - before) / (time.monotonic() - begun)
            begun, before = time.monotonic(), server_cpu(peer.url)
            for n in range(tasks):
                await asyncio.sleep(max(0, begun + n * 0.005 - time.monotonic()))
                await peer.create(params_of(n))
            if not await child.wait("start", tasks, 30):
                return {}, f"not all of {tasks} tasks started within 30 s"
            used = server_cpu(peer.url) - before - idle * (time.monotonic() - begun)
            runs = miscounted((n for n, _ in child.seen("start") if n >= 0), tasks, 1)
            return {"server": used / tasks * 1e6, "idle": idle * 1e6}, runs
        finally:
            child.kill()


async def delayed(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Enqueue tasks that fall due evenly over 1 to 6 s from now, for an idle worker in another process."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(peer, f"{folder}/log")
        try:
            await child.warm_up(peer)
            now = time.time()
            due = {n: now + 1 + 5 * n / tasks for n in range(tasks)}
            await spread((lambda n=n: peer.create(params_of(n), due[n]) for n in range(tasks)), 32)
            return await _lateness(child, due, 60)
        finally:
            child.kill()


async def memory(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Count the server's memory per waiting task with params of about 100 bytes."""
    before = int(info(peer.url, "memory")["used_memory"])
    await peer.create_many([{"n": n, "prompt": f"{n:08}".ljust(80, "-")} for n in range(tasks)])
    await peer.close()
    await asyncio.sleep(0.5)
    return {"bytes": (int(info(peer.url, "memory")["used_memory"]) - before) / tasks}, None


async def kill(peer: Peer, tasks: int) -> tuple[Metrics, str | None]:
    """Kill a worker in the middle of its tasks of 2 s, start another, and wait until all ran to their end."""
    with tempfile.TemporaryDirectory() as folder:
        child = Child(peer, f"{folder}/log")
        try:
            for n in range(tasks):
                await peer.create(params_of(n))
            if not await child.wait("start", tasks, 30):
                return {}, "the first worker did not start all"
            child.kill()
            killed = time.time()
            if child.seen("end"):
                return {}, "a task ended before the kill"
            child = Child(peer, f"{folder}/log")
            rescued = await child.wait("end", tasks, FORBEARANCE)
            ends = [at - killed for _, at in child.seen("end")]
            return {"seconds": max(ends) if rescued else None, "first": min(ends, default=None)}, None
        finally:
            child.kill()


WORKLOADS = {run.__name__: run for run in (drain, create, crowd, latency, lone, delayed, retry, memory, startup, kill)}


async def _run(peer: Peer, workload: str, tasks: int) -> tuple[Metrics, str | None]:
    if workload == "work":
        await peer.serve()
        raise RuntimeError("the worker stopped")
    await peer.open()
    return await WORKLOADS[workload](peer, tasks)


def main(kind: type[Peer]) -> None:
    """Run one workload, print one line of JSON, and leave without waiting for connections and threads."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload", choices=[*WORKLOADS, "work", "describe"])
    parser.add_argument("--url", default="redis://127.0.0.1:6379/0")
    parser.add_argument("--queue", default="race")
    parser.add_argument("--tasks", type=int)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--log")
    parser.add_argument("--seconds", type=float, default=0)
    args = parser.parse_args()
    logging.getLogger().addHandler(logging.NullHandler())
    report: dict[str, Any]
    if args.workload == "describe":
        report = kind.about.report()
    else:
        fails = ATTEMPTS - 1 if args.workload == "retry" else 0
        body = Body(fails, LONG if args.workload == "kill" else args.seconds, args.log)
        peer = kind(args.url, args.queue, args.concurrency, body)
        metrics, error = asyncio.run(_run(peer, args.workload, args.tasks or TASKS.get(args.workload, 0)))
        report = {"metrics": metrics, "error": error}
    print(json.dumps(report), flush=True)
    os._exit(0)
