"""Measure tenants, limits and deadlines: `nox -s sharing`, or `python benchmarks/sharing.py --rows drain,shares`.

`--tasks` is the number of tasks of the row `kills`, whose workers are killed all the time. Nothing here is asserted as
an absolute time, but printed beside what is aimed at.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from redis import Redis
from server import machine, started_server
from workloads import PARAMS, completed, percentiles, scheduler_of, server_cpu

from maas_backoff import RateLimited, TaskBackoffScheduler, TaskEntity, TaskSpec

Specs = Callable[[int], TaskSpec]
TENANTS = 1000


def plain(_: int) -> TaskSpec:
    return TaskSpec(PARAMS)


def tenants(number: int) -> TaskSpec:
    return TaskSpec(PARAMS, tenant=f"t{number % TENANTS}")


def one_limit(number: int) -> TaskSpec:
    return TaskSpec(PARAMS, tenant=f"t{number % TENANTS}", limits={"shared": 1})


def two_limits(number: int) -> TaskSpec:
    return TaskSpec(PARAMS, tenant=f"t{number % TENANTS}", limits={"shared": 1, f"user:{number % TENANTS}": 1})


async def _drained(url: str, tasks: int, specs: Specs) -> tuple[float, float]:
    """Return the tasks a second, and the microseconds of the server for each."""
    scheduler = scheduler_of(url)

    @scheduler.set_custom_task_handler
    async def nothing(_: TaskEntity) -> None:
        pass

    with Redis.from_url(url) as server:
        server.flushall()
        if specs in {one_limit, two_limits}:
            await scheduler.set_limit("shared", concurrency=1000)
            await scheduler.set_limit("user:*", concurrency=1000)
        await scheduler.create_tasks(map(specs, range(tasks)))
        begun, used = time.perf_counter(), server_cpu(server)
        async with scheduler:
            await completed(scheduler, tasks)
            took = time.perf_counter() - begun
            return tasks / took, (server_cpu(server) - used) / tasks * 1e6


async def drain(url: str) -> None:
    """Drain queues with tenants and limits, by turns with a plain one."""
    variants: dict[str, Specs] = {
        "plain": plain,
        "1,000 tenants": tenants,
        "the same, one shared limit": one_limit,
        "the same, two limits": two_limits,
    }
    aims = {"1,000 tenants": 0.85, "the same, one shared limit": 0.78, "the same, two limits": 0.68}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for _ in range(7):
        for name, specs in variants.items():
            found[name].append(await _drained(url, 20_000, specs))
    for name, rounds in found.items():
        ratio = statistics.median(rate / base for (rate, _), (base, _) in zip(rounds, found["plain"], strict=True))
        server = statistics.median(cost for _, cost in rounds)
        rate = statistics.median(rate for rate, _ in rounds)
        _say(
            "drain", name, f"{ratio:.2f} of plain", f">= {aims.get(name, 1)}", f"{rate:,.0f}/s, server {server:.1f} us"
        )


@contextlib.asynccontextmanager
async def _worked(
    url: str, handler: Callable[[TaskEntity], Awaitable[None]], **options: Any
) -> AsyncGenerator[TaskBackoffScheduler, None]:
    scheduler = scheduler_of(url, **options)
    scheduler.set_custom_task_handler(handler)
    async with scheduler:
        yield scheduler


async def shares(url: str) -> None:
    """Three tenants with weights 3:2:1, tasks that cost 1 or 100, always a backlog."""
    weights, tasks, counted = {"a": 3, "b": 2, "c": 1}, 12_000, 6000
    order: list[tuple[str, float]] = []
    done = asyncio.Event()

    async def note(task: TaskEntity) -> None:
        order.append((task.tenant, task.task_params["cost"]))
        if len(order) == counted:
            done.set()

    chance = random.Random(1)
    producer = scheduler_of(url)
    for tenant, weight in weights.items():
        await producer.set_weight(tenant, weight)
    specs: list[TaskSpec] = []
    for _ in range(tasks):
        cost = chance.choice([1.0, 100.0])
        specs += [TaskSpec({"cost": cost}, tenant=tenant, cost=cost) for tenant in weights]
    await producer.create_tasks(specs)
    await producer.shutdown()
    async with _worked(url, note):
        await done.wait()
    worst = 0.0
    for first in range(0, counted - 999, 100):
        spent: Counter[str] = Counter()
        for tenant, cost in order[first : first + 1000]:
            spent[tenant] += int(cost)
        worst = max(worst, *(abs(spent[name] / spent.total() - weights[name] / 6) for name in weights))
    _say("shares", "furthest off in any 1,000 tasks", f"{worst * 100:.1f} %", "<= 2 %")


async def quiet(url: str) -> None:
    """One task of a tenant at a time, in a worker with 100 busy slots: few others wait, or 1,000,000 of one tenant."""

    async def measure(flood: int) -> dict[str, float]:
        with Redis.from_url(url) as server:
            server.flushall()
        delays: list[float] = []
        begun = asyncio.Event()

        chance = random.Random(1)

        async def work(task: TaskEntity) -> None:
            if task.tenant == "quiet":
                delays.append((time.monotonic() - task.task_params["sent"]) * 1000)
                begun.set()
            else:
                await asyncio.sleep(chance.uniform(0.02, 0.08))
                if not flood:
                    await producer.create_task({"n": 1}, tenant="flood")

        producer = scheduler_of(url)
        for _ in range(flood // 100_000):
            await producer.create_tasks(TaskSpec({"n": 1}, tenant="flood") for _ in range(100_000))
        if not flood:  # as busy: each task that ends makes another one, and few wait
            await producer.create_tasks(TaskSpec({"n": 1}, tenant="flood") for _ in range(105))
        async with _worked(url, work):
            await asyncio.sleep(1)
            for _ in range(300):
                begun.clear()
                await producer.create_task({"sent": time.monotonic()}, tenant="quiet")
                await begun.wait()
                await asyncio.sleep(0.01)
        await producer.shutdown()
        return percentiles(delays)

    alone, beside = await measure(0), await measure(1_000_000)
    text = f"p99 {beside['p99']:.1f} ms beside 1,000,000 others, {alone['p99']:.1f} without"
    _say("quiet", "start of a quiet tenant's task", f"{beside['p99'] / alone['p99']:.1f} x", "<= 2", text)


async def parked(url: str) -> None:
    """A limit of one: from the end of a task to the start of the next."""
    ended, gaps = 0.0, list[float]()
    done = asyncio.Event()

    async def work(_: TaskEntity) -> None:
        nonlocal ended
        if ended:
            gaps.append((time.perf_counter() - ended) * 1000)
        await asyncio.sleep(0.02)
        ended = time.perf_counter()
        if len(gaps) == 200:
            done.set()

    producer = scheduler_of(url)
    await producer.set_limit("one", concurrency=1)
    await producer.create_tasks(TaskSpec(PARAMS, limits={"one": 1}) for _ in range(202))
    await producer.shutdown()
    async with _worked(url, work):
        await done.wait()
    found = percentiles(gaps)
    _say("parked", "start after room appears", f"{found['p50']:.1f} ms", "<= 3 ms", f"p99 {found['p99']:.1f}")


async def memory(url: str) -> None:
    """100,000 limits, one for each user, used within a minute; and some time later."""
    users, keys = (
        100_000,
        ("limits", "use", "held", "arrivals", "closed", "opens", "lanes", "laned", "waiting", "virtual"),
    )

    async def nothing(_: TaskEntity) -> None:
        pass

    producer = scheduler_of(url)
    await producer.set_limit("user:*", rate=(1, "1m"))
    await producer.create_tasks(TaskSpec(PARAMS, limits={f"user:{n}": 1}) for n in range(users))
    await producer.shutdown()
    with Redis.from_url(url) as server:

        def used() -> float:
            found = (server.memory_usage(f"maas:{{bench}}:{name}", samples=0) for name in keys)
            return sum(size or 0 for size in found) / 1e6

        async with _worked(url, nothing) as scheduler:
            await completed(scheduler, users, every=0.1)
            most, limits = used(), server.zcard("maas:{bench}:arrivals")
            await asyncio.sleep(61)
            # Each claim forgets up to 100 limits that are not used any more.
            await scheduler.create_tasks(PARAMS for _ in range(users))
            await completed(scheduler, 2 * users, every=0.1)
            left = server.zcard("maas:{bench}:arrivals")
    _say(
        "memory",
        f"{limits:,} of {users:,} limits noted",
        f"{most:.1f} MB",
        "<= 25 MB",
        f"{left:,} limits noted when 100,000 tasks without limits have run since",
    )


async def upstream(url: str) -> None:
    """60 tasks against an upstream that takes 5 calls a second, and two workers; with and without the rate set."""
    for known in (True, False):
        with Redis.from_url(url) as server:
            server.flushall()
        calls: list[float] = []
        work = partial(_call_upstream, calls)
        producer = scheduler_of(url)
        await producer.set_limit("upstream", **({"rate": (5, "1s")} if known else {"concurrency": 5}))
        await producer.create_tasks(TaskSpec(PARAMS, limits={"upstream": 1}) for _ in range(60))
        begun = time.monotonic()
        async with _worked(url, work, concurrency=10), _worked(url, work, concurrency=10):
            await completed(producer, 60, every=0.05)
        await producer.shutdown()
        name = "the rate is set" if known else "only RateLimited, 5 at once"
        _say("upstream", name, f"{len(calls)} calls", "<= 75", f"60 completed in {time.monotonic() - begun:.1f} s")


async def _call_upstream(calls: list[float], _: TaskEntity) -> None:
    """Note a call: its time, negative if it is refused because of five in the last second."""
    now = time.monotonic()
    accepted = [moment for moment in calls if moment > 0 and moment > now - 1]
    calls.append(now if len(accepted) < 5 else -now)
    if len(accepted) >= 5:
        raise RateLimited(after=accepted[0] + 1 - now)


async def overload(url: str, seconds: float) -> None:
    """Three times as many tasks as the worker can run, each of which must start within 5 s."""
    late, started, latest = 0, 0, 0.0

    async def work(task: TaskEntity) -> None:
        nonlocal late, started, latest
        started += 1
        waited = time.time() - task.created_at.timestamp()
        late += waited > 5.001  # the creation is known in whole ms
        latest = max(latest, waited)
        await asyncio.sleep(0.05)

    producer = scheduler_of(url, start_within=5)
    end = time.monotonic() + seconds
    async with _worked(url, work, concurrency=10, start_within=5) as scheduler:
        while time.monotonic() < end:
            await producer.create_tasks({"n": 1} for _ in range(60))
            await asyncio.sleep(0.1)
        await asyncio.sleep(6)
        stats = await scheduler.get_queue_stats()
    await producer.shutdown()
    served = (started - late) / max(1, started) * 100
    text = f"{stats.completed_count:,} completed, {stats.cancelled_count:,} expired, {late} late, latest {latest:.4f} s"
    _say("overload", f"3 x for {seconds:.0f} s: started in time", f"{served:.1f} %", ">= 95 %, 0 late", text)


# Kills

CONCURRENCY, RATE, WORKERS = 64, 2000, 8


def new_scheduler() -> TaskBackoffScheduler:
    """Return the scheduler of a worker that is killed."""
    made = scheduler_of(os.environ["SHARING_URL"], concurrency=20)
    made.config.scheduler.lease = 3

    @made.set_custom_task_handler
    async def work(_: TaskEntity) -> None:
        await asyncio.sleep(float(os.environ["SHARING_WORK"]))

    return made


def __getattr__(name: str) -> TaskBackoffScheduler:
    """Return the scheduler for `maas-backoff worker sharing:scheduler`."""
    if name != "scheduler":
        raise AttributeError(name)
    return new_scheduler()


def _worker(url: str, work: float) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "maas_backoff", "worker", "sharing:scheduler"]
    named = {"SHARING_URL": url, "SHARING_WORK": str(work), "PYTHONPATH": str(Path(__file__).parent)}
    environment = {**os.environ, **named}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def kills(url: str, tasks: int, work: float, every: float) -> None:
    """Eight workers, one of which is killed every `every` seconds: the server's own times of all attempts, checked.

    Each attempt takes `work` seconds.
    """
    producer = scheduler_of(url)
    await producer.pause()
    await producer.set_limit("upstream", concurrency=CONCURRENCY, rate=(RATE, "1s"))
    await producer.create_tasks(TaskSpec(PARAMS, tenant=f"t{n % 50}", limits={"upstream": 1}) for n in range(tasks))
    workers = [_worker(url, work) for _ in range(WORKERS)]
    chance, killed = random.Random(1), 0
    try:
        while len(await producer.workers()) < WORKERS:
            await asyncio.sleep(0.1)
        await producer.resume()
        begun = time.monotonic()
        while (await producer.get_queue_stats()).completed_count < tasks:
            await asyncio.sleep(every)
            place = chance.randrange(WORKERS)
            workers[place].send_signal(signal.SIGKILL)
            workers[place].wait()
            workers[place] = _worker(url, work)
            killed += 1
    finally:
        for process in workers:
            process.send_signal(signal.SIGKILL)
            process.wait()
    took = time.monotonic() - begun
    attempts = [pair async for pair in _attempts(producer)]
    await producer.shutdown()
    most, fastest = _most_at_once(attempts), _most_in_a_second([begin for begin, _ in attempts])
    text = f"{len(attempts):,} claims, {killed} kills, {tasks / took:,.0f} tasks/s"
    _say("kills", "most at once", f"{most}", f"<= {CONCURRENCY}", text)
    _say("kills", "places that are idle", f"{_idle(attempts):.2%}", "<= 1 %", "while tasks wait")
    _say("kills", "most starts in a second", f"{fastest:,}", f"<= {RATE:,}")


async def _attempts(scheduler: TaskBackoffScheduler) -> AsyncGenerator[tuple[float, float], None]:
    """Yield begin and end of each attempt, by the server's clock."""
    cursor: str | None = None
    while True:
        page = await scheduler.list_tasks("completed", limit=1000, cursor=cursor)
        for task in page.tasks:
            assert task.started_at is not None
            assert task.finished_at is not None
            yield task.started_at.timestamp(), task.finished_at.timestamp()
            for failed in task.attempts:
                yield failed.started_at.timestamp(), failed.ended_at.timestamp()
        cursor = page.cursor
        if cursor is None:
            return


