"""How many no-op tasks one process drains a second, beside the limit programs of `limits.py` in the same run.

Results are stored and leases kept as in normal use. All are measured several times, by turns; the medians count.
Run it with `nox -s bench`, or `python benchmarks/drain.py --tasks 20000 --rounds 5`. Without `--url` it starts the
embedded server.
"""

import argparse
import statistics
import tempfile
import time

import anyio
import limits
from redis.asyncio import Redis

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    ThreadPoolConfig,
)
from maas_backoff.store.redis import RedisStore


def config_of(storage: StorageConfig, prefix: str, concurrency: int) -> TaskBackoffConfig:
    return TaskBackoffConfig(
        storage=storage,
        task=TaskConfig(biz_prefix=prefix, result_ttl=60),
        threadpool=ThreadPoolConfig(concurrency=concurrency),
    )


async def drain_rate(storage: StorageConfig, tasks: int, concurrency: int, prefix: str) -> tuple[float, float]:
    """Create, then drain `tasks` no-op tasks; both rates, per second."""
    scheduler = TaskBackoffScheduler(config_of(storage, prefix, concurrency))
    runs: dict[str, int] = {}
    all_ran = anyio.Event()

    @scheduler.set_custom_task_handler
    async def no_op(task: TaskEntity) -> None:
        runs[task.task_id] = runs.get(task.task_id, 0) + 1
        if len(runs) == tasks:
            all_ran.set()

    begun = time.perf_counter()
    ids = await scheduler.create_tasks({"n": n, "prompt": "a cat in a hat, drawn with ink"} for n in range(tasks))
    created = time.perf_counter()
    async with scheduler:
        await all_ran.wait()
        while (await scheduler.get_queue_stats()).completed_count < tasks:
            await anyio.sleep(0.002)
        drained = time.perf_counter()
    assert runs == dict.fromkeys(ids, 1), "every task must have run exactly once"
    return tasks / (created - begun), tasks / (drained - created)


async def main(storage: StorageConfig, tasks: int, concurrency: int, rounds: int) -> None:
    store = RedisStore(config_of(storage, "bench", concurrency))
    await store.server.connect()
    location = store.server.location
    rates: dict[str, list[float]] = {"trips": [], "l1": [], "create": [], "drain": []}
    client = Redis(connection_pool=location.pool(await location.get(), connections=4, timeout=30))
    try:
        for number in range(rounds):
            rates["trips"].append(await limits.trips(client))
            rates["l1"].append(await limits.l1(client, tasks))
            create, drain = await drain_rate(storage, tasks, concurrency, f"bench-{time.time_ns()}")
            rates["create"].append(create)
            rates["drain"].append(drain)
            print(f"round {number + 1}:", "  ".join(f"{name} {found[-1]:,.0f}/s" for name, found in rates.items()))
    finally:
        await client.aclose(close_connection_pool=True)
        await store.aclose()
    trip, l1, create, drain = (statistics.median(found) for found in rates.values())
    print(f"sequential awaited EVALSHA   {trip:10,.0f}/s   (median of {rounds})")
    print(f"limit program L1             {l1:10,.0f}/s")
    print(f"create_tasks                 {create:10,.0f}/s   = {create / l1:.2f} x L1")
    print(f"drain, concurrency {concurrency:<4}      {drain:10,.0f}/s   = {drain / l1:.2f} x L1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help="a server; without it, the embedded one")
    args = parser.parse_args()
    if args.url:
        anyio.run(main, StorageConfig(url=args.url), args.tasks, args.concurrency, args.rounds)
    else:
        with tempfile.TemporaryDirectory() as folder:
            anyio.run(main, StorageConfig(type="embedded", path=folder), args.tasks, args.concurrency, args.rounds)
