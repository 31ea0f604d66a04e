"""Several kinds in one worker, some of which run in batches: claims tell which kind is the most urgent."""

import asyncio

import anyio
import pytest
from support import eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskKind
from maas_backoff.worker.loops import batches

pytestmark = pytest.mark.anyio


class TwoKinds:
    """A worker with one slot. Each batch has two tasks, and runs until it is let go."""

    def __init__(self, config: TaskBackoffConfig) -> None:
        config.threadpool.concurrency = 1
        config.scheduler.interval = 60
        self.scheduler = TaskBackoffScheduler(config)
        self.calls: list[str] = []
        self._may_end = asyncio.Semaphore(0)

        @self.scheduler.batch(max_size=2, max_wait=0.01)
        async def full(items: list[int]) -> list[int]:
            return await self._run("full", items)

        @self.scheduler.batch(max_size=2, max_wait=0.01)
        async def rare(items: list[int]) -> list[int]:
            return await self._run("rare", items)

        self.full: TaskKind[[int], int] = full
        self.rare: TaskKind[[int], int] = rare

    async def _run(self, name: str, items: list[int]) -> list[int]:
        self.calls.append(name)
        await self._may_end.acquire()
        return items

    async def create(self, kind: TaskKind[[int], int], number: int, *, priority: int = 0, tenant: str = "") -> None:
        own = kind.options(priority=priority, tenant=tenant) if tenant else kind.options(priority=priority)
        await kind.create_many([own.spec(n) for n in range(number)])

    async def until(self, number: int) -> None:
        """Let batches end until so many have begun."""
        await eventually(lambda: self.calls, "a batch has begun")
        for begun in range(len(self.calls), number):
            self._may_end.release()
            await eventually(lambda begun=begun: len(self.calls) > begun, f"{begun + 1} batches have begun")
        self._may_end.release()


@pytest.mark.parametrize("tenant", ["", "acme"])
async def test_an_urgent_kind_goes_first_while_another_is_always_full(config: TaskBackoffConfig, tenant: str) -> None:
    """The worker hears no wake-up while it is busy: the next look for a batch tells of the new tasks."""
    kinds = TwoKinds(config)
    await kinds.create(kinds.full, 16, tenant=tenant)
    async with kinds.scheduler:
        await eventually(lambda: kinds.calls, "a batch has begun")
        await kinds.create(kinds.rare, 6, priority=-5, tenant=tenant)
        await kinds.until(11)
    assert kinds.calls == ["full", "full", *["rare"] * 3, *["full"] * 6]


async def test_a_kind_that_is_less_urgent_goes_last(config: TaskBackoffConfig) -> None:
    kinds = TwoKinds(config)
    await kinds.create(kinds.rare, 4, priority=5)
    await kinds.create(kinds.full, 12)
    async with kinds.scheduler:
        await kinds.until(8)
    assert kinds.calls.index("full") <= 1  # nobody has told of ranks before the first look
    assert kinds.calls[2:] == [
        *["full"] * (6 - kinds.calls[:2].count("full")),
        *["rare"] * (2 - kinds.calls[:2].count("rare")),
    ]


async def test_equal_kinds_take_turns_by_age(config: TaskBackoffConfig) -> None:
    kinds = TwoKinds(config)
    for _ in range(3):
        await kinds.create(kinds.full, 2)
        await kinds.create(kinds.rare, 2)
    async with kinds.scheduler:
        await kinds.until(6)
    assert kinds.calls == ["full", "rare"] * 3


async def test_a_worker_that_is_busy_with_other_tasks_hears_of_a_batch_by_its_claims(
    config: TaskBackoffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a look at times: the other tasks never end, and each leaves its slot to the next one."""
    monkeypatch.setattr(batches, "SHORTEST_LOOK", 3600)
    config.threadpool.concurrency = 4
    config.scheduler.interval = 3600
    scheduler = TaskBackoffScheduler(config)
    is_over, ended = anyio.Event(), 0

    @scheduler.task()
    async def other() -> None:
        nonlocal ended
        ended += 1
        if not is_over.is_set():
            await other.create_many([other.spec()])

    @scheduler.batch(max_size=8, max_wait=0.01)
    async def rare(items: list[int]) -> list[int]:
        return items

    async with scheduler:
        await other.create_many([other.spec() for _ in range(200)])
        for _ in range(3):
            await eventually(lambda seen=ended: ended > seen + 200, "the worker is busy")
            task = await rare.create(1)
            with anyio.fail_after(10):
                assert await task.result() == 1
        is_over.set()