def _most_at_once(attempts: Iterable[tuple[float, float]]) -> int:
    """Return the most attempts that ran at once. Times are whole ms: an end comes before a begin of the same ms."""
    events = sorted([(begin, 1) for begin, _ in attempts] + [(end, -1) for _, end in attempts])
    most = running = 0
    for _, change in events:
        running += change
        most = max(most, running)
    return most


def _idle(attempts: list[tuple[float, float]]) -> float:
    """Return the idle share of the places of the limit, from the first begin to the last: until then, tasks wait."""
    first, last = min(attempts)[0], max(attempts)[0]
    used = sum(min(end, last) - begin for begin, end in attempts)
    return 1 - used / (CONCURRENCY * (last - first))


def _most_in_a_second(begins: list[float]) -> int:
    begins.sort()
    most = first = 0
    for last, moment in enumerate(begins):
        while moment - begins[first] >= 0.9995:  # times are whole ms
            first += 1
        most = max(most, last - first + 1)
    return most


def _say(row: str, what: str, value: str, aim: str, more: str = "") -> None:
    print(f"{row:9} {what:34} {value:>16}  {aim:16} {more}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ("drain", "shares", "quiet", "parked", "memory", "upstream", "overload", "kills")
    parser.add_argument("--rows", default=",".join(names), help="rows, separated by commas: " + ", ".join(names))
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks of the row `kills`")
    parser.add_argument("--work", type=float, default=0.04, help="seconds of an attempt of the row `kills`")
    parser.add_argument("--every", type=float, default=1, help="seconds between two kills of the row `kills`")
    parser.add_argument("--seconds", type=float, default=60, help="seconds of the row `overload`")
    args = parser.parse_args()
    logging.getLogger("maas_backoff").setLevel(logging.CRITICAL)
    rows: dict[str, Callable[[str], Awaitable[None]]] = {
        "drain": drain,
        "shares": shares,
        "quiet": quiet,
        "parked": parked,
        "memory": memory,
        "upstream": upstream,
        "overload": lambda url: overload(url, args.seconds),
        "kills": lambda url: kills(url, args.tasks, args.work, args.every),
    }
    print(machine())
    for name in args.rows.split(","):
        with started_server() as url:
            await rows[name](url)


if __name__ == "__main__":
    asyncio.run(main())
