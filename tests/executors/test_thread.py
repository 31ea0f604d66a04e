"""Calls in threads: how many of them were left behind."""

import asyncio
import math
import threading
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from maas_backoff.domain.outcome import Succeeded
from maas_backoff.worker.executors.thread import ThreadExecutor
from maas_backoff.worker.executors.thread_pool import ThreadPool

pytestmark = pytest.mark.anyio


def a_call() -> Any:
    return SimpleNamespace(task=None, start_before=math.inf, started=lambda: None, lingers=lambda _: None)


async def eventually_serving(threads: ThreadPool, number: int) -> None:
    """Wait until so many threads are free for tasks."""
    with anyio.fail_after(20):
        while threads.setback.children != number:
            await asyncio.sleep(0.001)


async def test_a_thread_that_a_cancelled_call_has_left_is_free_again_at_its_end() -> None:
    threads, may_end = ThreadPool(), threading.Event()
    executor = ThreadExecutor(lambda _: may_end.wait(20), max_payload_bytes=1000, threads=threads)
    await executor.start()
    run = asyncio.create_task(executor.run(a_call()))
    await eventually_serving(threads, 1)
    run.cancel()
    await asyncio.wait([run])
    free = threads.setback.children
    may_end.set()
    await eventually_serving(threads, 1)
    await executor.aclose()
    assert free == 0


async def test_a_thread_whose_call_ends_in_the_moment_of_its_cancel_is_free() -> None:
    threads = ThreadPool()
    executor = ThreadExecutor(lambda _: 1, max_payload_bytes=1000, threads=threads)
    await executor.start()
    assert await executor.run(a_call()) == Succeeded("1")
    call = threads.begin(a_call(), lambda _: Succeeded("2"))

    async def wait() -> None:
        try:
            await call.outcome
        except asyncio.CancelledError:
            threads.leave_behind(call)

    waits = asyncio.create_task(wait())
    call.outcome.add_done_callback(lambda _: waits.cancel())  # in the same turn of the event loop as the result
    await asyncio.wait([waits])
    free = threads.setback.children
    await executor.aclose()
    assert free == 1
