"""How the rate of draining no-op tasks grows with worker processes and with Cluster masters, and where it stops.

1, 2, 4 and 8 workers share one queue on one server; 1, 2 and 3 masters of a Cluster serve a queue each. All rows are
measured several times, by turns; each line of the table is the round with the median rate.

Before the clock starts, every worker is up and holds its first tasks: 100 per worker, whose claim is not measured. The
rate is that from the first call of a handler to the end of the last one, over all workers; each task must run once.
CPU time is that from the start sign until the server has recorded every end, as a share of that same span.

At last, what the model in README.md takes: what 20 workers cost that do nothing, and 20 whose slots hold long tasks,
and a task that comes alone.

Run it with `python benchmarks/scale.py`. It starts its own servers, without persistence, and stops them.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from redis import Redis
from redis.exceptions import RedisError
from server import binary, free_port, machine

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    ThreadPoolConfig,
)

CONCURRENCY = 100
SLOTS = 16_384
IDLE_WORKERS = 20
FULL = 0.9
"""The share of a core, or of all cores, from which on it counts as used up."""

CLIENT_COMMANDS = ("evalsha", "eval", "bzpopmin")
"""Commands that workers send. All others that the server counts are called by scripts."""


def scheduler_of(url: str, queue: str) -> TaskBackoffScheduler:
    return TaskBackoffScheduler(
        TaskBackoffConfig(
            storage=StorageConfig(url=url),
            task=TaskConfig(biz_prefix=queue),
            threadpool=ThreadPoolConfig(concurrency=CONCURRENCY),
        )
    )


def params_of(n: int) -> dict[str, Any]:
    return {"n": n, "prompt": "a cat in a hat, drawn with ink"}


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_busy() -> float:
    """Return the CPU seconds that all programs of this machine have used; on Linux, else none."""
    with contextlib.suppress(OSError):
        # user nice system idle iowait irq softirq steal; see proc(5)
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    return 0.0


# Servers


class Server:
    """A server on the loopback interface that keeps nothing on disk."""

    def __init__(self, port: int, folder: str, *options: str) -> None:
        self.port = port
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        self._process = subprocess.Popen(
            [binary(), *words, *options], stdout=subprocess.DEVNULL, start_new_session=True
        )
        self.client: Any = Redis(host="127.0.0.1", port=port, decode_responses=True)
        try:
            eventually(self._answers, f"the server answers on port {port}")
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def cpu(self) -> float:
        """Return the CPU seconds of the whole process."""
        used = self.client.info("cpu")
        return float(used["used_cpu_user"] + used["used_cpu_sys"])

    def memory(self) -> int:
        return int(self.client.info("memory")["used_memory"])

    def connections(self) -> int:
        return int(self.client.info("clients")["connected_clients"])

    def commands(self) -> int:
        counts = self.client.info("commandstats")
        return sum(counts[name]["calls"] for command in CLIENT_COMMANDS if (name := f"cmdstat_{command}") in counts)

    def stop(self) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise SystemExit(f"scale: the server for port {self.port} ended with {self._process.returncode}")
        return bool(self.client.ping())


def eventually(holds: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(RedisError):
            if holds():
                return
        if time.monotonic() > deadline:
            raise SystemExit(f"scale: not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


@contextlib.contextmanager
def started(ports: Iterator[int], masters: int = 0) -> Iterator[list[Server]]:
    """Start one server, or the masters of a Cluster with equal shares of its slots."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers: list[Server] = []
        buses: list[int] = []
        for number in range(masters or 1):
            own = f"{folder}/{number}"
            Path(own).mkdir()
            port, bus = next(ports), next(ports) if masters else 0
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)] if masters else []
            servers.append(Server(port, own, *options))
            buses.append(bus)
            stack.callback(servers[-1].stop)
        for number, server in enumerate(servers if masters else ()):
            server.client.execute_command("CLUSTER", "ADDSLOTSRANGE", *slots_of(number, masters))
            if number:
                server.client.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port, buses[0])
        for server in servers if masters else ():
            eventually(partial(is_well, server, masters), "the Cluster is well")
        yield servers


def slots_of(master: int, masters: int) -> tuple[int, int]:
    return SLOTS * master // masters, SLOTS * (master + 1) // masters - 1


def is_well(server: Server, masters: int) -> bool:
    ok = "cluster_state:ok" in server.client.execute_command("CLUSTER", "INFO")
    return ok and len(server.client.execute_command("CLUSTER", "SLOTS")) == masters


