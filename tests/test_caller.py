"""`call(disconnected=…)`: the work ends when its caller hangs up, and with nothing else."""

import asyncio
import gc
from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest
from support import eventually

from maas_backoff import CallerGoneError, TaskBackoffScheduler, TaskEntity, TaskTimeoutError
from maas_backoff.client.caller import until_gone

pytestmark = pytest.mark.anyio


class Caller:
    """A caller, as a web framework's request tells of it."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.gone = False
        self.fault = fault
        self.asked = 0

    async def is_disconnected(self) -> bool:
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        if self.gone and self.fault is not None:
            raise self.fault
        return self.gone


@pytest.fixture
async def running(scheduler: TaskBackoffScheduler) -> AsyncIterator[TaskBackoffScheduler]:
    """A scheduler whose handler takes as many seconds as its task says."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        await anyio.sleep(task.task_params.get("seconds", 0))
        return "done"

    async with scheduler:
        yield scheduler


async def status(scheduler: TaskBackoffScheduler, task_id: str) -> str:
    task = await scheduler.get_task(task_id)
    assert task is not None
    return task.status


async def test_a_caller_that_hangs_up_ends_its_task(running: TaskBackoffScheduler) -> None:
    caller = Caller()

    async def hang_up() -> None:
        async def is_processing() -> bool:
            task = await running.get_task("x")
            return task is not None and task.status == "processing"

        await eventually(is_processing, "it runs")
        caller.gone = True

    async with anyio.create_task_group() as group:
        group.start_soon(hang_up)
        with pytest.raises(CallerGoneError, match="the caller of task 'x' has hung up") as caught:
            async with running.call({"seconds": 60}, "x", disconnected=caller.is_disconnected) as task_id:
                await running.wait_task(task_id)
    assert (caught.value.task_id, caught.value.http_status) == ("x", 499)
    assert (await running.wait_task("x", 20)).status == "cancelled"


async def test_a_caller_that_stays_gets_the_result(running: TaskBackoffScheduler) -> None:
    caller = Caller()
    async with running.call({"seconds": 0}, "x", disconnected=caller.is_disconnected, priority=3) as task_id:
        assert (await running.wait_task(task_id, 20)).result == "done"
    task = await running.get_task("x")
    assert task is not None and (task.status, task.priority) == ("completed", 3)
    asked = caller.asked
    await asyncio.sleep(0)
    assert asked >= 1 and caller.asked == asked, "nobody is asked any more"


async def test_what_the_block_raises_comes_out_as_it_is(running: TaskBackoffScheduler) -> None:
    """Neither wrapped in a group, nor taken for a caller that is gone."""
    caller = Caller()
    with pytest.raises(TaskTimeoutError):
        async with running.call({"seconds": 60}, "x", disconnected=caller.is_disconnected) as task_id:
            await running.wait_task(task_id, 0.05)
    assert (await running.wait_task("x", 20)).status == "cancelled"
    with pytest.raises(KeyError, match="mine"):
        async with running.call({"seconds": 60}, "y", disconnected=caller.is_disconnected):
            raise KeyError("mine")
    assert (await running.wait_task("y", 20)).status == "cancelled"


async def test_a_request_that_is_cancelled_ends_its_task(running: TaskBackoffScheduler) -> None:
    entered = anyio.Event()

    async def request() -> None:
        async with running.call({"seconds": 60}, "x", disconnected=Caller().is_disconnected):
            entered.set()
            await anyio.sleep_forever()

    task = asyncio.create_task(request())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await running.wait_task("x", 20)).status == "cancelled"


async def test_a_fault_of_the_question_ends_the_block(running: TaskBackoffScheduler) -> None:
    """Nobody would know any more whether the caller is there."""
    caller = Caller(fault=ConnectionError("the receive channel is closed"))
    with pytest.raises(ConnectionError, match="receive channel"):
        async with running.call({"seconds": 60}, "x", disconnected=caller.is_disconnected) as task_id:
            caller.gone = True
            await running.wait_task(task_id)
    assert (await running.wait_task("x", 20)).status == "cancelled"


async def test_a_block_that_ends_as_its_caller_goes_has_ended() -> None:
    """And no error of the question is left that nobody has asked for (a warning is an error here)."""
    caller = Caller(fault=ConnectionError())
    caller.gone = True
    with pytest.raises(ConnectionError):
        async with until_gone(caller.is_disconnected, "x"):
            await anyio.sleep_forever()
    with pytest.raises(KeyError):
        async with until_gone(caller.is_disconnected, "x"):
            raise KeyError
    async with until_gone(Caller().is_disconnected, "x"):
        pass
    gc.collect()
