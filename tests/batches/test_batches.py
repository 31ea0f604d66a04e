"""Batches: one call of a handler for several tasks, with one outcome for each."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio
import batches_for_children
import pytest
from support import eventually

from maas_backoff import (
    Discard,
    HandlerError,
    InvalidValueError,
    PayloadError,
    ResultEntity,
    Retry,
    Snooze,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskFailedError,
    current_task,
)

pytestmark = pytest.mark.anyio


@dataclass
class Pair:
    left: str
    right: int


async def test_a_full_batch_is_one_call(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[str]] = []

    @scheduler.batch(max_size=4, max_wait=0.05)
    async def embed(texts: list[str]) -> list[int]:
        assert current_task() is None
        calls.append(texts)
        return [len(text) for text in texts]

    handles = await embed.create_many([embed.spec("x" * n) for n in range(10)])
    async with scheduler:
        assert [await handle.result(30) for handle in handles] == list(range(10))
    assert sorted(map(len, calls)) == [2, 4, 4]
    assert await embed(["abc"]) == [3]  # no task


async def test_a_batch_without_options_needs_no_parentheses(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.batch
    async def embed(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    async with scheduler:
        assert await (await embed.create("abc")).result(30) == 3


async def test_a_batch_waits_for_its_oldest_task_and_no_longer(scheduler: TaskBackoffScheduler) -> None:
    sizes: list[int] = []

    @scheduler.batch(max_size=3, max_wait=0.4)
    async def embed(texts: list[str]) -> list[float]:
        sizes.append(len(texts))
        return [asyncio.get_running_loop().time()] * len(texts)

    async with scheduler:
        began = asyncio.get_running_loop().time()
        first = await embed.create("a")
        await anyio.sleep(0.2)
        second = await embed.create("b")
        assert await first.result(30) - began >= 0.39
        assert await second.result(30) == await first.result(30)
        # A full batch waits for nothing: the worker has been told how many tasks it needs.
        handles = [await embed.create("x") for _ in range(3)]
        for handle in handles:
            await handle.result(30)
    assert sizes == [2, 3]


async def test_a_full_batch_wakes_the_worker_at_once(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=3, max_wait=3600)
    async def embed(texts: list[str]) -> list[int]:
        return [len(texts)] * len(texts)

    async with scheduler:
        handles = []
        for _ in range(3):
            handles.append(await embed.create("x"))
            await anyio.sleep(0.05)
        with anyio.fail_after(2):
            assert [await handle.result() for handle in handles] == [3, 3, 3]
    await scheduler.shutdown()


async def test_each_task_has_its_own_outcome(scheduler: TaskBackoffScheduler) -> None:
    attempts: Counter[str] = Counter()

    @scheduler.batch(max_size=8, max_wait=0.1, max_retry_count=1, backoff_interval=0.01)
    async def embed(tasks: list[TaskEntity], texts: list[str]) -> list[Pair | Exception]:
        found: list[Pair | Exception] = []
        for task, text in zip(tasks, texts, strict=True):
            attempts[text] += 1
            first = attempts[text] == 1
            match text:
                case "error":
                    found.append(ValueError("this one"))
                case "retry" if first:
                    found.append(Retry(0.01))
                case "snooze" if first:
                    found.append(Snooze(0.01))
                case "discard":
                    found.append(Discard("never", code=7))
                case "fail":
                    found.append(ResultEntity.fail(3, "no"))  # type: ignore[arg-type] - wrong on purpose
                case "wrong":
                    found.append("a str")  # type: ignore[arg-type] - wrong on purpose
                case _:
                    found.append(Pair(text, task.attempt))
        return found

    names = ["ok", "error", "retry", "snooze", "discard", "fail", "wrong", "fine"]
    handles = await embed.create_many([embed.spec(name) for name in names])
    async with scheduler:
        results: dict[str, object] = {}
        for name, handle in zip(names, handles, strict=True):
            try:
                results[name] = await handle.result(30)
            except TaskFailedError:
                task = await handle.task()
                results[name] = (task.error.type if task.error else None, task.retry_count)
        assert (await handles[3].task()).snooze_count == 1
        code = (await handles[4].task()).error
    assert results == {
        "ok": Pair("ok", 1),
        "error": ("ValueError", 1),
        "retry": Pair("retry", 2),
        "snooze": Pair("snooze", 2),
        "discard": ("discarded", 0),
        "fail": ("failed", 1),
        "wrong": ("not_serializable", 0),
        "fine": Pair("fine", 1),
    }
    assert code is not None and code.code == 7


async def test_params_that_do_not_fit_cost_nobody_else(config: TaskBackoffConfig) -> None:
    producer = TaskBackoffScheduler(config)

    @producer.batch(name="embed")
    async def other(texts: list[str]) -> list[str]:
        return texts

    bad = await other.create("a text")
    worker = TaskBackoffScheduler(config)
    calls: list[list[int]] = []

    @worker.batch(max_wait=0.1)
    async def embed(texts: list[int]) -> list[int]:
        calls.append(texts)
        return texts

    good = await embed.create(3)
    async with worker:
        assert await good.result(30) == 3
        with pytest.raises(TaskFailedError, match="bad_arguments"):
            await bad.result(30)
    assert calls == [[3]]
    await producer.shutdown()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "returned NoneType; return a list"),
        ("abc", "returned str; return a list"),
        ([1, 2, 3], "returned 3 outcomes for 1 task"),
        ([], "returned 0 outcomes for 1 task"),
    ],
)
async def test_wrong_outcomes_are_a_clear_error(scheduler: TaskBackoffScheduler, returned: object, words: str) -> None:
    sizes: list[int] = []

    @scheduler.batch(max_size=4, max_wait=0.05)
    async def embed(texts: list[str]) -> list[int]:
        sizes.append(len(texts))
        return returned if "bad" in texts else [0] * len(texts)  # type: ignore[return-value] - wrong on purpose

    handles = await embed.create_many([embed.spec(text) for text in ("a", "bad", "c", "d")])
    async with scheduler:
        with pytest.raises(TaskFailedError, match=words):
            await handles[1].result(30)
        for one in (handles[0], handles[2], handles[3]):
            assert await one.result(30) == 0
            task = await one.task()
            assert (task.retry_count, task.error, task.attempts) == (0, None, ())
        task = await handles[1].task()
    assert task.error is not None and task.error.type == "wrong_outcomes"
    assert sorted(sizes) == [1, 1, 2, 2, 4]


async def test_a_plain_function_runs_in_a_thread(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.batch(max_size=4, max_wait=0.05)
    def embed(texts: list[str]) -> list[bool]:
        return [threading.current_thread() is threading.main_thread()] * len(texts)

    handles = await embed.create_many([embed.spec("x") for _ in range(5)])
    async with scheduler:
        assert [await handle.result(30) for handle in handles] == [False] * 5


async def test_a_lifespan_gives_its_value_before_the_items(scheduler: TaskBackoffScheduler) -> None:
    @asynccontextmanager
    async def model() -> AsyncGenerator[list[int], None]:
        yield [7]

    @scheduler.batch(max_wait=0.01, lifespan=model)
    async def first(model: list[int], numbers: list[int]) -> list[int]:
        return [model[0] * number for number in numbers]

    @scheduler.batch(max_wait=0.01, lifespan=model)
    async def second(tasks: list[TaskEntity], model: list[int], numbers: list[int]) -> list[str]:
        return [f"{task.kind} {model[0] * number}" for task, number in zip(tasks, numbers, strict=True)]

    async with scheduler:
        one, two = await first.create(2), await second.create(3)
        assert (await one.result(30), await two.result(30)) == (14, "second 21")


async def test_batches_run_beside_other_kinds(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.batch(max_size=4, max_wait=0.02)
    async def embed(texts: list[str]) -> list[str]:
        return texts

    @scheduler.batch(max_size=4, max_wait=0.02)
    async def also(texts: list[str]) -> list[str]:
        return texts

    @scheduler.task
    async def alone(text: str) -> str:
        await anyio.sleep(0.001)
        return text

    async with scheduler:
        others = await alone.create_many([alone.spec(f"{n}") for n in range(200)])
        handles = await embed.create_many([embed.spec(f"{n}") for n in range(50)])
        more = await also.create_many([also.spec(f"{n}") for n in range(50)])
        for group in (others, handles, more):
            assert [await handle.result(30) for handle in group] == [f"{n}" for n in range(len(group))]


async def test_a_look_that_finds_no_batch_leaves_its_slot_to_other_tasks(config: TaskBackoffConfig) -> None:
    """While the look is on its way, it has the only slot."""
    config.threadpool.concurrency = 1
    scheduler = TaskBackoffScheduler(config)
    may_end = asyncio.Event()

    @scheduler.batch(max_size=4, max_wait=3600)
    async def embed(texts: list[str]) -> list[str]:
        return texts

    begun: list[str] = []

    @scheduler.task
    async def alone(text: str) -> None:
        begun.append(text)
        if text == "first":
            await may_end.wait()

    async with scheduler:
        assert scheduler._service is not None
        parts = scheduler._service.parts
        first = await alone.create("first")
        await eventually(lambda: begun, "the slot is taken")
        second = await alone.create("second")
        parts.wake_ups.wake()
        await eventually(lambda: parts.slots.spare_for_batches and parts.wake_ups.has_work, "both wait for a slot")
        may_end.set()
        with anyio.fail_after(10):
            await first.result()
            await second.result()
    await scheduler.shutdown()


async def test_the_costs_of_a_batch_are_bounded(scheduler: TaskBackoffScheduler) -> None:
    calls: list[list[str]] = []

    @scheduler.batch(max_size=8, max_wait=0.05, max_cost=10, cost_of=len)
    async def embed(tasks: list[TaskEntity], texts: list[str]) -> list[float]:
        calls.append(texts)
        return [task.cost for task in tasks]

    texts = ["x" * n for n in (4, 6, 3, 20, 2, 5, 5)]
    handles = await embed.create_many([embed.spec(text) for text in texts])
    cheap = await embed.options(cost=1).create("y" * 50)
    async with scheduler:
        assert [await handle.result(30) for handle in handles] == [4, 6, 3, 20, 2, 5, 5]
        assert await cheap.result(30) == 1
    assert [list(map(len, call)) for call in calls] == [[4, 6], [3], [20], [2, 5], [5, 50]]


async def test_costs_fill_a_batch_that_waits(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)

    @scheduler.batch(max_size=100, max_wait=3600, max_cost=10, cost_of=len)
    async def embed(texts: list[str]) -> list[int]:
        return [len(texts)] * len(texts)

    async with scheduler:
        first = await embed.create("x" * 4)
        await anyio.sleep(0.05)
        second = await embed.create("x" * 6)
        with anyio.fail_after(2):
            assert (await first.result(), await second.result()) == (2, 2)
    await scheduler.shutdown()


async def test_a_cost_that_is_none_is_an_error_of_the_service(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.batch(max_cost=10, cost_of=len)
    async def embed(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    for create in (embed.create, embed.spec):
        with pytest.raises(InvalidValueError, match=r"embed\.cost_of: expected a number from ") as caught:
            await create("")  # type: ignore[misc] - `spec` raises before
        assert caught.value.http_status == 500


def test_wrong_declarations_are_refused(config: TaskBackoffConfig) -> None:
    scheduler = TaskBackoffScheduler(config)
    wrong: dict[str, object] = {"max_size": 0, "max_wait": -1, "max_cost": 0, "adaptive": 1, "cost_of": 3}
    for option, value in wrong.items():
        with pytest.raises(InvalidValueError, match=option):
            scheduler.batch(**{option: value})(lambda texts: texts)  # type: ignore[call-overload] - wrong on purpose

    def no_list(text: str) -> list[str]:
        return [text]

    def two(texts: list[str], others: list[str]) -> list[str]:
        return texts

    def one_result(texts: list[str]) -> str:
        return texts[0]

    def nothing(tasks: list[TaskEntity]) -> list[str]:
        return []

    def no_json(texts: list[Callable[[], int]]) -> list[str]:
        return []

    for function, words in (
        (no_list, r"parameter `text` is not a list"),
        (two, "one parameter for the items"),
        (nothing, "one parameter for the items"),
        (one_result, "its result is not a list"),
        (no_json, "parameter `texts`"),
    ):
        with pytest.raises(HandlerError, match=words):
            scheduler.batch()(function)  # type: ignore[call-overload] - wrong on purpose


async def test_an_item_of_another_type_is_refused(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.batch()
    async def embed(pairs: list[Pair]) -> list[Pair]:
        return pairs

    with pytest.raises(PayloadError, match=r"embed\.pairs"):
        await embed.create("a")  # type: ignore[arg-type] - wrong on purpose
    with pytest.raises(InvalidValueError, match="embed"):
        await embed.create()  # type: ignore[call-arg] - wrong on purpose
    with pytest.raises(InvalidValueError, match="embed"):
        await embed.create(pairs=Pair("a", 1))  # type: ignore[call-arg] - wrong on purpose
    handle = await embed.create(Pair("a", 1))
    async with scheduler:
        assert await handle.result(30) == Pair("a", 1)


@pytest.mark.blocks
async def test_batches_in_child_processes(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 2
    scheduler = batches_for_children.scheduler
    scheduler.config = config
    many = [batches_for_children.coroutine.spec(f"a{n}") for n in range(4)]
    async with scheduler:
        handles = await batches_for_children.coroutine.create_many(many)
        results = [await handle.result(30) for handle in handles]
        assert len({pid for pid, _, _ in results}) == 1
        assert [(size, text) for _, size, text in results] == [(4, f"A{n}") for n in range(4)]
        others = [await batches_for_children.plain.create(text) for text in "xyz"]
        assert [await one.result(30) for one in others] == ["plain 1 x", "plain 1 y", "plain 1 z"]
        for one, text in zip(others, "xyz", strict=True):
            parts = [part.data async for part in scheduler.stream(one.task_id)]
            assert parts == [f"{text}!"]
            lines = [line.text async for line in scheduler.logs(one.task_id)]
            assert lines == [f"line of {text}"]
            task = await one.task()
            assert (task.progress, task.progress_message) == (100, text)
        third = await batches_for_children.on_model.create_many([batches_for_children.on_model.spec(n) for n in (1, 2)])
        assert [await one.result(30) for one in third] == [(True, 2), (True, 4)]
        assert await (await batches_for_children.alone.create("b")).result(30) == "B"


@pytest.mark.long
async def test_each_task_of_a_batch_in_a_child_may_have_a_large_result(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"
    config.threadpool.concurrency = 1
    config.task.max_payload_bytes, config.task.max_stream_bytes = 1_000_000, 1000
    scheduler = batches_for_children.scheduler
    scheduler.config = config
    kind = batches_for_children.long_texts
    handles = await kind.create_many([kind.spec(size) for size in (990_000, 990_000, 990_000, 990_000)])
    async with scheduler:
        assert [len(await handle.result(30)) for handle in handles] == [990_000] * 4
        assert [(await handle.task()).attempt for handle in handles] == [1] * 4


@pytest.mark.parametrize("is_awaited", [True, False])
async def test_a_hook_is_entered_for_each_task_of_a_batch(scheduler: TaskBackoffScheduler, is_awaited: bool) -> None:
    told: list[str] = []

    @scheduler.around_attempt
    @contextmanager
    def noted(task: TaskEntity) -> Iterator[None]:
        told.append(f"begins {task.task_id}")
        yield
        told.append(f"ends {task.task_id}")

    if is_awaited:

        @scheduler.batch(max_size=2, max_wait=3600, name="double")
        async def double(numbers: list[int]) -> list[int]:
            told.append("call")
            return [2 * number for number in numbers]
    else:

        @scheduler.batch(max_size=2, max_wait=3600, name="double")
        def double(numbers: list[int]) -> list[int]:
            told.append("call")
            return [2 * number for number in numbers]

    handles = [await double.options(task_id=name).create(number) for name, number in (("a", 1), ("b", 2))]
    async with scheduler:
        assert [await handle.result(30) for handle in handles] == [2, 4]
    assert told == ["begins a", "begins b", "call", "ends b", "ends a"]


async def test_the_history_counts_batches(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.batch(max_size=4, max_wait=0.05)
    async def embed(texts: list[str]) -> list[str]:
        return texts

    handles = await embed.create_many([embed.spec(f"{n}") for n in range(5)])
    async with scheduler:
        for handle in handles:
            await handle.result(30)
        history = await scheduler.get_history(2)
        for activity in (history.total, history.recent):
            assert activity.batch_sizes.counts[:4] == (1, 0, 1, 0)  # one of 1 task, one of up to 4
            assert activity.batch_waits.count == 2


async def test_a_batch_is_one_busy_slot(config: TaskBackoffConfig) -> None:
    config.threadpool.concurrency = 2
    scheduler = TaskBackoffScheduler(config)
    may_end = asyncio.Event()

    @scheduler.batch(max_size=3, max_wait=0)
    async def embed(texts: list[str]) -> list[str]:
        await may_end.wait()
        return texts

    async def running() -> int:
        return sum(worker.running for worker in await scheduler.workers())

    handles = await embed.create_many([embed.spec(text) for text in "abc"])
    async with scheduler:
        await eventually(running, "the heartbeat tells of it")
        assert await running() == 1
        assert (await scheduler.get_queue_stats()).processing_count == 3
        await scheduler.pause(kind="embed")
        later = await embed.create("d")
        assert await scheduler.explain() == "1 task due, 3 tasks running; kind embed: paused, 1 task due."
        await scheduler.resume(kind="embed")
        may_end.set()
        assert [await handle.result(30) for handle in [*handles, later]] == ["a", "b", "c", "d"]
