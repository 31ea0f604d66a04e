"""The handler of a batch has ended, and its outcomes are on their way: the child may be asked again."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import child_handlers as handlers
import pytest
from slow_values import let_go
from test_process import FakeCall, executor, is_gone, nothing_left, until

from maas_backoff.domain.outcome import Failed, Succeeded
from maas_backoff.worker.executors.base import BatchOutcome
from maas_backoff.worker.executors.parent import Child
from maas_backoff.worker.executors.process import ProcessExecutor

__all__ = ["nothing_left"]

pytestmark = pytest.mark.anyio


class FakeBatch(FakeCall):
    """One call for a batch, and the asyncio task that waits for its outcomes."""

    def __init__(self, *members: FakeCall) -> None:
        super().__init__(**members[0].task.task_params)
        self.members = members
        self.has_ended = asyncio.Event()
        self.made: ProcessExecutor | None = None
        self.outcomes: asyncio.Task[BatchOutcome] | None = None

    def ended(self) -> None:
        assert not self.has_ended.is_set()
        self.has_ended.set()

    def run_in(self, made: ProcessExecutor) -> "asyncio.Task[BatchOutcome]":
        self.outcomes = asyncio.create_task(made.run_batch(self))
        return self.outcomes


class Slow:
    """A batch whose outcomes become JSON when `go` is called."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.batch = FakeBatch(FakeCall(what="slow", path=str(folder)))

    def go(self, text: str = "") -> None:
        let_go(self._folder, text)

    async def begin(self, made: ProcessExecutor) -> "asyncio.Task[BatchOutcome]":
        """Run the batch until its outcomes are being encoded."""
        running = self.batch.run_in(made)
        await self.batch.has_ended.wait()
        await until((self._folder / "began").exists)
        return running


def a_batch(what: str = "pid", tasks: int = 2) -> FakeBatch:
    return FakeBatch(*(FakeCall(what=what) for _ in range(tasks)))


def pid_of(outcomes: BatchOutcome, place: int = 0) -> int:
    assert isinstance(outcomes, list)
    outcome = outcomes[place]
    assert isinstance(outcome, Succeeded)
    value: Any = json.loads(outcome.result)
    return int(value["pid"] if isinstance(value, dict) else value)


async def is_asked_again(made: ProcessExecutor) -> Child:
    """Wait until the only child has two requests, and return the child."""
    (child,) = made.pool._children
    await until(lambda: len(child._open) == 2 and child._open[1].is_sent)
    return child


@asynccontextmanager
async def slow_batch(tmp_path: Path) -> AsyncIterator[tuple[ProcessExecutor, Slow, "asyncio.Task[BatchOutcome]"]]:
    async with executor(handlers.batch) as made:
        slow = Slow(tmp_path)
        yield made, slow, await slow.begin(made)


async def test_the_next_batch_waits_in_the_child_for_the_outcomes_of_the_first(tmp_path: Path) -> None:
    async with slow_batch(tmp_path) as (made, slow, first):
        batch = a_batch()
        second = batch.run_in(made)
        await is_asked_again(made)
        assert not first.done() and not second.done()
        assert batch.starts == 0  # its time has not begun
        assert len(made.pool._children) == 1
        slow.go()
        assert pid_of(await first) == pid_of(await second)
        assert batch.starts == 1
        assert len(made.pool._idle) == 1


async def test_a_call_of_one_task_may_be_next(tmp_path: Path) -> None:
    async with slow_batch(tmp_path) as (made, slow, first):
        call = FakeCall(what="pid")
        second = asyncio.create_task(made.run(call))
        await is_asked_again(made)
        slow.go()
        pid_of(await first)
        outcome = await second
        assert isinstance(outcome, Failed)  # the handler is one for batches
        assert outcome.error.type == "TypeError"
        assert call.starts == 1


async def test_an_end_of_the_child_costs_the_next_batch_nothing(tmp_path: Path) -> None:
    async with slow_batch(tmp_path) as (made, slow, first):
        batch = a_batch()
        second = batch.run_in(made)
        child = await is_asked_again(made)
        slow.go("exit")
        outcome = await first
        assert isinstance(outcome, Failed)
        assert outcome.error.type == "crashed"
        assert pid_of(await second) != child.pid
        assert slow.batch.starts == batch.starts == 1
        assert len(made.pool._children) == len(made.pool._idle) == 1