def queue_on(server: Server, master: int, masters: int) -> str:
    """Return a biz_prefix whose queue lives on that master."""
    first, last = slots_of(master, masters)
    names = (f"scale-{number}" for number in itertools.count())

    def slot(name: str) -> int:
        return int(server.client.execute_command("CLUSTER", "KEYSLOT", f"maas:{{{name}}}:"))

    return next(name for name in names if first <= slot(name) <= last)


# Workers


async def work(url: str, queue: str) -> None:
    """Fill all slots, say so, run on at the first line of the standard input, and report and end at the second."""
    scheduler = scheduler_of(url, queue)
    gate, full = anyio.Event(), anyio.Event()
    ran: list[int] = []
    waiting = 0
    first = last = 0.0

    @scheduler.set_custom_task_handler
    async def no_op(task: TaskEntity) -> None:
        nonlocal waiting, first, last
        if not gate.is_set():
            waiting += 1
            if waiting == CONCURRENCY:
                full.set()
            await gate.wait()
        last = time.monotonic()
        if not ran:
            first = last
        ran.append(task.task_params["n"])

    async with scheduler:
        await full.wait()
        print("ready", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        before = time.process_time()
        gate.set()
        await anyio.to_thread.run_sync(sys.stdin.readline)
        cpu = time.process_time() - before
        print(json.dumps({"first": first, "last": last, "cpu": cpu, "ran": ran}), flush=True)


class Worker:
    """A process that runs the tasks of one queue."""

    def __init__(self, url: str, queue: str) -> None:
        words = [sys.executable, __file__, "--as-worker", "--url", url, "--queue", queue]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self.process.stdin, flush=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"scale: a worker ended with {self.process.wait()}, or was killed as the time was over")
        return line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def working(places: Sequence[tuple[str, str]], patience: float) -> Iterator[list[Worker]]:
    """Start a worker for each URL and queue; kill them at the end, or when the time is over."""
    with contextlib.ExitStack() as stack:
        workers = []
        for url, queue in places:
            workers.append(Worker(url, queue))
            stack.callback(workers[-1].kill)

        def give_up() -> None:
            for worker in workers:
                worker.process.kill()

        timer = threading.Timer(patience, give_up)
        timer.start()
        stack.callback(timer.cancel)
        yield workers


# Measurements


@dataclass(frozen=True)
class Row:
    """One drain. CPU times are in seconds, one per process."""

    title: str
    tasks: int
    seconds: float
    servers: list[float]
    workers: list[float]
    others: float
    """Cores that other programs used meanwhile."""
    create_us: float
    """The cost for the servers of creating one of the tasks."""
    queued_bytes: float
    finished_bytes: float

    @property
    def rate(self) -> float:
        return self.tasks / self.seconds

    @property
    def server_us(self) -> float:
        return sum(self.servers) / self.tasks * 1e6

    @property
    def worker_us(self) -> float:
        return sum(self.workers) / self.tasks * 1e6

    @property
    def cores(self) -> float:
        return sum(self.servers + self.workers) / self.seconds

    @property
    def exhausts(self) -> bool:
        """Whether the machine has no core left, or fewer cores than there are processes."""
        return self.cores + self.others >= FULL * cores() or self._processes > cores()

    @property
    def limit(self) -> str:
        """Say what is used up."""
        if max(self.servers) >= FULL * self.seconds:
            return "a server's core"
        if self.cores + self.others >= FULL * cores():
            return f"all {cores()} cores"
        if self._processes > cores():
            return f"{self._processes} processes share {cores()} cores"
        if sum(self.workers) >= FULL * self.seconds * len(self.workers):
            return "each worker's core"
        return "none: they wait for each other"

    @property
    def _processes(self) -> int:
        return len(self.servers) + len(self.workers)

    def cells(self, first: "Row") -> list[str]:
        servers = " ".join(f"{used / self.seconds:.0%}" for used in self.servers)
        least, most = (f"{pick(self.workers) / self.seconds:.0%}" for pick in (min, max))
        return [
            self.title,
            str(len(self.workers)),
            f"{self.rate:,.0f}",
            f"{self.rate / first.rate:.2f}",
            servers,
            least if least == most else f"{least} to {most}",
            f"{self.cores:.2f}",
            f"{self.others:.2f}",
            f"{self.server_us:.1f}",
            f"{self.worker_us:.1f}",
            self.limit,
        ]


