"""maas_backoff beside the limit programs, in one run: `nox -s bench`, or `python benchmarks/bench.py`.

Each row is measured several times, by turns with its limit; medians count. `--rows drain,idle` picks rows, `--long`
adds the two that take minutes, `--loop uvloop` uses that event loop for ours and for the limits. Without `--url` a
server without persistence is started on the loopback interface; that of `--url` is flushed.
"""

import argparse
import asyncio
import contextlib
import logging
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import limits
import workloads
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from server import machine, started_server
from workloads import Metrics

Measure = Callable[[str], Awaitable[Metrics]]


@dataclass(frozen=True)
class Row:
    """One line of the table. `judge` gives a number from the medians, which must reach `reach` (at most, if `most`)."""

    title: str
    what: str
    reach: float
    judge: Callable[[Metrics], float]
    measures: tuple[Measure, ...]
    rounds: int = 5
    most: bool = False
    long: bool = False

    def text(self, found: Metrics) -> str:
        value = self.judge(found)
        met = value <= self.reach if self.most else value >= self.reach
        bound = f"{'<=' if self.most else '>='} {self.reach:g}"
        numbers = "  ".join(f"{name} {number:,.{0 if abs(number) >= 100 else 2}f}" for name, number in found.items())
        return f"{self.title:34} {value:10,.2f} {self.what:14} {bound:10} {'yes' if met else 'NO':4} {numbers}"


def limit(program: Callable[..., Awaitable[float]], *args: Any) -> Measure:
    async def measure(url: str) -> Metrics:
        async with AsyncRedis.from_url(url, protocol=3) as client:
            return {"limit": await program(client, *args)}

    return measure


def ours(workload: Callable[..., Awaitable[Metrics]], *args: Any, **options: Any) -> Measure:
    return lambda url: workload(url, *args, **options)


def networks(concurrency: int) -> tuple[Measure, ...]:
    """Return the drain through a proxy without delay, and through one with 1 ms each way."""
    near_and_far = (("near", 0), ("far", 0.001))
    return tuple(ours(workloads.distant, TASKS, name, delay, concurrency=concurrency) for name, delay in near_and_far)


TASKS = 20_000

