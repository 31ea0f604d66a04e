"""docs/state-machine.md is true: each cell of its tables is tried on a server."""

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from support import eventually, table

from maas_backoff import Selection, TaskBackoffConfig, TaskBackoffScheduler, TaskConflictError, TaskEntity
from maas_backoff.domain.outcome import Cancelled, CancelReason, Failed, LeaseExpired, Snoozed, Succeeded, Unstarted
from maas_backoff.domain.settlement import decide
from maas_backoff.domain.task import TaskError
from maas_backoff.store.batch import BatchRequest, Claimed, Settle
from maas_backoff.store.queue_store import QueueStore

pytestmark = pytest.mark.anyio

PAGE = (Path(__file__).parents[2] / "maas_backoff/docs/state-machine.md").read_text(encoding="utf-8")
STATES = ("absent", "pending", "scheduled", "processing", "external", "completed", "failed", "cancelled")
ID = "x"


# The page


@attrs.frozen
class Cell:
    """The answer to a call or an event in a state, and the state afterwards."""

    name: str
    before: str
    answer: str
    after: str

    @classmethod
    def of(cls, name: str, before: str, text: str) -> "Cell":
        answer, arrow, after = text.partition(" → ")
        return cls(name, before, answer, after if arrow else before)

    def __str__(self) -> str:
        return f"{self.name}-{self.before}"


def cells(heading: str) -> list[Cell]:
    """Return the cells of the first table below a heading."""
    text = re.split(rf"^##+ {heading}\n", PAGE, flags=re.MULTILINE)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines is not None
    head, *rows = table(lines[0])
    assert all(len(row) == len(head) for row in rows)
    return [Cell.of(row[0], *pair) for row in rows for pair in zip(head[1:], row[1:], strict=True)]


