"""How many no-op tasks one process drains a second, beside the rate of bare awaited EVALSHA calls in the same run.

Results are stored and leases kept as in normal use. Both are measured several times, by turns; the medians count.
Run it with `nox -s bench`, or `python benchmarks/drain.py --tasks 20000 --rounds 5`. Without `--url` it starts the
embedded server.
"""

import argparse
import statistics
import tempfile
import time

import anyio

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    ThreadPoolConfig,
)
from maas_backoff.store.connect import Client
from maas_backoff.store.redis import RedisStore
from maas_backoff.store.scripts import Script

ROUND_TRIPS = 3000


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


async def round_trip_rate(client: Client) -> float:
    """Await one EVALSHA after the other."""
    script = Script("bare", (), (), "return redis.call('EXISTS', KEYS[1])", "0" * 40)
    await client.run(script, ["bench"], [])
    digest = (await client.execute("SCRIPT", "LOAD", script.text)).decode()
    begun = time.perf_counter()
    for _ in range(ROUND_TRIPS):
        await client.execute("EVALSHA", digest, 1, "bench")
    return ROUND_TRIPS / (time.perf_counter() - begun)


async def main(storage: StorageConfig, tasks: int, concurrency: int, rounds: int) -> None:
    store = RedisStore(config_of(storage, "bench", concurrency))
    client = await store.server.connect()
    created: list[float] = []
    drained: list[float] = []
    trips: list[float] = []
    try:
        for number in range(rounds):
            trips.append(await round_trip_rate(client))
            create, drain = await drain_rate(storage, tasks, concurrency, f"bench-{time.time_ns()}")
            created.append(create)
            drained.append(drain)
            print(
                f"round {number + 1}: round trips {trips[-1]:,.0f}/s  created {create:,.0f}/s  drained {drain:,.0f}/s"
            )
    finally:
        await store.aclose()
    trip, drain = statistics.median(trips), statistics.median(drained)
    print(f"sequential awaited EVALSHA   {trip:10,.0f}/s   (median of {rounds})")
    print(f"create_tasks                 {statistics.median(created):10,.0f}/s")
    print(f"drain, concurrency {concurrency:<4}      {drain:10,.0f}/s   = {drain / trip:.2f} x the round trips")


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