HEADER = [
    "servers",
    "workers",
    "tasks/s",
    "x the first",
    "CPU of each server",
    "CPU of each worker",
    "cores in all",
    "cores of others",
    "server us/task",
    "worker us/task",
    "used up",
]


@dataclass(frozen=True)
class Setting:
    """The setting of one row: a queue on each of some servers, and so many workers for each."""

    title: str
    url: str
    places: list[tuple[Server, str]]
    per_queue: int

    def queues(self, portal: BlockingPortal, tasks: int) -> "list[Queue]":
        """Return the queues; every task is for one of them, by turns."""
        count = len(self.places)
        shares = (range(number, tasks, count) for number in range(count))
        return [
            Queue(portal, server, self.url, name, share)
            for (server, name), share in zip(self.places, shares, strict=True)
        ]


class Queue:
    """A queue and the tasks that it gets, those of `numbers`; the only one on its server."""

    def __init__(self, portal: BlockingPortal, server: Server, url: str, name: str, numbers: range) -> None:
        self.server = server
        self.place = url, name
        self._portal = portal
        self._numbers = numbers
        self._producer = scheduler_of(url, name)

    def fill(self) -> None:
        self._portal.call(self._producer.create_tasks, [params_of(n) for n in self._numbers])

    def unfinished(self) -> bool:
        return self._portal.call(self._producer.get_queue_stats).completed_count < len(self._numbers)

    def close(self) -> None:
        self._portal.call(self._producer.shutdown)


def drain(portal: BlockingPortal, setting: Setting, tasks: int) -> Row:
    """Create the tasks, have workers take them all, and check that each ran once."""
    queues = setting.queues(portal, tasks)
    servers = [queue.server for queue in queues]
    for server in servers:
        server.client.execute_command("FLUSHALL", "SYNC")
    empty, before = (sum(ask(server) for server in servers) for ask in (Server.memory, Server.cpu))
    for queue in queues:
        queue.fill()
    queued, created = (sum(ask(server) for server in servers) for ask in (Server.memory, Server.cpu))
    places = [queue.place for queue in queues for _ in range(setting.per_queue)]
    with working(places, patience=60 + tasks / 500) as workers:
        for worker in workers:
            worker.hear()
        begun, busy = time.monotonic(), machine_busy()
        cpu = [server.cpu() for server in servers]
        for worker in workers:
            worker.tell("start")
        while any(queue.unfinished() for queue in queues):
            time.sleep(0.1)
            if any(worker.process.poll() is not None for worker in workers):
                raise SystemExit("scale: a worker has ended, or was killed as the time was over")
        server_cpu = [server.cpu() - then for server, then in zip(servers, cpu, strict=True)]
        window, busy = time.monotonic() - begun, machine_busy() - busy
        finished = sum(server.memory() for server in servers)
        for worker in workers:
            worker.tell("end")
        reports = [json.loads(worker.hear()) for worker in workers]
    for queue in queues:
        queue.close()
    runs = Counter(n for report in reports for n in report["ran"])
    if runs != Counter(range(tasks)):
        raise SystemExit(f"scale: {setting.title}: {tasks} tasks, but {runs.total()} runs of {len(runs)} of them")
    worker_cpu = [report["cpu"] for report in reports]
    return Row(
        title=setting.title,
        tasks=tasks,
        seconds=max(report["last"] for report in reports) - min(report["first"] for report in reports),
        servers=server_cpu,
        workers=worker_cpu,
        others=max(0.0, busy - sum(server_cpu + worker_cpu)) / window,
        create_us=(created - before) / tasks * 1e6,
        queued_bytes=(queued - empty) / tasks,
        finished_bytes=(finished - empty) / tasks,
    )


@dataclass(frozen=True)
class Load:
    """The cost of one of the resting workers, per second, and its connections."""

    commands: float
    server_us: float
    worker_us: float
    connections: float


def sample(server: Server) -> tuple[float, ...]:
    return time.monotonic(), server.commands(), server.cpu(), time.process_time()


