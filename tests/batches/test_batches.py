"""Batches: one call of a handler for several tasks."""

import anyio
import pytest

from maas_backoff import TaskBackoffScheduler, TaskEntity

pytestmark = pytest.mark.anyio


async def test_a_batch_is_one_call(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[str]] = []

    @scheduler.batch(max_size=4, max_wait=0.05)
    async def embed(texts: list[str]) -> list[int]:
        calls.append(texts)
        return [len(text) for text in texts]

    handles = await embed.create_many([embed.spec("x" * n) for n in range(10)])
    async with scheduler:
        assert [await handle.result(10) for handle in handles] == list(range(10))
    assert sorted(map(len, calls)) == [2, 4, 4]


async def test_plain(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[str]] = []

    @scheduler.batch(max_size=4, max_wait=0.05)
    def embed(tasks: list[TaskEntity], texts: list[str]) -> list[int | Exception]:
        calls.append(texts)
        return [len(text) for text in texts]

    async with scheduler:
        await anyio.sleep(0.1)
        handle = await embed.create("abc")
        assert await handle.result(10) == 3
