"""The workloads of maas_backoff, by its public API. Results are stored and leases kept, as in normal use."""

import asyncio
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from limits import fresh
from network import through
from redis import Redis

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    TaskSpec,
    ThreadPoolConfig,
)

PARAMS = {"n": 1, "prompt": "a cat in a hat, drawn with ink"}
"""About 50 bytes of JSON."""

Metrics = dict[str, float]


def scheduler_of(url: str, *, concurrency: int = 100, proc_mode: str = "thread", **task: Any) -> TaskBackoffScheduler:
    return TaskBackoffScheduler(
        TaskBackoffConfig(
            storage=StorageConfig(url=url),
            task=TaskConfig(biz_prefix="bench", **task),
            threadpool=ThreadPoolConfig(concurrency=concurrency, proc_mode=proc_mode),
        )
    )


def no_op(_: TaskEntity) -> None:
    """For threads, and for child processes, which import it from here."""


async def completed(scheduler: TaskBackoffScheduler, tasks: int, *, every: float = 0.002) -> None:
    while (await scheduler.get_queue_stats()).completed_count < tasks:
        await asyncio.sleep(every)


async def drain(
    url: str,
    tasks: int,
    *,
    concurrency: int = 100,
    handler: Callable[[], Awaitable[None]] | None = None,
    proc_mode: str = "inline",
) -> Metrics:
    """Create tasks, then run them all: rates per second, and the microseconds a task costs here and on the server.

    The clock runs from before the worker's start until the last task is recorded as completed. That of `ran` begins
    with the first attempt.
    """
    scheduler = scheduler_of(url, concurrency=concurrency, proc_mode="thread" if proc_mode == "inline" else proc_mode)
    runs: Counter[str] = Counter()
    first = 0.0

    async def handle(task: TaskEntity) -> None:
        nonlocal first
        if not runs:
            first = time.perf_counter()
        runs[task.task_id] += 1
        if handler is not None:
            await handler()

    scheduler.set_custom_task_handler(handle if proc_mode == "inline" else no_op)
    with Redis.from_url(url) as server:
        begun = time.perf_counter()
        ids = await scheduler.create_tasks(PARAMS for _ in range(tasks))
        created = time.perf_counter()
        spent, used = time.process_time(), server_cpu(server)
        async with scheduler:
            await completed(scheduler, tasks)
            drained = time.perf_counter()
            spent, used = time.process_time() - spent, server_cpu(server) - used
    if proc_mode == "inline":
        assert runs == dict.fromkeys(ids, 1), "every task must have run exactly once"
    else:
        await _each_ran_once(scheduler, tasks)
    return {
        "created": tasks / (created - begun),
        "rate": tasks / (drained - created),
        "ran": tasks / (drained - (first or created)),
        "client_us": spent / tasks * 1e6,
        "server_us": used / tasks * 1e6,
    }


async def distant(url: str, tasks: int, name: str, delay: float, *, concurrency: int) -> Metrics:
    """Run tasks through a network that takes `delay` seconds each way: the rate, and a round trip in ms, as `name`."""
    with through(url, delay) as there:
        with Redis.from_url(there) as server:
            trips = [_timed(server.ping) for _ in range(20)]
        found = await drain(there, tasks, concurrency=concurrency)
    return {name: found["ran"], f"{name}_trip": statistics.median(trips) * 1000}


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


async def warm(url: str, tasks: int, *, concurrency: int, proc_mode: str) -> Metrics:
    """Run tasks where the children have been started, and have run some already: the rate per second."""
    scheduler = scheduler_of(url, concurrency=concurrency, proc_mode=proc_mode)
    scheduler.set_custom_task_handler(no_op)
    first = 50 * concurrency
    async with scheduler:
        await scheduler.create_tasks(PARAMS for _ in range(first))
        await completed(scheduler, first)
        await scheduler.pause()
        await scheduler.create_tasks(PARAMS for _ in range(tasks))
        begun = time.perf_counter()
        await scheduler.resume()
        await completed(scheduler, first + tasks, every=0.01)  # to ask more often would take a twentieth of the rate
        took = time.perf_counter() - begun
        await _each_ran_once(scheduler, first + tasks)
    return {"rate": tasks / took}


