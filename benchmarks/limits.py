"""Limit programs: what this machine, its server and asyncio give at most. No leases, no tokens, no second try.

L1 pops 100 ids, reads a hash for each, and completes the 100 before (state, result, time to live), in one EVALSHA;
parses their params; and runs a no-op for each in a task group. L2 does so with 1,000 in flight, each of which sleeps
for 1 ms.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

from redis.asyncio import Redis

BATCH = 100

POP = """
for i = 2, #ARGV do
  redis.call('HSET', KEYS[2] .. ARGV[i], 's', 'completed', 'r', 'null')
  redis.call('EXPIRE', KEYS[2] .. ARGV[i], 60)
end
local rows = {}
local ids = redis.call('ZPOPMIN', KEYS[1], ARGV[1])
for i = 1, #ids, 2 do rows[#rows + 1] = { ids[i], redis.call('HGETALL', KEYS[2] .. ids[i]) } end
return rows
"""

FILL = """
for i = 1, #ARGV, 2 do
  redis.call('HSET', KEYS[2] .. ARGV[i], 'p', ARGV[i + 1])
  redis.call('ZADD', KEYS[1], i, ARGV[i])
end
"""

PARAMS = {"n": 1, "prompt": "a cat in a hat, drawn in ink"}


async def _fill(client: Any, keys: list[str], tasks: int) -> None:
    digest = await client.script_load(FILL)
    text = json.dumps(PARAMS)
    for start in range(0, tasks, 1000):
        args = [arg for n in range(start, min(start + 1000, tasks)) for arg in (f"{n:016}", text)]
        await client.evalsha(digest, 2, *keys, *args)


async def _no_op(_: object) -> None:
    pass


async def l1(client: Redis, tasks: int) -> float:
    """Return tasks a second of the one loop."""
    keys = [f"limit:{time.time_ns()}:{part}" for part in ("ready", "t:")]
    await _fill(client, keys, tasks)
    digest = await client.script_load(POP)
    begun = time.perf_counter()
    done: list[bytes] = []
    ran = 0
    while ran < tasks or done:
        rows: Any = await client.evalsha(digest, 2, *keys, BATCH, *done)  # type: ignore[misc] - redis-py types it for both kinds of client
        done = [row[0] for row in rows]
        async with asyncio.TaskGroup() as group:
            for _, params in rows:
                group.create_task(_no_op(json.loads(params[1])))
        ran += len(rows)
    took = time.perf_counter() - begun
    await _forget(client, keys)
    return tasks / took


async def l2(client: Redis, tasks: int, in_flight: int = 1000) -> float:
    """Return tasks a second with so many handlers that sleep for 1 ms."""
    keys = [f"limit:{time.time_ns()}:{part}" for part in ("ready", "t:")]
    await _fill(client, keys, tasks)
    digest = await client.script_load(POP)
    begun = time.perf_counter()
    done: list[bytes] = []
    ended = asyncio.Event()
    running = completed = 0

    async def handle(task_id: bytes, _: object) -> None:
        nonlocal running
        await asyncio.sleep(0.001)
        running -= 1
        done.append(task_id)
        ended.set()

    async with asyncio.TaskGroup() as group:
        while completed < tasks:
            if not done and running >= in_flight:
                ended.clear()
                await ended.wait()
            settled, done[:] = done[:], []
            count = min(BATCH * 10, in_flight - running)
            rows: Any = await client.evalsha(digest, 2, *keys, count, *settled)  # type: ignore[misc] - as above
            completed += len(settled)
            running += len(rows)
            for task_id, params in rows:
                group.create_task(handle(task_id, json.loads(params[1])))
            if not rows and not done and completed < tasks:
                await asyncio.sleep(0)
    took = time.perf_counter() - begun
    await _forget(client, keys)
    return tasks / took


async def _forget(client: Any, keys: list[str]) -> None:
    async for key in client.scan_iter(match=f"{keys[1]}*", count=1000):
        await client.unlink(key)


async def trips(client: Any, count: int = 3000) -> float:
    """Return bare awaited EVALSHA calls a second, one after the other."""
    digest = await client.script_load("return redis.call('EXISTS', KEYS[1])")
    begun = time.perf_counter()
    for _ in range(count):
        await client.evalsha(digest, 1, "limit")
    return count / (time.perf_counter() - begun)


async def lone(client: Any, tasks: int) -> float:
    """Return microseconds of the server for a task every 5 ms: the messages of one, with scripts that do nothing."""
    create = await client.script_load("redis.call('ZADD', KEYS[1], 0, '0')")
    settle = await client.script_load("return 1")

    async def work(own: Any) -> None:
        for _ in range(tasks):
            async with own.pipeline(transaction=False) as pipeline:
                await pipeline.bzpopmin("limit:marker").evalsha(settle, 1, "limit").execute()
            await own.evalsha(settle, 1, "limit")

    before = await _cpu(client)
    async with asyncio.TaskGroup() as group:
        worker = group.create_task(work(client))
        while not worker.done():
            await asyncio.sleep(0.005)
            await client.evalsha(create, 1, "limit:marker")
    return (await _cpu(client) - before) / tasks * 1e6


async def _cpu(client: Any) -> float:
    cpu = await client.info("cpu")
    return float(cpu["used_cpu_user"] + cpu["used_cpu_sys"])


async def startup(_: Redis) -> float:
    """Return the milliseconds of a process that imports the dependencies, and nothing of ours."""
    return fresh("-c", "import redis.asyncio, anyio, attrs")


def fresh(*words: str, **environ: str) -> float:
    """Return the milliseconds of a new Python process, from its start to its end. It may use compiled modules."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    begun = time.perf_counter()
    subprocess.run([sys.executable, *words], env=kept | environ, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - begun) * 1000
