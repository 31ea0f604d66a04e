"""Batches with tenants, limits, priorities, deadlines and pauses; lost workers and lost replies."""

import os
import signal
import subprocess
import sys
from collections import Counter

import anyio
import pytest
from support import Server, eventually, started_processes

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskStatus
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.exchange import Exchange
from maas_backoff.testing import SimulatedScheduler

pytestmark = pytest.mark.anyio


async def test_tenants_take_turns_inside_of_a_batch(scheduler: TaskBackoffScheduler) -> None:
    calls: list[Counter[str]] = []

    @scheduler.batch(max_size=8, max_wait=0.05)
    async def embed(tasks: list[TaskEntity], texts: list[str]) -> list[str]:
        calls.append(Counter(task.tenant for task in tasks))
        return texts

    for tenant in ("acme", "beta"):
        await embed.create_many([embed.options(tenant=tenant).spec(f"{tenant}{n}") for n in range(16)])
    async with scheduler:
        await eventually(lambda: sum(map(Counter.total, calls)) == 32, "all are done")
    assert calls[0] == {"acme": 4, "beta": 4} and [call.total() for call in calls] == [8] * 4


async def test_a_batch_in_lanes_waits_too(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=3, max_wait=3600)
    async def embed(texts: list[str]) -> list[int]:
        return [len(texts)] * len(texts)

    async with scheduler:
        handles = []
        for tenant in ("acme", "beta", "acme"):
            await anyio.sleep(0.05)
            handles.append(await embed.options(tenant=tenant).create("x"))
        with anyio.fail_after(5):
            assert [await handle.result() for handle in handles] == [3, 3, 3]
    await scheduler.shutdown()