async def rest(server: Server, seconds: float, *, busy: bool) -> Load:
    """Have workers wait for tasks; or, `busy`, for the tasks that they run."""
    url = f"redis://{server.address}"
    gate = anyio.Event()

    async def wait_for_gate(_: TaskEntity) -> None:
        await gate.wait()

    before = sample(server)
    await anyio.sleep(seconds / 4)
    after = sample(server)
    server_alone = (after[2] - before[2]) / (after[0] - before[0])
    connections = server.connections()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(IDLE_WORKERS):
            scheduler = scheduler_of(url, f"rest-{busy}")
            scheduler.set_custom_task_handler(wait_for_gate)
            await stack.enter_async_context(scheduler)
        if busy:
            await scheduler.create_tasks(params_of(n) for n in range(IDLE_WORKERS * CONCURRENCY))
            while (await scheduler.get_queue_stats()).processing_count < IDLE_WORKERS * CONCURRENCY:
                await anyio.sleep(0.1)
        await anyio.sleep(2)
        before = sample(server)
        await anyio.sleep(seconds)
        after = sample(server)
        connections = server.connections() - connections
        gate.set()
    took, commands, server_cpu, own_cpu = (now - then for now, then in zip(after, before, strict=True))
    per_worker = took * IDLE_WORKERS
    return Load(
        commands / per_worker,
        (server_cpu - server_alone * took) / per_worker * 1e6,
        own_cpu / per_worker * 1e6,
        connections / IDLE_WORKERS,
    )


async def one_by_one(server: Server, tasks: int = 2000) -> tuple[float, float]:
    """Return what a task costs the server, and this process, in us, when each is created alone and a worker waits."""
    scheduler = scheduler_of(f"redis://{server.address}", "one-by-one")

    @scheduler.set_custom_task_handler
    async def no_op(_: TaskEntity) -> None:
        pass

    async with scheduler:
        await anyio.sleep(1)
        before = server.cpu(), time.process_time()
        for n in range(tasks):
            await scheduler.create_task(params_of(n))
    after = server.cpu(), time.process_time()
    server_us, own_us = ((now - then) / tasks * 1e6 for now, then in zip(after, before, strict=True))
    return server_us, own_us


# Output


def plain(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in lines)


def markdown(rows: list[list[str]]) -> str:
    head, *rest_of_rows = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest_of_rows])


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def conclusions(alone: list[Row], cluster: list[Row]) -> list[str]:
    lines = []
    row = next((row for row in alone if row.exhausts), None)
    if row is not None:
        many = counted(len(row.workers), "worker")
        lines.append(
            f"The cores of this machine ({cores()}) are used up from {many} on: further rows tell of them only."
        )
    elif alone:
        lines.append(f"The cores of this machine ({cores()}) were not used up by workers on one server.")
    row = next((row for row in cluster if row.exhausts), None)
    if row is not None:
        many = f"{counted(len(row.servers), 'master')} with {counted(len(row.workers), 'worker')}"
        lines.append(f"In the Cluster they are used up from {many} on.")
    rows = alone + cluster
    others = max((row.others for row in rows), default=0)
    if others > 0.1 * cores():
        lines.append(f"Other programs used up to {others:.2f} cores meanwhile: measure again when they do not.")
    lines += [
        f"By the first row, a server's core is good for {1e6 / row.server_us:,.0f} tasks/s, which is what "
        f"{row.worker_us / row.server_us:.1f} worker cores run."
        for row in rows[:1]
    ]
    return lines


def inputs(row: Row | None, rests: Sequence[Load], alone: tuple[float, float]) -> list[list[str]]:
    """Return what the model in README.md takes, by its letters."""
    found: list[list[str]] = []
    if row is not None:
        found += [
            ["s", f"{row.server_us:.1f}", "server us to claim and settle a task in full frames: the first row"],
            ["e", f"{row.create_us:.1f}", "server us to create a task in batches"],
            ["w", f"{row.worker_us:.1f}", "worker us per task in full frames: the first row"],
            ["m", f"{row.queued_bytes:.0f}", "bytes of server memory per queued task"],
            ["f", f"{row.finished_bytes:.0f}", "bytes of server memory per finished task"],
        ]
    if rests:
        idle, busy = rests
        found += [
            ["a", f"{alone[0]:.0f}", "server us per task that comes alone: create, wake, claim, settle"],
            ["A", f"{alone[1]:.0f}", "us per such task of a process that creates and runs it"],
            ["c", f"{idle.connections:.1f}", "connections of a worker"],
            ["i", f"{idle.commands:.2f}", "commands per second of an idle worker"],
            ["I", f"{idle.server_us:.0f}", "server us per second for an idle worker"],
            ["P", f"{idle.worker_us:.0f}", "us per second of an idle worker itself"],
            ["b", f"{busy.commands:.2f}", f"commands per second of a worker with {CONCURRENCY} long tasks"],
            ["B", f"{busy.server_us:.0f}", "server us per second for such a worker"],
        ]
    return found


