"""The call for a batch: which attempts it is for, decided when the handler is called."""

import asyncio
import math
import time
from types import SimpleNamespace
from typing import Any

import pytest

from maas_backoff.domain.outcome import Succeeded, Unstarted
from maas_backoff.worker.batch_call import BatchCall
from maas_backoff.worker.executors.base import BatchOutcome, CallOfBatch

pytestmark = pytest.mark.anyio


class FakeExecutor:
    """Notes the tokens of each call."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    async def run_batch(self, call: CallOfBatch) -> BatchOutcome:
        members: Any = call.members
        self.calls.append([one.token for one in members])
        await asyncio.sleep(0)
        return [Succeeded("null") for _ in members]


def an_attempt(token: int, start_before: float) -> Any:
    task = SimpleNamespace(kind="render")
    return SimpleNamespace(token=token, start_before=start_before, task=task, grant=None, span=None)


async def outcomes_of(executor: FakeExecutor, *start_before: float, waits: bool) -> list[object]:
    """Run a batch of attempts that may start before these moments."""
    parts: Any = executor, SimpleNamespace(ended=lambda *_: None), SimpleNamespace(batch_ends=lambda: None)
    batch = BatchCall(*parts)
    batch.expect(range(len(start_before)))
    if waits:
        batch.wait_for_slot()
    runs = [asyncio.create_task(batch.run(an_attempt(n, moment))) for n, moment in enumerate(start_before)]
    await asyncio.sleep(0)
    if waits:
        batch.start()
    found = await asyncio.gather(*runs)
    assert batch.has_ended
    return [type(one) for one in found]


@pytest.mark.parametrize("waits", [True, False])
async def test_a_task_that_may_no_longer_start_goes_back_and_the_others_are_called(waits: bool) -> None:
    """It has waited for the others of the batch, or for the slot."""
    executor = FakeExecutor()
    found = await outcomes_of(executor, math.inf, time.monotonic(), math.inf, waits=waits)
    assert found == [Succeeded, Unstarted, Succeeded] and executor.calls == [[0, 2]]


@pytest.mark.parametrize("waits", [True, False])
async def test_a_batch_without_a_task_that_may_start_is_not_called(waits: bool) -> None:
    executor = FakeExecutor()
    found = await outcomes_of(executor, time.monotonic(), time.monotonic(), waits=waits)
    assert found == [Unstarted, Unstarted] and executor.calls == []


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_batch_that_was_given_back_is_not_called_when_its_last_attempt_arrives(arrives: bool) -> None:
    """The attempt was still reading the stream of its task, and arrives late, or may not start in a drain."""
    executor = FakeExecutor()
    parts: Any = executor, SimpleNamespace(ended=lambda *_: None), SimpleNamespace(batch_ends=lambda: None)
    batch = BatchCall(*parts)
    batch.expect([0, 1])
    batch.wait_for_slot()
    first = asyncio.create_task(batch.run(an_attempt(0, math.inf)))
    await asyncio.sleep(0)
    batch.hand_back()
    if arrives:
        assert isinstance(await batch.run(an_attempt(1, math.inf)), Unstarted)
    batch.passed(1)
    assert isinstance(await first, Unstarted)
    await asyncio.sleep(0)
    assert executor.calls == []