async def test_a_limit_bounds_the_tasks_of_batches(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    running = most = 0

    @scheduler.batch(max_size=8, max_wait=0.05, limits={"gpu": 1})
    async def embed(texts: list[str]) -> list[int]:
        nonlocal running, most
        running += len(texts)
        most = max(most, running)
        await anyio.sleep(0.02)
        running -= len(texts)
        return [len(texts)] * len(texts)

    await scheduler.set_limit("gpu", concurrency=3)
    handles = await embed.create_many([embed.spec(f"{n}") for n in range(9)])
    async with scheduler:
        assert [await handle.result(30) for handle in handles] == [3] * 9
    assert most == 3
    await scheduler.remove_limit("gpu")
    await scheduler.shutdown()


async def test_a_paused_tenant_and_costs(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[str]] = []

    @scheduler.batch(max_size=8, max_wait=0.05, max_cost=10, cost_of=len)
    async def embed(texts: list[str]) -> list[str]:
        calls.append(texts)
        return texts

    await scheduler.pause(tenant="acme")
    held = await embed.options(tenant="acme").create("held")
    others = await embed.create_many([embed.options(tenant="beta").spec("x" * n) for n in (4, 6, 7, 3)])
    async with scheduler:
        for other in others:
            await other.result(30)
        assert [list(map(len, call)) for call in calls] == [[4, 6], [7, 3]]
        await scheduler.resume(tenant="acme")
        assert await held.result(30) == "held"


async def test_priorities_and_retries_come_in_their_order(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[str]] = []

    @scheduler.batch(max_size=2, max_wait=0.05)
    async def embed(texts: list[str]) -> list[str]:
        calls.append(texts)
        return texts

    specs = [embed.options(priority=priority).spec(f"{priority}") for priority in (5, 0, -5, 1)]
    await embed.create_many(specs)
    async with scheduler:
        await eventually(lambda: len(calls) == 2, "all are done")
    assert calls == [["-5", "0"], ["1", "5"]]


async def test_deadlines_hold_inside_of_a_batch(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=4, max_wait=0.05)
    async def embed(tasks: list[TaskEntity], texts: list[str]) -> list[str]:
        await anyio.sleep(0.5)
        return texts

    late = await embed.options(start_within=0.05).create("late")
    await anyio.sleep(0.1)
    short = await embed.options(complete_within=0.3).create("short")
    good = await embed.create("good")
    async with scheduler:
        assert await good.result(30) == "good"
        for one in (late, short):
            task = await one.task()
            assert (task.status, task.cancel_reason) == (TaskStatus.CANCELLED, "expired")
    await scheduler.shutdown()


async def test_a_paused_kind_gives_no_batch(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.batch(max_size=4, max_wait=0.01)
    async def embed(texts: list[str]) -> list[str]:
        return texts

    async with scheduler:
        await (await embed.create("a")).result(30)
        await scheduler.pause(kind="embed")
        held = await embed.create("b")
        await anyio.sleep(0.1)
        assert await held.status() is TaskStatus.PENDING
        await scheduler.resume(kind="embed")
        assert await held.result(30) == "b"


async def test_a_wait_is_no_pause(config: TaskBackoffConfig) -> None:
    """Both stand in the hash of the kinds: the tasks for which a batch waits, and the pauses."""
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=2, max_wait=3600)
    async def embed(texts: list[str]) -> list[str]:
        return texts

    async with scheduler:
        first = await embed.create("a")
        await anyio.sleep(0.1)
        assert (await scheduler.get_queue_stats()).paused_kinds == {}
        task = await first.task()
        assert task.waiting_for is not None
        assert task.waiting_for.startswith("batch: at least 1 of 2 tasks, at most ") and "more" in task.waiting_for
        assert "kind embed waits for a batch: 1 of 2, at most 60 min" in await scheduler.explain()
        await scheduler.pause(kind="embed")
        assert list((await scheduler.get_queue_stats()).paused_kinds) == ["embed"]
        second = await embed.create("b")
        await anyio.sleep(0.05)
        assert await first.status() is TaskStatus.PENDING
        await scheduler.resume(kind="embed")
        assert [await first.result(10), await second.result(10)] == ["a", "b"]
    await scheduler.shutdown()


async def test_a_lost_reply_gives_the_same_batch(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maas_backoff.errors import StorageUnavailableError

    send, lost = Exchange.send, list[BatchRequest]()

    async def send_and_lose(self: Exchange, request: BatchRequest, *args: object) -> object:
        reply = await send(self, request, *args)  # type: ignore[arg-type] - the arguments are passed on
        if request.batch and reply.claimed and request not in lost:
            lost.append(request)
            raise StorageUnavailableError("the reply was lost")
        return reply

    monkeypatch.setattr(Exchange, "send", send_and_lose)
    calls: list[list[str]] = []

    @scheduler.batch(max_size=4, max_wait=0.02)
    async def embed(tasks: list[TaskEntity], texts: list[str]) -> list[int]:
        calls.append(texts)
        return [task.attempt for task in tasks]

    handles = await embed.create_many([embed.spec(text) for text in "abcd"])
    async with scheduler:
        assert [await handle.result(30) for handle in handles] == [1, 1, 1, 1]
    assert calls == [list("abcd")] and len(lost) == 1


_WORKER = """
import asyncio, os, sys
from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig
storage = StorageConfig(host="127.0.0.1", port=int(sys.argv[1]))
config = TaskBackoffConfig(storage=storage, task=TaskConfig(biz_prefix="test"))
config.scheduler.lease = 4
scheduler = TaskBackoffScheduler(config)

@scheduler.batch(max_size=4, max_wait=0.02)
async def embed(texts: list[str]) -> list[str]:
    print(*texts, flush=True)
    await asyncio.sleep(60)
    return texts

async def main():
    async with scheduler:
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.long
async def test_the_batch_of_a_killed_worker_comes_back(config: TaskBackoffConfig, server: Server) -> None:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=4, max_wait=0.02)
    async def embed(tasks: list[TaskEntity], texts: list[str]) -> list[tuple[int, int]]:
        return [(task.attempt, task.lost_count) for task in tasks]

    handles = await embed.create_many([embed.spec(text) for text in "abcd"])
    with started_processes() as started:
        command = [sys.executable, "-c", _WORKER, f"{server.port}"]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 - killed, not awaited
        started.append(worker)
        assert worker.stdout is not None
        assert await anyio.to_thread.run_sync(worker.stdout.readline) == "a b c d\n"
        async with scheduler:
            os.kill(worker.pid, signal.SIGKILL)
            assert [await handle.result(40) for handle in handles] == [(2, 1)] * 4
    await scheduler.shutdown()


async def test_a_simulated_scheduler_runs_batches(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[str]] = []

    @scheduler.batch(max_size=3, max_wait=60)
    async def embed(texts: list[str]) -> list[str]:
        calls.append(texts)
        return texts

    async with SimulatedScheduler(kinds_of=scheduler) as simulated:
        handles = [await embed.create(f"{n}") for n in range(4)]
        await simulated.drain()
        assert calls == [["0", "1", "2"]]
        await simulated.advance(61)
        assert calls == [["0", "1", "2"], ["3"]]
        assert [await handle.result(1) for handle in handles] == ["0", "1", "2", "3"]


@pytest.mark.long
async def test_a_suspect_for_which_a_batch_has_no_room_takes_no_place_of_a_limit(config: TaskBackoffConfig) -> None:
    """The tasks come back in halves to a worker whose batches may cost less."""
    earlier = TaskBackoffScheduler(config.copy())

    @earlier.batch(name="embed", max_size=4, max_wait=0.05, max_cost=20, cost_of=len, limits={"gpu": 1})
    async def fail(texts: list[str]) -> list[str]:
        await earlier.pause()
        raise ValueError("a fault of the test")

    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(name="embed", max_size=4, max_wait=0.05, max_cost=10, cost_of=len, limits={"gpu": 1})
    async def embed(texts: list[str]) -> list[str]:
        return texts

    await scheduler.set_limit("gpu", concurrency=8)
    handles = await embed.create_many([embed.spec(text) for text in ("a" * 6, "b" * 6, "c", "d")])
    async with earlier:

        async def are_back() -> bool:
            stats = await scheduler.get_queue_stats()
            return stats.paused and stats.suspect_count == 4

        await eventually(are_back, "the batch has failed")
    await scheduler.resume()
    async with scheduler:
        for handle in handles:
            await handle.result(30)
        (limit,) = await scheduler.limits()
        assert limit.in_use == 0
    await scheduler.remove_limit("gpu")
