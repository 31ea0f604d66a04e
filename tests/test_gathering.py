"""Creates that meet travel in one call; each caller keeps an answer, an error, a deadline and a cancel of its own."""

import asyncio
import contextvars
import time
from collections.abc import Sequence
from typing import Any

import pytest
from support import Server, quick_config

from maas_backoff import (
    QueueFullError,
    StorageError,
    StorageUnavailableError,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskConflictError,
)
from maas_backoff.client.creator import MOST_CREATES
from maas_backoff.client.gathering import MOST_CALLS, MOST_CHARACTERS, Gathering
from maas_backoff.domain.policy import Policy
from maas_backoff.store.creation import NewTask
from maas_backoff.store.writer import Writer

pytestmark = pytest.mark.anyio

POLICY = TaskBackoffConfig().task.policy


def new(task_id: str, params: str = "{}") -> NewTask:
    return NewTask(task_id, params, 0, 0, POLICY, "")


class Sender:
    """Stands in for the server: each call waits until it is let go, and then has the next of `outcomes`."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.deadlines: list[float] = []
        self.outcomes: list[Any] = []
        self.seen: list[str] = []
        self._gates: list[asyncio.Future[None]] = []

    async def __call__(self, tasks: Sequence[NewTask], deadline: float) -> list[str | StorageError]:
        self.calls.append([task.task_id for task in tasks])
        self.deadlines.append(deadline)
        self.seen.append(OF_A_CALLER.get())
        gate = asyncio.get_running_loop().create_future()
        self._gates.append(gate)
        await gate
        outcome = self.outcomes.pop(0) if self.outcomes else ["created"] * len(tasks)
        if isinstance(outcome, Exception):
            raise outcome
        return list(outcome)

    def let_go(self) -> None:
        """Answer the call that was sent first."""
        self._gates.pop(0).set_result(None)


OF_A_CALLER: contextvars.ContextVar[str] = contextvars.ContextVar("of_a_caller", default="nobody")


class Creates:
    """The creates of one event loop, before a sender."""

    def __init__(self, timeout: float = 60, longest_wait: float = 3600) -> None:
        self.sender = Sender()
        self.gathering = Gathering(self.sender, timeout, MOST_CREATES, lambda task: len(task.params), longest_wait)
        self.callers: dict[str, asyncio.Task[str]] = {}

    async def begin(self, *ids: str, params: str = "{}") -> None:
        """Have callers begin, and run until they wait."""
        for task_id in ids:
            self.callers[task_id] = asyncio.create_task(self.gathering.ask(new(task_id, params)))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def let_go(self) -> None:
        self.sender.let_go()
        await self.settle()

    async def answers(self) -> list[Any]:
        return await asyncio.gather(*self.callers.values(), return_exceptions=True)


@pytest.fixture
def creates() -> Creates:
    return Creates()


async def test_a_create_that_comes_alone_is_sent_at_once(creates: Creates) -> None:
    caller = asyncio.create_task(creates.gathering.ask(new("a")))
    await asyncio.sleep(0)  # its first step
    assert creates.sender.calls == [["a"]]
    assert creates.sender.seen == ["nobody"]
    creates.sender.let_go()
    assert await caller == "created"


async def test_what_comes_while_a_call_is_on_its_way_goes_together(creates: Creates) -> None:
    await creates.begin("a", "b", "c", "d")
    assert creates.sender.calls == [["a"]]
    await creates.let_go()
    assert creates.sender.calls == [["a"], ["b", "c", "d"]]
    await creates.let_go()
    assert await creates.answers() == ["created"] * 4


async def test_in_a_crowd_the_first_of_a_moment_waits_for_the_others(creates: Creates) -> None:
    await creates.begin("a", "b", "c")
    await creates.let_go()
    await creates.let_go()
    await creates.begin("d", "e")
    assert creates.sender.calls == [["a"], ["b", "c"], ["d", "e"]]
    await creates.let_go()
    await creates.begin("f")  # the last call was of several: `f` goes in a call of its own
    await creates.let_go()
    await creates.begin("g")
    await creates.let_go()
    assert creates.sender.calls[3:] == [["f"], ["g"]]
    assert await creates.answers() == ["created"] * 7


async def test_each_caller_has_an_answer_of_its_own(creates: Creates) -> None:
    full = QueueFullError(5, 5, 1)
    creates.sender.outcomes = [["created"], ["conflict", full, "exists"]]
    await creates.begin("a", "b", "c", "d")
    await creates.let_go()
    await creates.let_go()
    assert await creates.answers() == ["created", "conflict", full, "exists"]


async def test_a_refused_call_is_an_error_for_each_caller(creates: Creates) -> None:
    """One object for all would collect the tracebacks of all."""
    cause = OSError("boom")
    error = StorageError("refused")
    error.__cause__ = cause
    creates.sender.outcomes = [["created"], error]
    await creates.begin("a", "b", "c")
    await creates.let_go()
    await creates.let_go()
    _, first, second = await creates.answers()
    assert first is not second
    assert [(type(one), str(one), one.__cause__) for one in (first, second)] == [(StorageError, "refused", cause)] * 2


async def test_a_bug_reaches_each_caller(creates: Creates) -> None:
    creates.sender.outcomes = [["created"], KeyError("bug")]
    await creates.begin("a", "b", "c")
    await creates.let_go()
    await creates.let_go()
    assert [type(one) for one in (await creates.answers())[1:]] == [KeyError, KeyError]


async def test_a_caller_that_is_cancelled_while_it_waits_creates_nothing(creates: Creates) -> None:
    await creates.begin("a", "b", "c")
    creates.callers["b"].cancel()
    await creates.settle()
    await creates.let_go()
    await creates.let_go()
    assert creates.sender.calls == [["a"], ["c"]]
    assert [type(one) for one in await creates.answers()] == [str, asyncio.CancelledError, str]


async def test_a_caller_that_is_cancelled_later_takes_nobody_with_it(creates: Creates) -> None:
    await creates.begin("a", "b", "c")
    await creates.let_go()
    creates.callers["b"].cancel()
    await creates.settle()
    await creates.let_go()
    assert [type(one) for one in await creates.answers()] == [str, asyncio.CancelledError, str]


async def test_a_cancel_of_the_first_caller_lets_the_others_go(creates: Creates) -> None:
    await creates.begin("a", "b", "c")
    creates.callers["a"].cancel()
    await creates.settle()
    assert creates.sender.calls == [["a"], ["b", "c"]]
    creates.sender._gates.pop(0)  # the call that was cancelled
    await creates.let_go()
    assert (await creates.answers())[1:] == ["created", "created"]


async def test_a_call_has_the_deadline_of_its_first_caller_and_others_try_again(creates: Creates) -> None:
    late = StorageUnavailableError("no answer in time")
    creates.sender.outcomes = [["created"], late]
    began = time.monotonic()
    await creates.begin("a", "b")
    await creates.begin("c")
    await creates.let_go()
    assert creates.sender.calls[1:] == [["b", "c"]]
    assert began + 60 <= creates.sender.deadlines[1] <= time.monotonic() + 60
    await creates.let_go()  # with time left for both
    assert creates.sender.calls[2:] == [["b", "c"]]
    await creates.let_go()
    assert await creates.answers() == ["created"] * 3


async def test_a_caller_without_time_left_has_the_error() -> None:
    creates = Creates(timeout=0)
    creates.sender.outcomes = [["created"], StorageUnavailableError("no answer in time")]
    await creates.begin("a", "b")
    await creates.let_go()
    await creates.let_go()
    assert [type(one) for one in await creates.answers()] == [str, StorageUnavailableError]


async def test_creates_wait_for_a_slow_call_for_a_moment_only() -> None:
    creates = Creates(longest_wait=0.001)
    await creates.begin("a", "b", "c")
    while len(creates.sender.calls) < 2:
        await asyncio.sleep(0.001)
    await creates.begin("d")
    while len(creates.sender.calls) < 3:
        await asyncio.sleep(0.001)
    assert creates.sender.calls == [["a"], ["b", "c"], ["d"]]
    for _ in range(3):
        await creates.let_go()
    assert await creates.answers() == ["created"] * 4


async def test_calls_are_bounded_in_number() -> None:
    creates = Creates(longest_wait=0)
    for n in range(MOST_CALLS + 2):
        await creates.begin(f"{n}")
    assert creates.sender.calls == [[f"{n}"] for n in range(MOST_CALLS)]
    await creates.let_go()
    assert creates.sender.calls[-1] == [f"{MOST_CALLS}", f"{MOST_CALLS + 1}"]
    for _ in range(MOST_CALLS):
        await creates.let_go()
    assert await creates.answers() == ["created"] * (MOST_CALLS + 2)


async def test_a_call_is_bounded_in_tasks(creates: Creates) -> None:
    """A full call need not wait for another one."""
    await creates.begin(*(f"{n}" for n in range(2 * MOST_CREATES + 6)))
    assert [len(call) for call in creates.sender.calls] == [1, MOST_CREATES, MOST_CREATES]
    for _ in range(3):
        await creates.let_go()
    assert [len(call) for call in creates.sender.calls] == [1, MOST_CREATES, MOST_CREATES, 5]
    await creates.let_go()
    assert await creates.answers() == ["created"] * (2 * MOST_CREATES + 6)


async def test_a_call_is_bounded_in_characters(creates: Creates) -> None:
    await creates.begin("a")
    await creates.begin("b", "c", "d", params="x" * (MOST_CHARACTERS // 2))
    await creates.begin("e", params="x" * (MOST_CHARACTERS + 1))
    for _ in range(4):
        await creates.let_go()
    assert creates.sender.calls == [["a"], ["b", "c"], ["d"], ["e"]]
    assert await creates.answers() == ["created"] * 5


async def test_callers_whose_answer_is_left_out_go_first_with_the_next_call(creates: Creates) -> None:
    """A sender bounds its reply: it answers the first ones."""
    creates.sender.outcomes = [["created"], ["created"], ["created", "exists"]]
    await creates.begin("a", "b", "c", "d", "e")
    await creates.let_go()
    creates.callers["d"].cancel()
    await creates.begin("f")
    await creates.let_go()
    assert creates.sender.calls == [["a"], ["b", "c", "d", "e"], ["c", "e", "f"]]
    await creates.let_go()
    assert creates.sender.calls[3:] == [["f"]]
    await creates.let_go()
    answers = await creates.answers()
    assert isinstance(answers.pop(3), asyncio.CancelledError)
    assert answers == ["created", "created", "created", "exists", "created"]


async def test_a_call_has_the_context_of_no_caller(creates: Creates) -> None:
    token = OF_A_CALLER.set("somebody")
    await creates.begin("a", "b")
    OF_A_CALLER.reset(token)
    await creates.let_go()
    await creates.let_go()
    assert creates.sender.seen == ["somebody", "nobody"]


async def test_the_end_waits_for_calls_on_their_way(creates: Creates) -> None:
    await creates.begin("a", "b")
    await creates.let_go()
    creates.callers["b"].cancel()
    end = asyncio.create_task(creates.gathering.aclose())
    await creates.settle()
    assert not end.done()
    await creates.let_go()
    await end


# With the server


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tasks of each call to the server."""
    sizes: list[int] = []
    enqueue = Writer.enqueue_what_fits

    async def counted(
        self: Writer, tasks: Sequence[NewTask], deadline: float, policy: Policy | None = None
    ) -> list[str | StorageError]:
        sizes.append(len(tasks))
        return await enqueue(self, tasks, deadline, policy)

    monkeypatch.setattr(Writer, "enqueue_what_fits", counted)
    return sizes