def each_cell(heading: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("cell", cells(heading), ids=str)


def test_the_tables_have_each_call_and_event_in_each_state() -> None:
    for heading, known in (("Calls", CALLS), ("Events of a worker", EVENTS)):
        found = [(cell.name, cell.before) for cell in cells(heading)]
        assert sorted(found) == sorted((name, state) for name in known for state in STATES)
        assert {cell.after for cell in cells(heading)} <= set(STATES)
    assert [cell.before for cell in cells("States")[:2]] == ["meaning", "`task.status`"]
    assert [cell.name.strip("`") for cell in cells("States")[::2]] == list(STATES)


# Calls

Call = Callable[[TaskBackoffScheduler], Awaitable[Any]]


async def left_at_once(scheduler: TaskBackoffScheduler) -> str:
    async with scheduler.call({}, ID) as task_id:
        return task_id


CALLS: dict[str, Call] = {
    "`create_task`, equal params": lambda s: s.create_task({}, ID),
    "`create_task(delay=60)`, equal params": lambda s: s.create_task({}, ID, delay=60),
    "`create_task`, other params": lambda s: s.create_task({"other": 1}, ID),
    "`call`, block left at once": left_at_once,
    "`cancel_task`": lambda s: s.cancel_task(ID),
    "`cancel_task(running=True)`": lambda s: s.cancel_task(ID, running=True),
    "`mark_task_processing`": lambda s: s.mark_task_processing(ID),
    "`mark_task_completed`": lambda s: s.mark_task_completed(ID),
    "`mark_task_failed`, retries left": lambda s: s.mark_task_failed(ID),
    "`mark_task_failed`, no retries left": lambda s: s.mark_task_failed(ID),
    "`mark_task_failed(retry=False)`": lambda s: s.mark_task_failed(ID, retry=False),
    "`update_task_progress`": lambda s: s.update_task_progress(ID, 50),
    "`retry_task`": lambda s: s.retry_task(ID),
    "`cancel_tasks(Selection())`": lambda s: s.cancel_tasks(Selection()),
    "`cancel_tasks(Selection(), running=True)`": lambda s: s.cancel_tasks(Selection(), running=True),
    "`delete_tasks(Selection())`": lambda s: s.delete_tasks(Selection()),
    "`update_tasks(Selection(), delay=60)`": lambda s: s.update_tasks(Selection(), delay=60),
    '`retry_tasks("failed")`': lambda s: s.retry_tasks("failed"),
    '`retry_tasks("cancelled")`': lambda s: s.retry_tasks("cancelled"),
    "`update_task(delay=60)`": lambda s: s.update_task(ID, delay=60),
    "`update_task(delay=0)`": lambda s: s.update_task(ID, delay=0),
    "`update_task(priority=5)`": lambda s: s.update_task(ID, priority=5),
    "`delete_task`": lambda s: s.delete_task(ID),
    '`purge_tasks("pending")`': lambda s: s.purge_tasks("pending"),
    '`purge_tasks("completed")`': lambda s: s.purge_tasks("completed"),
    '`purge_tasks("failed")`': lambda s: s.purge_tasks("failed"),
    '`purge_tasks("cancelled")`': lambda s: s.purge_tasks("cancelled"),
    "`pause`": lambda s: s.pause(),
    "`resume`": lambda s: s.resume(),
}


@each_cell("Calls")
async def test_a_call(scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, cell: Cell) -> None:
    async with task_in(cell.before, scheduler, config, retries=0 if "no retries" in cell.name else 1):
        before = await shown(scheduler)
        assert await state_of(scheduler) == cell.before
        try:
            answer = await CALLS[cell.name](scheduler)
        except TaskConflictError as error:
            answer = type(error).__name__
        assert answer == (cell.answer == "True" if cell.answer in {"True", "False"} else answer_of(cell.answer))
        # A running attempt is asked to end, and ends.
        await eventually(lambda: is_in(cell.after, scheduler), f"it is {cell.after}", 10)
        if cell.after == cell.before and cell.answer not in {"True", "1"}:
            assert await shown(scheduler) == before


def answer_of(text: str) -> object:
    return ID if text == "id" else int(text) if text.isdecimal() else text


@asynccontextmanager
async def task_in(
    state: str, scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, *, retries: int
) -> AsyncIterator[None]:
    """Have the task be in a state, by calls, and run by a worker of its own where it is processing."""
    if state != "absent":
        delay = 60 if state == "scheduled" else 0
        await scheduler.create_task({}, ID, delay=delay, backoff_interval=60, max_retry_count=retries)
    match state:
        case "external":
            assert await scheduler.mark_task_processing(ID)
        case "completed":
            assert await scheduler.mark_task_completed(ID, "before")
        case "failed":
            assert await scheduler.mark_task_failed(ID, "before", retry=False)
        case "cancelled":
            assert await scheduler.cancel_task(ID)
    if state != "processing":
        yield
        return
    worker = TaskBackoffScheduler(config)
    begun, go_on = anyio.Event(), anyio.Event()

    @worker.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        begun.set()
        await go_on.wait()

    async with worker:
        await begun.wait()
        yield
        go_on.set()


async def state_of(scheduler: TaskBackoffScheduler) -> str:
    """Return the state by the names of the page; the queue has one task at most."""
    task, stats = await scheduler.get_task(ID), await scheduler.get_queue_stats()
    if task is None:
        return "absent"
    if task.status == "pending":
        return "scheduled" if stats.scheduled_count else "pending"
    if task.status == "processing":
        return "external" if await scheduler._client.store.reader.count_external() else "processing"
    return task.status


async def is_in(state: str, scheduler: TaskBackoffScheduler) -> bool:
    return await state_of(scheduler) == state


async def shown(scheduler: TaskBackoffScheduler) -> dict[str, Any] | None:
    """Return all of the task but what depends on the time of looking."""
    task = await scheduler.get_task(ID)
    return None if task is None else {**task.to_dict(), "waiting_for": None}


# Pause


@each_cell("Pause")
async def test_a_pause(scheduler: TaskBackoffScheduler, cell: Cell) -> None:
    states = {"queue runs": False, "runs": False, "queue is paused": True, "paused": True}
    if states[cell.before]:
        assert await scheduler.pause()
    assert await CALLS[cell.name](scheduler) == (cell.answer == "True")
    assert (await scheduler.get_queue_stats()).paused == states[cell.after]


# Events of a worker, as the store sees them

ERROR = TaskError("ValueError", "boom")
SETTLED = {
    "complete": Succeeded("1"),
    "retry": Failed(ERROR, retry_after=60),
    "snooze": Snoozed(60),
    "release": Unstarted(),
    "fail": Failed(ERROR, permanent=True),
    "cancel": Cancelled(CancelReason.USER),
}


class Event:
    """A worker that had an attempt of the task, and what happens to it next."""

    def __init__(self, scheduler: TaskBackoffScheduler) -> None:
        self.store: QueueStore = scheduler._client.store
        self.attempt: Claimed | None = None
        self._numbers: Iterator[int] = iter(range(10))

    async def claim(self) -> str:
        request = BatchRequest((), 1, may_claim_suspect=True, request_id=f"{next(self._numbers)}", exchange=0)
        claimed = (await self.store.exchange.send(request, "worker")).claimed
        self.attempt = claimed[0] if claimed else self.attempt
        return "claimed" if claimed else "nothing"

    async def settle(self, how: str) -> str:
        one = self.attempt
        assert one is not None
        settlement = decide(SETTLED[how], ID, one.counts, one.policy, one.policy.backoff())
        assert settlement is not None
        settles = (Settle(ID, "lease", one.token, settlement, one.counts),)
        request = BatchRequest(settles, 0, may_claim_suspect=False, request_id=f"{next(self._numbers)}", exchange=0)
        return (await self.store.exchange.send(request, "worker")).answers[0]

    async def run_out(self) -> str:
        """Look for leases that have run out, when a lease has passed."""
        self.store.connection.clock = f"{time.time() * 1000 + 10_000:.0f}"
        found = (await self.store.lost.look(gap=1, grace=0))[0]
        if not found:
            return "nothing"
        settlement = decide(LeaseExpired(), ID, found[0].counts, found[0].policy, found[0].policy.backoff())
        assert settlement is not None
        return (await self.store.lost.settle([found[0].settle(settlement)], "reaper"))[0]


EVENTS: dict[str, Callable[[Event], Awaitable[str]]] = {
    "claim": Event.claim,
    "claim, queue is paused": Event.claim,
    **{f"settle: {how}": lambda event, how=how: event.settle(how) for how in SETTLED},
    **{
        f"settle: {how}, cancel was requested": lambda event, how=how: event.settle(how)
        for how in ("retry", "complete", "fail")
    },
    "lease runs out": Event.run_out,
    "lease runs out, last loss allowed": Event.run_out,
    "lease runs out, cancel was requested": Event.run_out,
    "lease runs out, last loss allowed, cancel was requested": Event.run_out,
}


@each_cell("Events of a worker")
async def test_an_event(scheduler: TaskBackoffScheduler, cell: Cell) -> None:
    event = Event(scheduler)
    await had_an_attempt(event, cell.before, scheduler, max_lost=1 if "last loss" in cell.name else 3)
    if "cancel was requested" in cell.name and cell.before == "processing":
        assert await scheduler.cancel_task(ID, running=True)
    if "paused" in cell.name:
        assert await scheduler.pause()
    before = await shown(scheduler)
    assert await state_of(scheduler) == cell.before
    assert await EVENTS[cell.name](event) == cell.answer
    assert await state_of(scheduler) == cell.after
    if cell.answer in {"nothing", "unknown", "lost"}:
        assert await shown(scheduler) == before


async def had_an_attempt(event: Event, state: str, scheduler: TaskBackoffScheduler, *, max_lost: int) -> None:
    """Have a worker claim the task; then bring the task into a state by calls, so that the attempt has lost it."""
    delay = 60 if state == "scheduled" else 0
    await scheduler.create_task({}, ID, backoff_interval=delay, max_lost=max_lost)
    assert await event.claim() == "claimed"
    match state:
        case "pending" | "scheduled":
            assert await scheduler.mark_task_failed(ID)
        case "external":
            assert await scheduler.mark_task_failed(ID)
            assert await scheduler.mark_task_processing(ID)
        case "completed":
            assert await scheduler.mark_task_completed(ID)
        case "failed":
            assert await scheduler.mark_task_failed(ID, retry=False)
        case "cancelled":
            assert await scheduler.mark_task_failed(ID)
            assert await scheduler.cancel_task(ID)
        case "absent":
            assert await scheduler.mark_task_completed(ID)
            assert await scheduler.delete_task(ID)


async def test_a_settle_that_arrives_twice_is_answered_already(scheduler: TaskBackoffScheduler) -> None:
    """Also when another attempt has the task by then."""
    event = Event(scheduler)
    await had_an_attempt(event, "processing", scheduler, max_lost=3)
    first = event.attempt
    assert [await event.settle("release") for _ in range(2)] == ["ok", "already"]
    assert await state_of(scheduler) == "pending"
    assert await event.claim() == "claimed"
    event.attempt = first
    assert await event.settle("release") == "already"
    assert await state_of(scheduler) == "processing"


async def test_a_mark_of_failure_meets_a_requested_cancel(scheduler: TaskBackoffScheduler) -> None:
    await had_an_attempt(Event(scheduler), "processing", scheduler, max_lost=3)
    assert await scheduler.cancel_task(ID, running=True)
    assert await scheduler.mark_task_failed(ID)
    assert await state_of(scheduler) == "cancelled"