def numbers(text: str) -> list[int]:
    found = [int(word) for word in text.split(",") if word]
    if any(not 1 <= number <= 1000 for number in found):
        raise argparse.ArgumentTypeError("numbers from 1 to 1000, with commas between them")
    return found


def per_master(masters: list[int]) -> int:
    """Return the number of workers for each queue of a Cluster: two, where there is a core for each process."""
    return 2 if cores() >= 3 * max(masters, default=1) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=40_000, help="tasks of each row")
    parser.add_argument("--workers", type=numbers, default=[1, 2, 4, 8], help="workers on one server, or '' for none")
    parser.add_argument("--masters", type=numbers, default=[1, 2, 3], help="masters of a Cluster, or '' for none")
    parser.add_argument("--rounds", type=int, choices=range(1, 100), default=3, metavar="N")
    parser.add_argument("--idle", type=float, default=15, help="seconds of each measurement at rest; 0 for none")
    parser.add_argument("--port", type=int, default=0, help="the first of the servers' ports; without it, free ones")
    parser.add_argument("--output", type=Path, help="a file for the same as Markdown")
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--url", default="", help=argparse.SUPPRESS)
    parser.add_argument("--queue", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    most = max([*args.workers, *(count * per_master(args.masters) for count in args.masters)], default=1)
    if not args.as_worker and args.tasks < 2 * CONCURRENCY * most:
        parser.error(f"{most} workers need at least {2 * CONCURRENCY * most} tasks")
    return args


def version_of(server: Server) -> str:
    about = server.client.info("server")
    return f"Valkey {about['valkey_version']}" if "valkey_version" in about else f"Redis {about['redis_version']}"


def settings_of(args: argparse.Namespace, server: Server, masters: list[Server]) -> list[Setting]:
    found = [Setting("1, one queue", f"redis://{server.address}", [(server, "scale")], count) for count in args.workers]
    most = len(masters)
    places = [(master, queue_on(master, number, most)) for number, master in enumerate(masters)]
    url = "redis+cluster://" + ",".join(master.address for master in masters)
    for count in args.masters:
        title = f"{count} of {most} in a Cluster, a queue each"
        found.append(Setting(title, url, places[:count], per_master(args.masters)))
    return found


def main(args: argparse.Namespace) -> None:
    ports = itertools.count(args.port) if args.port else iter(free_port, None)
    rests: list[Load] = []
    alone = 0.0, 0.0
    with contextlib.ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        (server,) = stack.enter_context(started(ports))
        masters = stack.enter_context(started(ports, max(args.masters))) if args.masters else []
        title = (
            f"{args.tasks:,} no-op tasks a row, {CONCURRENCY} slots a worker, medians of {args.rounds}; "
            f"{version_of(server)} without persistence, Python {platform.python_version()}; {machine()}"
        )
        print(title, flush=True)
        settings = settings_of(args, server, masters)
        rounds: list[list[Row]] = []
        for number in range(args.rounds):
            rounds.append([])
            for setting in settings:
                row = drain(portal, setting, args.tasks)
                rounds[-1].append(row)
                many = counted(len(row.workers), "worker")
                print(f"round {number + 1}: {row.title}, {many}: {row.rate:,.0f} tasks/s", flush=True)
        if args.idle:
            server.client.execute_command("FLUSHALL", "SYNC")
            rests = [portal.call(partial(rest, server, args.idle, busy=busy)) for busy in (False, True)]
            alone = portal.call(one_by_one, server)
    rows = [sorted(found, key=lambda row: row.rate)[len(found) // 2] for found in zip(*rounds, strict=True)]
    table = [HEADER, *(row.cells(rows[0]) for row in rows)]
    model = [["letter", "value", "what it is"], *inputs(rows[0] if rows else None, rests, alone)]
    ends = conclusions(rows[: len(args.workers)], rows[len(args.workers) :])
    print("", plain(table), "", *ends, "", plain(model), sep="\n")
    if args.output:
        args.output.write_text("\n\n".join([f"{title}.", markdown(table), *ends, markdown(model)]) + "\n")


if __name__ == "__main__":
    given = arguments()
    logging.getLogger("maas_backoff").setLevel(logging.ERROR)  # the servers keep nothing on disk, on purpose
    if given.as_worker:
        anyio.run(work, given.url, given.queue)
    else:
        # An exception, so that servers and workers are stopped, too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        main(given)