async def test_a_hundred_requests_at_once_are_two_calls(server: Server, calls: list[int]) -> None:
    scheduler = TaskBackoffScheduler(quick_config(server.storage))
    ids = await asyncio.gather(*(scheduler.create_task({"n": n}, f"task-{n}") for n in range(100)))
    assert ids == [f"task-{n}" for n in range(100)]
    assert calls == [1, 99]
    assert (await scheduler.get_queue_stats()).pending_count == 100
    await scheduler.shutdown()


async def test_an_id_with_other_params_is_refused_to_its_caller_only(server: Server, calls: list[int]) -> None:
    scheduler = TaskBackoffScheduler(quick_config(server.storage))
    await scheduler.create_task({"n": 1}, "known")
    wanted = [({}, "a"), ({"n": 2}, "known"), ({"n": 1}, "known"), ({}, "twice"), ({}, "twice"), ({"n": 1}, "twice")]
    came = await asyncio.gather(*(scheduler.create_task(*one) for one in wanted), return_exceptions=True)
    assert [one if isinstance(one, str) else type(one) for one in came] == [
        *("a", TaskConflictError, "known"),
        *("twice", "twice", TaskConflictError),
    ]
    assert calls == [1, 1, 5]
    await scheduler.shutdown()


async def test_a_queue_takes_as_many_as_it_has_room_for(server: Server, calls: list[int]) -> None:
    config = quick_config(server.storage)
    config.task.max_queue_size = 10
    scheduler = TaskBackoffScheduler(config)
    await scheduler.create_task({}, "there")
    ids = ["there", *(f"{n}" for n in range(12)), "11", "there"]
    came = await asyncio.gather(*(scheduler.create_task({}, task_id) for task_id in ids), return_exceptions=True)
    assert calls == [1, 1, 14]
    assert came[:10] == ids[:10] and came[-1] == "there"
    assert [type(one) for one in came[10:-1]] == [QueueFullError] * 4, "an id that is refused is refused each time"
    assert len({id(one) for one in came[10:-1]}) == 4
    assert (await scheduler.get_queue_stats()).pending_count == 10
    await scheduler.shutdown()


async def test_callers_behind_a_server_that_stands_still_have_an_error_in_time(server: Server) -> None:
    config = quick_config(server.storage)
    config.storage.timeout = 1
    scheduler = TaskBackoffScheduler(config)
    await scheduler.create_task({})
    server.pause()
    try:
        first = asyncio.create_task(scheduler.create_task({}))
        await asyncio.sleep(0)
        others = [asyncio.create_task(scheduler.create_task({"n": n})) for n in range(50)]
        async with asyncio.timeout(20):
            came = await asyncio.gather(first, *others, return_exceptions=True)
    finally:
        server.go_on()
    assert {type(one) for one in came} == {StorageUnavailableError}
    assert await scheduler.create_task({})
    await scheduler.shutdown()
