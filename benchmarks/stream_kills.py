"""Check that each reader has the final text after kills: row `kills` of streams.py.

Tasks emit words. All the time, workers are killed. Readers leave, and come back after the last part that they have.
Long tasks keep the parts of earlier attempts; short ones begin anew. At the end of each task, the texts of its three
readers, that of a late reader, and the result are compared with the words that must be there.
"""

import asyncio
import contextlib
import itertools
import logging
import multiprocessing
import random
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import attrs
import redis.asyncio

from maas_backoff import (
    StorageConfig,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConfig,
    TaskEntity,
    ThreadPoolConfig,
)

WORKERS, TASKS, READERS = 8, 16, 3
"""Workers; tasks at a time; readers of each task. A worker runs one task at a time of those that have lost a worker."""

LONG, SHORT = 150, 20
"""Words of a task that keeps the parts of earlier attempts, and of one that does not: 3 s and 0.4 s."""

QUEUE = "stream_kills"


def words_of(task_id: str, *, keeps: bool) -> list[str]:
    """Return the words of a task, each of several bytes, and with line ends."""
    dice = random.Random(task_id)
    return [f"{n}:{dice.getrandbits(40):x}🐈\r\n " for n in range(LONG if keeps else SHORT)]


def new_scheduler(url: str) -> TaskBackoffScheduler:
    made = TaskBackoffScheduler(
        TaskBackoffConfig(
            storage=StorageConfig(url=url),
            task=TaskConfig(biz_prefix=QUEUE, max_lost=1000, max_retry_count=1000),
            threadpool=ThreadPoolConfig(concurrency=TASKS),
        )
    )
    made.set_custom_task_handler(emit)
    return made


async def emit(task: TaskEntity) -> str:
    """Emit the words of the task, from where the kept parts end."""
    keeps, done = task.task_params["keeps"], 0
    words = words_of(task.task_id, keeps=keeps)
    if keeps:
        task.keep_emitted()
        said = len(task.emitted_text())
        done = sum(end <= said for end in itertools.accumulate(map(len, words)))
    else:
        task.emit(f"attempt {task.attempt} ")
    for word in words[done:]:
        task.emit(word)
        await asyncio.sleep(random.uniform(0, 0.04))
    return task.emitted_text()


def work(url: str) -> None:
    """Run a worker in this process until it is killed."""
    logging.disable(logging.WARNING)
    asyncio.run(new_scheduler(url).run_until_stopped())


class Fleet:
    """Workers that are killed: forked from a process that has imported all, as a start would take most of the time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self.workers: list[BaseProcess] = []
        for _ in range(WORKERS):
            self._start()

    def _start(self) -> None:
        self.workers.append(self._context.Process(target=work, args=(self._url,)))
        self.workers[-1].start()

    def kill(self, worker: BaseProcess) -> None:
        """Kill a worker, and start another one."""
        self.workers.remove(worker)
        _end(worker)
        self._start()

    def stop(self) -> None:
        for worker in self.workers:
            _end(worker)


def _end(worker: BaseProcess) -> None:
    worker.kill()
    worker.join()


@attrs.define
class Counts:
    kills: int = 0
    reconnects: int = 0
    restarts: int = 0
    tasks: int = 0
    attempts: int = 0
    wrong: list[str] = attrs.field(factory=list)


class Run:
    """Tasks, readers and kills, until there were enough of both, or a time is over."""

    def __init__(self, url: str, seed: int, kills: int, reconnects: int, minutes: float) -> None:
        self.counts = Counts()
        self._dice = random.Random(seed)
        self._seed = seed
        self._kills, self._reconnects = kills, reconnects
        self._ends_at = time.monotonic() + 60 * minutes
        self._fleet = Fleet(url)
        self._scheduler = new_scheduler(url)
        self._client = redis.asyncio.Redis.from_url(url)
        self._running: set[str] = set()
        self._names: Iterator[str] = (f"{seed}-{number}" for number in range(1_000_000))

    @property
    def _is_over(self) -> bool:
        enough = self.counts.kills >= self._kills and self.counts.reconnects >= self._reconnects
        return enough or time.monotonic() > self._ends_at

    async def run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                killing = group.create_task(self._kill())
                async with asyncio.TaskGroup() as pushing:
                    for _ in range(TASKS):
                        pushing.create_task(self._push())
                killing.cancel()
        finally:
            self._fleet.stop()
            await self._scheduler.shutdown()
            await self._client.aclose()

    async def _push(self) -> None:
        """Run one task after the other."""
        while not self._is_over:
            task_id = next(self._names)
            self._running.add(task_id)
            await self._scheduler.create_task({"keeps": self.counts.tasks % 3 > 0}, task_id)
            self.counts.tasks += 1
            texts = await asyncio.gather(*(self._read(task_id, f"{task_id} {number}") for number in range(READERS)))
            self._running.remove(task_id)
            await self._compare(task_id, texts)

    async def _read(self, task_id: str, seed: str) -> str:
        """Read to the end, leave after some parts, come back after the last one. Return what the reader has."""
        dice, text, last = random.Random(seed), "", None
        while True:
            leaves_after = dice.randint(1, 8)
            async with contextlib.aclosing(self._scheduler.stream(task_id, after=last)) as parts:
                async for part in parts:
                    last = part.id
                    text = "" if part.restarted else text + part.data
                    self.counts.restarts += part.restarted
                    leaves_after -= 1
                    if not leaves_after:
                        break
                else:
                    return text
            self.counts.reconnects += 1

    async def _compare(self, task_id: str, texts: list[str]) -> None:
        task = await self._scheduler.wait_task(task_id)
        self.counts.attempts += task.attempt
        late = "".join([part.data async for part in self._scheduler.stream(task_id)])
        keeps = task.task_params["keeps"]
        begin = "" if keeps else f"attempt {task.attempt} "
        wanted = begin + "".join(words_of(task_id, keeps=keeps))
        if task.status != "completed" or {wanted, task.result, late, *texts} != {wanted}:
            self.counts.wrong.append(task_id)

    async def _kill(self) -> None:
        """Kill a worker that runs a task, again and again."""
        while self.counts.kills < self._kills:
            await asyncio.sleep(self._dice.uniform(0.05, 0.5))
            holders = [
                (holder or b"").decode()
                for task_id in list(self._running)
                for state, holder in [await self._client.hmget(f"maas:{{{QUEUE}}}:t:{task_id}", "s", "y")]
                if state == b"processing"
            ]
            busy = [one for one in self._fleet.workers if any(f"-{one.pid}-" in holder for holder in holders)]
            if busy:
                await asyncio.to_thread(self._fleet.kill, self._dice.choice(busy))
                self.counts.kills += 1


async def kills(url: str, seed: int, kills: int, reconnects: int, minutes: float) -> str:
    """Return what happened. Raises SystemExit if a reader had another text."""
    run = Run(url, seed, kills, reconnects, minutes)
    began = time.monotonic()
    await run.run()
    counts = run.counts
    told = (
        f"seed {seed}: {counts.kills:,} workers killed, {counts.reconnects:,} reconnects of readers, "
        f"{counts.tasks:,} tasks in {counts.attempts:,} attempts, {counts.restarts:,} times a reader began anew, "
        f"{time.monotonic() - began:.0f} s; {len(counts.wrong)} tasks with a text that differs"
    )
    if counts.wrong:
        raise SystemExit(f"{told}: {', '.join(counts.wrong[:20])}")
    return told