async def test_an_end_of_the_child_by_the_next_batch_is_not_read_as_one_before_it(tmp_path: Path) -> None:
    """It is called once. The worker reads the outcomes of the first batch, and the end of the child, in one turn."""
    async with slow_batch(tmp_path) as (made, slow, first):
        batch = a_batch("exit")
        second = batch.run_in(made)
        child = await is_asked_again(made)
        slow.go()
        meanwhile(lambda: is_gone(child.pid))
        pid_of(await first)
        outcome = await second
        assert isinstance(outcome, Failed)
        assert (outcome.error.type, batch.starts) == ("crashed", 1)


async def test_a_cancel_of_the_first_after_its_outcomes_costs_the_next_batch_nothing(tmp_path: Path) -> None:
    """The worker has not read them yet."""
    async with slow_batch(tmp_path) as (made, slow, first):
        folder = tmp_path / "second"
        folder.mkdir()
        batch = FakeBatch(FakeCall(what="wait", path=str(folder)))
        second = batch.run_in(made)
        child = await is_asked_again(made)
        slow.go()
        meanwhile((folder / "began").exists)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        let_go(folder)
        assert pid_of(await second) == child.pid
        assert batch.starts == 1


def meanwhile(holds: Callable[[], bool]) -> None:
    """Wait without a turn of the event loop."""
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        pass
    assert holds()


async def test_a_cancel_of_the_first_costs_the_next_batch_nothing(tmp_path: Path) -> None:
    async with slow_batch(tmp_path) as (made, _, first):
        second = a_batch().run_in(made)
        child = await is_asked_again(made)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert is_gone(child.pid)
        assert pid_of(await second) != child.pid


async def test_a_cancel_of_the_next_batch_costs_the_first_nothing(tmp_path: Path) -> None:
    async with slow_batch(tmp_path) as (made, slow, first):
        second = a_batch().run_in(made)
        child = await is_asked_again(made)
        second.cancel()
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        assert not second.done() and not is_gone(child.pid)
        slow.go()
        assert pid_of(await first) == child.pid
        with pytest.raises(asyncio.CancelledError):
            await second
        assert is_gone(child.pid)
        assert pid_of(await a_batch().run_in(made)) != child.pid


async def test_a_cancel_of_both_kills_the_child(tmp_path: Path) -> None:
    async with slow_batch(tmp_path) as (made, _, first):
        second = a_batch().run_in(made)
        child = await is_asked_again(made)
        for one in second, first:
            one.cancel()
        for one in second, first:
            with pytest.raises(asyncio.CancelledError):
                await one
        assert is_gone(child.pid)


async def test_another_idle_child_is_taken_first(tmp_path: Path) -> None:
    async with executor(handlers.batch, warm=2) as made:
        await made.warm_up()
        slow = Slow(tmp_path)
        first = await slow.begin(made)
        other = pid_of(await a_batch().run_in(made))
        slow.go()
        mine = pid_of(await first)
        assert mine != other
        assert pid_of(await a_batch().run_in(made)) == mine  # the last one used


async def test_after_an_exception_the_outcomes_come_first() -> None:
    """The exception may say that the child is of no use any more."""
    async with executor(handlers.batch) as made:
        batch = FakeBatch(FakeCall(what="pid"), FakeCall(what="raise"))
        outcomes = await batch.run_in(made)
        assert isinstance(outcomes, list)
        assert [type(one) for one in outcomes] == [Succeeded, Failed]
        assert not batch.has_ended.is_set()
        assert len(made.pool._idle) == 1


async def test_a_child_at_its_last_call_ends_after_its_outcomes() -> None:
    async with executor(handlers.batch, max_tasks=1) as made:
        batch = a_batch()
        pid = pid_of(await batch.run_in(made))
        assert not batch.has_ended.is_set()
        assert pid_of(await a_batch().run_in(made)) != pid


async def test_lines_belong_to_the_batch_that_has_printed_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="maas_backoff")
    async with slow_batch(tmp_path) as (made, slow, first):
        batch = a_batch(tasks=1)
        for call in batch, *batch.members:
            call.task = type(call.task)("task-2", "queue", {"what": "pid"}, receiver=call)
        second = batch.run_in(made)
        await is_asked_again(made)
        slow.go()
        await first
        await second
    printed = [record for record in caplog.records if record.name == "maas_backoff.output"]
    told = [(record.getMessage(), getattr(record, "task_id", "")) for record in printed]
    assert told == [("printed by task-1", "task-1"), ("printed by task-2", "task-2")]