async def _each_ran_once(scheduler: TaskBackoffScheduler, tasks: int) -> None:
    attempts: list[int] = []
    cursor: str | None = None
    while True:
        page = await scheduler.list_tasks("completed", limit=1000, cursor=cursor)
        attempts += [task.attempt for task in page.tasks]
        cursor = page.cursor
        if cursor is None:
            break
    await scheduler.shutdown()
    assert attempts == [1] * tasks, "every task must have run exactly once"


def server_cpu(server: Any) -> float:
    """Return the seconds of CPU that the server has used."""
    cpu = server.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


async def sleep_1_ms() -> None:
    await asyncio.sleep(0.001)


async def create(url: str, tasks: int) -> Metrics:
    """Create tasks one after the other."""
    scheduler = scheduler_of(url)
    await scheduler.create_task(PARAMS)
    begun = time.perf_counter()
    for _ in range(tasks):
        await scheduler.create_task(PARAMS)
    took = time.perf_counter() - begun
    await scheduler.shutdown()
    return {"rate": tasks / took}


async def crowd(url: str, tasks: int, callers: int) -> Metrics:
    """Have many callers create tasks, each one after the other, as the requests of a web service do."""
    scheduler = scheduler_of(url)
    await scheduler.create_task(PARAMS)
    waits: list[float] = []

    async def call() -> None:
        for _ in range(tasks // callers):
            called = time.perf_counter()
            await scheduler.create_task(PARAMS)
            waits.append((time.perf_counter() - called) * 1000)

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(call())
    took = time.perf_counter() - begun
    created = (await scheduler.get_queue_stats()).pending_count
    await scheduler.shutdown()
    assert created == 1 + len(waits), "every call must have created one task"
    return {"together": len(waits) / took, "p50": statistics.median(waits)}


async def reads(url: str, calls: int, callers: int) -> Metrics:
    """Read tasks, by one caller and by many. Half of the tasks wait, and half have a result of 200 bytes."""
    scheduler = scheduler_of(url)
    ids = await scheduler.create_tasks(PARAMS for _ in range(1000))
    for task_id in ids[::2]:
        await scheduler.mark_task_completed(task_id, {"text": "x" * 188})
    waits: list[float] = []

    async def call(first: int, number: int) -> None:
        for n in range(number):
            called = time.perf_counter()
            task = await scheduler.get_task(ids[(first + n) % len(ids)])
            waits.append((time.perf_counter() - called) * 1000)
            assert task is not None

    begun = time.perf_counter()
    await call(0, calls // callers * 10)
    alone = len(waits) / (time.perf_counter() - begun)
    waits.clear()
    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for first in range(callers):
            group.create_task(call(first, calls // callers))
    together = len(waits) / (time.perf_counter() - begun)
    await scheduler.shutdown()
    return {"rate": alone, "together": together, "p50": statistics.median(waits)}


async def lone(url: str, tasks: int) -> Metrics:
    """Give an idle worker in another process a task every 5 ms: microseconds of the server for each."""
    worker = started("listen", url, str(tasks))
    scheduler = scheduler_of(url)
    await asyncio.sleep(0.5)
    with Redis.from_url(url) as server:
        before = server_cpu(server)
        for _ in range(tasks):
            await asyncio.sleep(0.005)
            await scheduler.create_task({"sent": time.monotonic()})
        used = server_cpu(server) - before
    await scheduler.shutdown()
    await asyncio.to_thread(worker.communicate)
    return {"server": used / tasks * 1e6}


async def retries(url: str, tasks: int) -> Metrics:
    """Run tasks that fail twice, with a fixed backoff of 0.1 s, beside as many that do not fail."""
    plain = await drain(url, tasks)
    Redis.from_url(url).flushall()
    scheduler = scheduler_of(url, backoff_strategy="fixed", backoff_interval=0.1)
    runs: Counter[str] = Counter()

    class ExpectedError(Exception):
        pass

    @scheduler.set_custom_task_handler
    async def fail_twice(task: TaskEntity) -> None:
        runs[task.task_id] += 1
        if task.retry_count < 2:
            raise ExpectedError

    ids = await scheduler.create_tasks(PARAMS for _ in range(tasks))
    begun = time.perf_counter()
    async with scheduler:
        await completed(scheduler, tasks)
        took = time.perf_counter() - begun
    assert runs == dict.fromkeys(ids, 3), "every task must have run exactly three times"
    return {"seconds": took, "plain": tasks / plain["rate"]}


async def lateness(url: str, tasks: int) -> Metrics:
    """Run tasks that are due spread over 1 to 6 seconds from now: ms from when they are due to their handlers."""
    scheduler = scheduler_of(url)
    late: list[float] = []
    due: dict[str, float] = {}

    @scheduler.set_custom_task_handler
    async def measure(task: TaskEntity) -> None:
        late.append((time.time() - due[task.task_id]) * 1000)

    async with scheduler:
        now = time.time()
        moments = [now + 1 + 5 * n / tasks for n in range(tasks)]
        specs = [TaskSpec(PARAMS, f"due-{n}", run_at=_utc(moment)) for n, moment in enumerate(moments)]
        due.update({f"due-{n}": moment for n, moment in enumerate(moments)})
        await scheduler.create_tasks(specs)
        await completed(scheduler, tasks)
    assert len(late) == tasks, "every task must have run exactly once"
    return percentiles(late) | {"first": min(late)}


def _utc(moment: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(moment, UTC)


def percentiles(values: list[float]) -> Metrics:
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p99": ordered[int(len(ordered) * 0.99)]}


_IMPORT = "from maas_backoff import TaskBackoffScheduler"


async def startup(_: str) -> Metrics:
    """Start processes that import the scheduler, make a producer, and make a worker: milliseconds of each."""
    return {
        "python": fresh("-c", ""),
        "import": fresh("-c", _IMPORT),
        "producer": fresh("-c", f"{_IMPORT}; TaskBackoffScheduler()"),
        "worker": fresh("-c", f"{_IMPORT}; TaskBackoffScheduler().set_custom_task_handler(print)"),
    }


async def command(url: str) -> Metrics:
    """Run commands: milliseconds of each."""
    environ = {"MAAS_BACKOFF_URL": url, "MAAS_BACKOFF_BIZ_PREFIX": "bench"}
    module = ("-m", "maas_backoff")
    return {name: fresh(*module, *name.split(), **environ) for name in ("--help", "worker --help", "list", "stats")}


# In processes of their own


def started(command: str, url: str, *words: str) -> "subprocess.Popen[str]":
    """Start one of the programs below, and wait until it is ready."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), command, url, *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    return process


async def latency(url: str, tasks: int) -> Metrics:
    """Give an idle worker in another process a task every 20 ms: ms from before create_task to its handler."""
    worker = started("listen", url, str(tasks))
    scheduler = scheduler_of(url)
    for _ in range(tasks):
        await asyncio.sleep(0.02)
        await scheduler.create_task({"sent": time.monotonic()})
    await scheduler.shutdown()
    out, _ = await asyncio.to_thread(worker.communicate)
    delays = [float(word) for word in out.split()]
    assert len(delays) == tasks, "every task must have run exactly once"
    return percentiles(delays[tasks // 10 :])


async def _listen(url: str, tasks: int) -> None:
    scheduler = scheduler_of(url)
    delays: list[float] = []
    all_ran = asyncio.Event()

    @scheduler.set_custom_task_handler
    async def measure(task: TaskEntity) -> None:
        delays.append((time.monotonic() - task.task_params["sent"]) * 1000)
        if len(delays) == tasks:
            all_ran.set()

    async with scheduler:
        print("ready", flush=True)
        await all_ran.wait()
    print(*delays)


async def idle(url: str, seconds: float) -> Metrics:
    """Watch a worker that has nothing to do: commands a second (scripts' inner ones too), % of a core, connections."""
    worker = started("idle", url)
    with Redis.from_url(url) as server:
        await asyncio.sleep(1)
        before, spent = commands(server), cpu_of(worker.pid)
        await asyncio.sleep(seconds)
        after, used = commands(server), cpu_of(worker.pid) - spent
        clients = sum(client["name"] == "maas-backoff" for client in server.client_list())
    worker.terminate()
    worker.wait()
    return {"commands": (after - before - 1) / seconds, "cpu": used / seconds * 100, "connections": clients}


def commands(server: Any) -> int:
    return sum(one["calls"] for name, one in server.info("commandstats").items() if name != "cmdstat_info")


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _idle(url: str) -> None:
    scheduler = scheduler_of(url)

    @scheduler.set_custom_task_handler
    async def nothing(_: TaskEntity) -> None:
        pass

    async with scheduler:
        print("ready", flush=True)
        await asyncio.sleep(600)


async def memory(url: str, tasks: int) -> Metrics:
    """Return the server's memory per waiting task with 100 bytes of params."""
    scheduler = scheduler_of(url)
    text = '{"n":1,"prompt":""}'
    params = {"n": 1, "prompt": "x" * (100 - len(text))}
    with Redis.from_url(url) as server:
        before: Any = server.info("memory")
        await scheduler.create_tasks(params for _ in range(tasks))
        after: Any = server.info("memory")
    await scheduler.shutdown()
    return {"bytes": (after["used_memory"] - before["used_memory"]) / tasks}


async def backlog(url: str, tasks: int, ready: int, later: int) -> Metrics:
    """Compare the rate of `tasks` runs in a queue of no more with the rate at the head of a long one."""
    short = await _head_rate(url, tasks, tasks)
    Redis.from_url(url).flushall()
    scheduler = scheduler_of(url)
    for _ in range(later // 100_000):
        await scheduler.create_tasks(TaskSpec(PARAMS, delay=86_400) for _ in range(100_000))
    for _ in range(ready // 100_000):
        await scheduler.create_tasks(PARAMS for _ in range(100_000))
    await scheduler.shutdown()
    return {"short": short, "long": await _head_rate(url, tasks, 0)}


async def _head_rate(url: str, tasks: int, creating: int) -> float:
    """Return how fast the first tasks of the queue are run, from the first handler to the last; median of five."""
    rates: list[float] = []
    for _ in range(5):
        scheduler = scheduler_of(url)
        await scheduler.create_tasks(PARAMS for _ in range(creating))
        moments: list[float] = []
        enough = asyncio.Event()

        async def note(_: TaskEntity, moments: list[float] = moments, enough: asyncio.Event = enough) -> None:
            moments.append(time.perf_counter())
            if len(moments) == tasks:
                enough.set()

        scheduler.set_custom_task_handler(note)
        async with scheduler:
            await enough.wait()
        rates.append(tasks / (moments[tasks - 1] - moments[0]))
    return statistics.median(rates)


async def growth(url: str, tasks: int, settled: int) -> Metrics:
    """Run many tasks through one worker process: MB that its memory grows by after the first `settled`."""
    worker = started("grow", url, str(tasks), str(settled))
    scheduler = scheduler_of(url, result_ttl=10)
    for _ in range(tasks // 10_000):
        await scheduler.create_tasks(PARAMS for _ in range(10_000))
        while (await scheduler.get_queue_stats()).pending_count > 20_000:
            await asyncio.sleep(0.01)
    await scheduler.shutdown()
    out, _ = await asyncio.to_thread(worker.communicate)
    before, after = map(int, out.split())
    return {"grown": (after - before) / 2**20}


async def _grow(url: str, tasks: int, settled: int) -> None:
    scheduler = scheduler_of(url)
    sizes: list[int] = []
    count = 0
    all_ran = asyncio.Event()

    @scheduler.set_custom_task_handler
    async def look(_: TaskEntity) -> None:
        nonlocal count
        count += 1
        if count == settled:
            sizes.append(resident())
        if count == tasks:
            all_ran.set()

    async with scheduler:
        print("ready", flush=True)
        await all_ran.wait()
        sizes.append(resident())
    print(*sizes)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    program, server_url, *rest = sys.argv[1:]
    programs: dict[str, Callable[..., Awaitable[None]]] = {"listen": _listen, "idle": _idle, "grow": _grow}
    asyncio.run(programs[program](server_url, *map(int, rest)))