ROWS = {
    "drain": Row(
        f"drain {TASKS:,} no-ops, 100 slots",
        "x L1",
        0.7,
        lambda found: found["rate"] / found["limit"],
        (limit(limits.l1, TASKS), ours(workloads.drain, TASKS)),
        rounds=7,
    ),
    "sleep": Row(
        "the same, 1 ms each, 1,000 slots",
        "x L2",
        0.6,
        lambda found: found["rate"] / found["limit"],
        (
            limit(limits.l2, TASKS),
            ours(workloads.drain, TASKS, concurrency=1000, handler=workloads.sleep_1_ms),
        ),
    ),
    "network": Row(
        "drain, 1 ms of network each way",
        "x no delay",
        0.9,
        lambda found: found["far"] / found["near"],
        networks(100),
    ),
    "network_wide": Row(
        "the same, 1,000 slots",
        "x no delay",
        0.9,
        lambda found: found["far"] / found["near"],
        networks(1000),
    ),
    "create": Row(
        "create_task, one after the other",
        "x bare EVALSHA",
        0.85,
        lambda found: found["rate"] / found["limit"],
        (limit(limits.trips), ours(workloads.create, 3000)),
    ),
    "crowd": Row(
        "create_task, 100 callers",
        "x one caller",
        2.8,
        lambda found: found["together"] / found["rate"],
        (ours(workloads.create, 3000), ours(workloads.crowd, 20_000, 100)),
    ),
    "reads": Row(
        "get_task, 100 callers",
        "x one caller",
        2.8,
        lambda found: found["together"] / found["rate"],
        (ours(workloads.reads, 20_000, 100),),
    ),
    "lone": Row(
        "idle worker, a task every 5 ms",
        "x no-op scripts",
        3,
        lambda found: found["server"] / found["limit"],
        (limit(limits.lone, 600), ours(workloads.lone, 600)),
        rounds=3,
        most=True,
    ),
    "create_tasks": Row(
        f"create_tasks of {TASKS:,}",
        "x L1",
        1.5,
        lambda found: found["created"] / found["limit"],
        (limit(limits.l1, TASKS), ours(workloads.drain, TASKS)),
    ),
    "latency": Row(
        "idle worker, a task every 20 ms",
        "ms, median",
        1.2,
        lambda found: found["p50"],
        (ours(workloads.latency, 300),),
        rounds=3,
        most=True,
    ),
    "lateness": Row(
        "2,000 tasks due over 1-6 s",
        "ms, median",
        2,
        lambda found: found["p50"],
        (ours(workloads.lateness, 2000),),
        rounds=1,
        most=True,
    ),
    "retries": Row(
        "2,000 that fail twice, 0.1 s each",
        "of allowed",
        1,
        lambda found: found["seconds"] / (0.2 + 4 * found["plain"]),
        (ours(workloads.retries, 2000),),
        rounds=5,
        most=True,
    ),
    "idle": Row(
        "idle worker",
        "commands/s",
        4,
        lambda found: found["commands"],
        (ours(workloads.idle, 20),),
        rounds=1,
        most=True,
    ),
    "memory": Row(
        "server memory, 200,000 waiting",
        "bytes a task",
        530,
        lambda found: found["bytes"],
        (ours(workloads.memory, 200_000),),
        rounds=1,
        most=True,
    ),
    "startup": Row(
        "import of the scheduler",
        "x dependencies",
        0.9,
        lambda found: found["import"] / found["limit"],
        (limit(limits.startup), ours(workloads.startup)),
        rounds=11,
        most=True,
    ),
    "command": Row(
        "maas-backoff stats",
        "x dependencies",
        1.8,
        lambda found: found["stats"] / found["limit"],
        (limit(limits.startup), ours(workloads.command)),
        rounds=11,
        most=True,
    ),
    "thread": Row(
        "threads, no-op",
        "tasks/s",
        8000,
        lambda found: found["rate"],
        (ours(workloads.drain, 10_000, proc_mode="thread"),),
    ),
    "process": Row(
        "2 warm child processes, no-op",
        "tasks/s",
        3000,
        lambda found: found["rate"],
        (ours(workloads.warm, 5000, concurrency=2, proc_mode="process"),),
    ),
    "backlog": Row(
        "1M ready and 1M future tasks",
        "x short queue",
        0.9,
        lambda found: found["long"] / found["short"],
        (ours(workloads.backlog, 10_000, 1_000_000, 1_000_000),),
        rounds=1,
        long=True,
    ),
    "growth": Row(
        "memory of a worker, 500,000 tasks",
        "MB more",
        10,
        lambda found: found["grown"],
        (ours(workloads.growth, 500_000, 50_000),),
        rounds=1,
        most=True,
        long=True,
    ),
}


def measured(row: Row, url: str, rounds: int, factory: Callable[[], asyncio.AbstractEventLoop] | None) -> Metrics:
    """Return the medians of what the row's measures give."""
    found: dict[str, list[float]] = {}
    with Redis.from_url(url) as server:
        for _ in range(rounds):
            for measure in row.measures:
                server.flushall()
                with asyncio.Runner(loop_factory=factory) as runner:
                    for name, value in runner.run(_whole(measure, url)).items():
                        found.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in found.items()}


async def _whole(measure: Measure, url: str) -> Metrics:
    return await measure(url)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help="rows by name, separated by commas: " + ", ".join(ROWS))
    parser.add_argument("--rounds", type=int, help="how often each row is measured")
    parser.add_argument("--long", action="store_true", help="also what takes minutes")
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument("--url", help="a server, which is flushed; without it, one is started")
    args = parser.parse_args()
    names = args.rows.split(",") if args.rows else [name for name, row in ROWS.items() if args.long or not row.long]
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if args.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    logging.getLogger("maas_backoff").setLevel(logging.ERROR)  # the server keeps nothing on disk, on purpose
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        url = args.url or stack.enter_context(started_server())
        with Redis.from_url(url) as server:
            version = server.info("server")["redis_version"]
        print(f"Python {platform.python_version()}, {args.loop}, server {version}, {machine()}")
        for name in names:
            row = ROWS[name]
            print(row.text(measured(row, url, args.rounds or row.rounds, factory)), flush=True)
    print(f"{time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
