"""Parts reach each reader in any process and in order; they live as long as their task, and are of its last attempt."""

import asyncio
import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

import anyio
import handlers_for_children as handlers
import pytest
from support import Server, eventually

from maas_backoff import (
    InvalidValueError,
    LogLine,
    PayloadError,
    StorageDeniedError,
    StorageUnavailableError,
    StreamError,
    StreamFullError,
    StreamPart,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskNotFoundError,
    current_task,
)
from maas_backoff.domain.emission import JSON, TEXT, Part, Unsent
from maas_backoff.domain.settlement import Settlement
from maas_backoff.store.batch import BatchRequest, Claimed, Settle
from maas_backoff.store.keys import Keys
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.streams import PARTS, Emitted, Place

pytestmark = pytest.mark.anyio

KEYS = Keys("test")
NUMBERS = itertools.count()
ODD = "a\r\nb\n\n \u2028 \x00 日本 🐈 \u0301 data: {}"
"""Text that an event stream would change, and text of several bytes for a character."""


async def parts_of(scheduler: TaskBackoffScheduler, task_id: str, after: str | None = None) -> list[StreamPart]:
    with anyio.fail_after(20):
        return [part async for part in scheduler.stream(task_id, after=after)]


async def lines_of(scheduler: TaskBackoffScheduler, task_id: str, **how: Any) -> list[LogLine]:
    with anyio.fail_after(20):
        return [line async for line in scheduler.logs(task_id, **how)]


def data_of(parts: list[StreamPart]) -> list[object]:
    """Return what a reader has at the end."""
    found: list[object] = []
    for part in parts:
        if part.restarted:
            found.clear()
        else:
            found.append(part.data)
    return found


def text_of(parts: list[StreamPart]) -> str:
    return "".join(str(one) for one in data_of(parts))


async def claim(store: QueueStore, worker: str = "w") -> Claimed:
    request = BatchRequest((), 1, may_claim_suspect=False, request_id=f"{next(NUMBERS)}", exchange=0)
    (claimed,) = (await store.exchange.send(request, worker)).claimed
    return claimed


def emitted(claimed: Claimed, *parts: object, place: int = 1, continues: bool = False, lines: Any = ()) -> Emitted:
    made = [Part(TEXT, one) if isinstance(one, str) else Part(JSON, json.dumps(one)) for one in parts]
    unsent = Unsent(continues, place, made, 1, lines)
    return Emitted(claimed.task.task_id, claimed.token, claimed.task.attempt, unsent)


# Order, and readers


async def test_a_reader_gets_each_part_in_order_and_then_the_end(scheduler: TaskBackoffScheduler) -> None:
    values = ["text", ODD, 5, None, ["a", {"b": 1.5}], {}, "text", "", "more"]

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        for value in values:
            task.emit(value)
            await anyio.sleep(0.03)
        return task.emitted_text()

    async with scheduler:
        await scheduler.create_task({}, "x")
        parts = await parts_of(scheduler, "x")
        task = await scheduler.get_task("x")
        again = await parts_of(scheduler, "x")
    assert task is not None and task.status == "completed", "the end comes after the last part"
    assert [part.data for part in parts] == [value for value in values if value != ""]
    assert again == parts, "a reader that comes late gets the same"
    assert task.result == f"text{ODD}textmore"
    assert {part.attempt for part in parts} == {1} and not any(part.restarted for part in parts)
    assert len({part.id for part in parts}) == len(parts)


async def test_a_reader_goes_on_after_each_part(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        for n in range(150):  # more than one read
            task.emit({"n": n})

    async with scheduler:
        await scheduler.create_task({}, "x")
        parts = await parts_of(scheduler, "x")
        assert [part.data for part in parts] == [{"n": n} for n in range(150)]
        for n in (0, 1, 48, 49, 50, 99, 148, 149):
            assert await parts_of(scheduler, "x", parts[n].id) == parts[n + 1 :]


async def test_texts_that_come_together_are_one_part(scheduler: TaskBackoffScheduler) -> None:
    words = [f"word{n} " for n in range(1000)]

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        for word in words:
            task.emit(word)

    async with scheduler:
        await scheduler.create_task({}, "x")
        parts = await parts_of(scheduler, "x")
    assert text_of(parts) == "".join(words)
    assert len(parts) < 10


READER = """
import asyncio, sys
from maas_backoff import StorageConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskConfig

async def main():
    storage = StorageConfig(host="127.0.0.1", port=int(sys.argv[1]))
    scheduler = TaskBackoffScheduler(TaskBackoffConfig(storage=storage, task=TaskConfig(biz_prefix="test")))
    print("ready", flush=True)
    async for part in scheduler.stream("x"):
        print(part.id, repr(part.data), flush=True)
    await scheduler.shutdown()

asyncio.run(main())
"""


async def test_readers_in_other_processes_get_the_same(scheduler: TaskBackoffScheduler, server: Server) -> None:
    ready = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        await ready.wait()
        for n in range(20):
            task.emit(f"part {n} {ODD}")
            await anyio.sleep(0.025)

    await scheduler.create_task({}, "x")
    readers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", READER, f"{server.port}"), stdout=asyncio.subprocess.PIPE
        )
        for _ in range(2)
    ]
    seen: list[bytes] = []
    async with scheduler:
        for reader in readers:
            assert reader.stdout is not None
            assert await reader.stdout.readline() == b"ready\n"
        ready.set()
        for reader in readers:
            out, _ = await asyncio.wait_for(reader.communicate(), 20)
            seen.append(out)
        parts = await parts_of(scheduler, "x")
    wanted = "".join(f"{part.id} {part.data!r}\n" for part in parts)
    assert [out.decode() for out in seen] == [wanted] * 2


async def test_parts_reach_a_reader_while_the_handler_runs(scheduler: TaskBackoffScheduler) -> None:
    """One by one, also if several parts were emitted in one moment, and a reader that does not read holds up nobody."""
    got, idle = anyio.Event(), scheduler.stream("x")

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.emit("first")
        await got.wait()
        for n in range(2000):
            task.emit({"n": n})

    async with scheduler:
        await scheduler.create_task({}, "x")
        slow = await anext(idle)  # and reads nothing more for now
        seen: list[StreamPart] = []
        with anyio.fail_after(20):
            async for part in scheduler.stream("x"):
                seen.append(part)
                got.set()
        rest = [part async for part in idle]
    assert [slow, *rest] == seen
    assert data_of(seen) == ["first", *({"n": n} for n in range(2000))]


@pytest.mark.parametrize("part", [ODD, "x" * 1000, {"n": 1}])
async def test_the_first_part_comes_with_the_message_that_wakes_its_readers(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch, part: object
) -> None:
    """Its readers need no call then, if it is small."""
    begin, go_on = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        await begin.wait()
        task.emit(part)
        await go_on.wait()
        task.emit("second")

    streams = scheduler._client.store.streams
    read, reads = streams.read_first, 0

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal reads
        found = await read(*args, **kwargs)
        reads += 1
        return found

    monkeypatch.setattr(streams, "read_first", counted)
    await scheduler.create_task({}, "x")
    reader = asyncio.create_task(anext(stream := scheduler.stream("x")))
    async with scheduler:
        await eventually(lambda: reads == 3, "it has read before and after it subscribed, and after the claim")
        begin.set()
        first = await asyncio.wait_for(reader, 20)
        assert (first.data, first.attempt, reads) == (part, 1, 3)
        go_on.set()
        rest = [one async for one in stream]
        assert [first, *rest] == await parts_of(scheduler, "x"), "a read gives the same"
    assert [one.data for one in rest] == ["second"]


async def test_many_readers_of_many_tasks(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        for n in range(5):
            task.emit(f"{task.task_id}:{n} ")
            await anyio.sleep(0.01)

    seen: dict[tuple[str, int], str] = {}

    async def read(task_id: str, reader: int) -> None:
        seen[task_id, reader] = text_of(await parts_of(scheduler, task_id))

    ids = [f"t{n}" for n in range(30)]
    async with scheduler, anyio.create_task_group() as group:
        for task_id in ids:
            await scheduler.create_task({}, task_id)
            for reader in range(3):
                group.start_soon(read, task_id, reader)
    assert len(seen) == 90
    assert all(text == "".join(f"{task_id}:{n} " for n in range(5)) for (task_id, _), text in seen.items())


async def test_a_part_is_an_event_for_a_browser() -> None:
    event = StreamPart("5-1", ODD, 1).to_sse()
    assert (event["id"], event["event"]) == ("5-1", "part")
    assert json.loads(event["data"]) == ODD
    assert "\n" not in event["data"] and "\r" not in event["data"]
    assert StreamPart("5-0", None, 2, restarted=True).to_sse() == {"id": "5-0", "event": "restarted", "data": "null"}


@pytest.mark.parametrize("after", ["", "5", "5-", "-1", "x-1", "5-1 ", "last 5", 5, "9" * 20 + "-1"])
async def test_an_id_that_no_part_has_is_refused_before_anything_is_sent(after: Any) -> None:
    nowhere = TaskBackoffScheduler(TaskBackoffConfig.from_env())
    nowhere.config.task.biz_prefix = "test"
    nowhere.config.storage.port = 1
    for read in (nowhere.stream, nowhere.logs):
        with pytest.raises(InvalidValueError, match="after: expected the id of a part or a line, or None, got"):
            read("x", after=after)
        with pytest.raises(InvalidValueError, match="task_id"):
            read("", after=None)
    await nowhere.shutdown()


async def test_a_task_that_is_not_there_has_no_stream(scheduler: TaskBackoffScheduler) -> None:
    for read in (scheduler.stream("x"), scheduler.logs("x"), scheduler.logs("x", follow=True)):
        with pytest.raises(TaskNotFoundError):
            await anext(read)
    await scheduler.create_task({}, "x", delay=60)
    async with anyio.create_task_group() as group:

        async def read_on() -> None:
            with pytest.raises(TaskNotFoundError):
                await parts_of(scheduler, "x")

        group.start_soon(read_on)
        await eventually(lambda: scheduler._client._waiters and scheduler._client._waiters._readers, "it reads")
        assert await scheduler.delete_task("x")


async def test_a_stream_ends_with_its_task_however_that_ends(scheduler: TaskBackoffScheduler) -> None:
    """Without a part, and without a worker: cancelled, marked, expired."""
    for task_id in ("cancelled", "marked"):
        await scheduler.create_task({}, task_id, delay=60)
    await scheduler.create_task({}, "expires", start_within=0.3)
    assert await parts_of(scheduler, "expires") == []
    ends: dict[str, Callable[[str], Any]] = {
        "cancelled": scheduler.cancel_task,
        "marked": scheduler.mark_task_completed,
    }
    for task_id, end in ends.items():
        async with anyio.create_task_group() as group:

            async def read(task_id: str = task_id) -> None:
                assert await parts_of(scheduler, task_id) == []

            group.start_soon(read)
            await end(task_id)


# In threads and child processes


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("way", ["coroutine", "thread", "child", "coroutine in a child"])
async def test_a_handler_emits_wherever_it_runs(config: TaskBackoffConfig, way: str, keeps: bool) -> None:
    """Also what it is told of earlier attempts, and the sum of its texts."""
    if "child" in way:
        config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handlers.emits_in_a_coroutine if "coroutine" in way else handlers.emits)
    params = {"parts": ["a ", ODD, {"n": 1}, "b"], "attempts": 2, "keeps": keeps}
    async with scheduler:
        await scheduler.create_task(params, "x")
        task = await scheduler.wait_task("x", 20)
        parts = await parts_of(scheduler, "x")
        lines = await lines_of(scheduler, "x")
    once: list[object] = [f"a {ODD}", {"n": 1}, "b"]
    before, text = task.result
    assert joined(before) == once
    assert text == f"a {ODD}b" * (2 if keeps else 1)
    assert joined(data_of(parts)) == (joined(once + once) if keeps else once)
    assert {part.attempt for part in parts} == ({1, 2} if keeps else {2})
    assert [(line.text, line.attempt) for line in lines] == [("attempt 1", 1), ("attempt 2", 2)]


def joined(data: list[object]) -> list[object]:
    """Join neighbours that are texts."""
    found: list[object] = []
    for one in data:
        if isinstance(one, str) and found and isinstance(found[-1], str):
            found[-1] += one
        else:
            found.append(one)
    return found


@pytest.mark.parametrize("in_child", [False, True])
async def test_a_stream_that_is_full_refuses_a_part_and_breaks_nothing_else(
    config: TaskBackoffConfig, in_child: bool
) -> None:
    config.task.max_stream_bytes = 1050
    config.threadpool.proc_mode = "process" if in_child else "thread"
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handlers.overflows)
    async with scheduler:
        await scheduler.create_task({}, "x")
        task = await scheduler.wait_task("x", 20)
        text = text_of(await parts_of(scheduler, "x"))
    wanted = "1000 the stream of the task is full: it may have 1050 bytes (option max_stream_bytes)"
    assert (task.status, task.result) == ("completed", wanted)
    assert text == "x" * 1000


async def test_a_child_may_emit_a_large_text_of_any_characters(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handlers.emits_control_characters)
    async with scheduler:
        await scheduler.create_task({}, "x", max_retry_count=0)
        parts = await parts_of(scheduler, "x")
        task = await scheduler.get_task("x")
    assert task is not None and task.status == "completed"
    assert text_of(parts) == "\x00" * 1_000_000


async def test_what_a_killed_child_has_emitted_stays(config: TaskBackoffConfig) -> None:
    config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config)
    scheduler.set_custom_task_handler(handlers.emits_and_hangs)
    async with scheduler:
        await scheduler.create_task({}, "x", max_retry_count=0, exec_timeout=0.3)
        parts = await parts_of(scheduler, "x")
        task = await scheduler.get_task("x")
    assert task is not None and task.error is not None and task.error.type == "timeout"
    assert len(text_of(parts)) > 1 and set(text_of(parts)) == {"x"}


async def test_a_handler_may_emit_what_json_and_utf8_can_hold(scheduler: TaskBackoffScheduler) -> None:
    refused: list[str] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        for wrong in (object(), {1: 2}, float("nan"), "\ud800", ["\ud800"], b"bytes"):
            with pytest.raises(PayloadError) as error:
                task.emit(wrong)
            refused.append(error.value.option)
        for line in (5, None, "\ud800"):
            with pytest.raises(PayloadError, match="line: expected text"):
                task.log(line)  # type: ignore[arg-type] - wrong on purpose
        task.emit("right")

    async with scheduler:
        await scheduler.create_task({}, "x")
        assert text_of(await parts_of(scheduler, "x")) == "right"
    assert refused == ["part", "part", "part", "part", "part[0]", "part"]


async def test_outside_of_a_handler_nothing_is_emitted(scheduler: TaskBackoffScheduler, server: Server) -> None:
    kept: list[TaskEntity] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        kept.append(task)
        task.emit("during")

    async with scheduler:
        await scheduler.create_task({}, "x")
        await scheduler.wait_task("x", 20)
        read = await scheduler.get_task("x")
        assert read is not None
        for task in (kept[0], read):
            task.emit("after")
            task.log("after")
            task.keep_emitted()
            assert task.emitted == () and task.emitted_text() == ""
        assert text_of(await parts_of(scheduler, "x")) == "during"
    assert not server.client.exists(KEYS.log("x"))


# Attempts


async def test_a_new_attempt_begins_anew_and_its_readers_are_told(scheduler: TaskBackoffScheduler) -> None:
    seen, second = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.emit(f"begun by {task.attempt}")
        if task.attempt == 1:
            await seen.wait()
            raise ValueError
        await second.wait()
        task.emit(" and ended")

    async with scheduler:
        await scheduler.create_task({}, "x")
        old: list[StreamPart] = []
        with anyio.fail_after(20):
            async for part in scheduler.stream("x"):
                old.append(part)
                seen.set()
                if part.attempt == 2:
                    second.set()
        fresh = await parts_of(scheduler, "x")
        resumed = await parts_of(scheduler, "x", old[0].id)
        after_mark = await parts_of(scheduler, "x", resumed[0].id)
    assert [(part.data, part.attempt, part.restarted) for part in old[:3]] == [
        ("begun by 1", 1, False),
        (None, 2, True),
        ("begun by 2", 2, False),
    ]
    assert text_of(old) == text_of(fresh) == "begun by 2 and ended"
    assert not any(part.restarted for part in fresh)
    assert resumed[0].restarted and resumed[1:] == fresh == after_mark


async def test_an_attempt_may_go_on_where_the_last_one_ended(scheduler: TaskBackoffScheduler) -> None:
    before: list[tuple[object, ...]] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        before.append(task.emitted)
        task.keep_emitted()
        task.keep_emitted()
        task.emit(f"{task.attempt}")
        if task.attempt < 4:
            raise ValueError
        return task.emitted_text()

    async with scheduler:
        await scheduler.create_task({}, "x")
        parts = await parts_of(scheduler, "x")
        task = await scheduler.get_task("x")
    assert task is not None and task.result == "1234"
    assert [(part.data, part.attempt, part.restarted) for part in parts] == [(f"{n}", n, False) for n in range(1, 5)]
    assert before == [(), ("1",), ("1", "2"), ("1", "2", "3")]
    assert [part.id.partition("-")[2] for part in parts] == ["1", "2", "3", "4"]


async def test_it_must_say_so_before_its_first_part(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        task.emit("x")
        task.keep_emitted()
        return ""

    async with scheduler:
        await scheduler.create_task({}, "x", max_retry_count=0)
        task = await scheduler.wait_task("x", 20)
    assert task.error is not None
    assert task.error.message == "keep_emitted() must be called before the first emit() of an attempt"


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_last_attempt_that_emits_nothing(scheduler: TaskBackoffScheduler, keeps: bool) -> None:
    """The stream is what the last attempt says: nothing, or what it has kept."""
    seen = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        if task.attempt == 1:
            task.emit("half")
            await seen.wait()
            raise ValueError
        if keeps:
            task.keep_emitted()

    async with scheduler:
        await scheduler.create_task({}, "x")
        parts: list[StreamPart] = []
        with anyio.fail_after(20):
            async for part in scheduler.stream("x"):
                parts.append(part)
                seen.set()
        late = await parts_of(scheduler, "x")
        resumed = await parts_of(scheduler, "x", parts[0].id)
    assert text_of(parts) == text_of(late) == ("half" if keeps else "")
    assert [part.restarted for part in parts] == ([False] if keeps else [False, True])
    assert resumed == parts[1:]


async def test_a_retry_by_hand_begins_anew_and_keeps_the_log(scheduler: TaskBackoffScheduler, server: Server) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.log(f"attempt {task.attempt}")
        if task.attempt == 1:
            task.emit("of the first")
            raise ValueError
        assert task.emitted == ()
        task.emit("of the second")

    async with scheduler:
        await scheduler.create_task({}, "x", max_retry_count=0)
        (first,) = await parts_of(scheduler, "x")
        await scheduler.pause()
        assert await scheduler.retry_task("x")
        assert not server.client.exists(KEYS.stream("x"))
        assert server.client.ttl(KEYS.log("x")) > 600 and server.client.ttl(KEYS.task("x")) == -1
        mark = await anext(scheduler.stream("x", after=first.id))
        await scheduler.resume()
        second = await parts_of(scheduler, "x", mark.id)
        lines = await lines_of(scheduler, "x")
    assert mark.restarted and [part.data for part in second] == ["of the second"]
    assert [line.text for line in lines] == ["attempt 1", "attempt 2"]


# Tokens, repetitions, losses


async def test_an_attempt_that_has_lost_its_lease_writes_nothing(config: TaskBackoffConfig, server: Server) -> None:
    store = QueueStore.of(config)
    scheduler = TaskBackoffScheduler(config)
    await scheduler.create_task({}, "x")
    old = await claim(store)
    assert await store.streams.emit([emitted(old, "of the old one", lines=["1 old"])]) == [1]
    assert await scheduler.mark_task_failed("x")
    await scheduler.update_task("x", delay=0)
    assert await store.streams.emit([emitted(old, "while it waits", place=2)]) == [None]
    new = await claim(store, "w2")
    assert await store.streams.emit([emitted(old, "late", place=2, lines=["2 late"])]) == [None]
    assert await store.streams.emit([emitted(new, "of the new one")]) == [1]
    assert await store.streams.emit([emitted(old, "late", place=2), emitted(old, "late", place=1)]) == [None, None]
    assert await scheduler.mark_task_completed("x")
    before = server.client.dump(KEYS.stream("x"))
    assert await store.streams.emit([emitted(new, "after the end", place=2, lines=["3 late"])]) == [None]
    assert server.client.dump(KEYS.stream("x")) == before
    assert text_of(await parts_of(scheduler, "x")) == "of the new one"
    assert [line.text for line in await lines_of(scheduler, "x")] == ["old"]
    await scheduler.shutdown()
    await store.aclose()


async def test_a_repeated_call_adds_nothing_and_a_gap_is_told(config: TaskBackoffConfig, server: Server) -> None:
    """The reply of a call may be lost, and a copy of it may arrive late. The server may lose its newest data."""
    store, scheduler = QueueStore.of(config), TaskBackoffScheduler(config)
    await scheduler.create_task({}, "x")
    held = await claim(store)
    one, two = emitted(held, "a", "b", lines=["1 a", "2 b"]), emitted(held, "b", "c", place=2)
    for _ in range(3):
        assert await store.streams.emit([one]) == [2]
    assert await store.streams.emit([two]) == await store.streams.emit([two]) == [3]
    assert await store.streams.emit([one]) == [3], "a late copy"
    assert text_of(await _so_far(store, "x")) == "abc"
    assert server.client.xlen(KEYS.log("x")) == 2
    last = server.client.xrevrange(KEYS.stream("x"), count=2)
    server.client.xdel(KEYS.stream("x"), *(entry for entry, _ in last))
    assert await store.streams.emit([emitted(held, "d", place=4)]) == [1], "two parts are missing"
    assert text_of(await _so_far(store, "x")) == "a"
    server.client.delete(KEYS.stream("x"))
    assert await store.streams.emit([emitted(held, "d", place=4)]) == [0]
    assert await store.streams.emit([emitted(held, "a", "b", "c", "d")]) == [4]
    assert text_of(await _so_far(store, "x")) == "abcd"
    assert 0 < server.client.ttl(KEYS.stream("x")) <= 30 * 86_400
    assert await scheduler.mark_task_completed("x")
    await scheduler.shutdown()
    await store.aclose()


@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("lost_parts", [1, 3])
async def test_parts_that_are_lost_just_before_the_end_are_sent_before_it(
    scheduler: TaskBackoffScheduler, server: Server, lost_parts: int, keeps: bool
) -> None:
    """The server has acknowledged all parts, and comes back without the last ones before it gets the settle."""
    sent, lost = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        if task.attempt == 1:
            task.emit("of the first ")
            raise ValueError
        if keeps:
            task.keep_emitted()
        for n in range(2 if keeps else 3):
            task.emit({"n": n})
        sent.set()
        await lost.wait()
        return "done"

    async with scheduler:
        await scheduler.create_task({}, "x")
        await sent.wait()
        await eventually(lambda: server.client.xlen(KEYS.stream("x")) == 3, "all parts are there")
        stored = server.client.xrange(KEYS.stream("x"))
        server.client.delete(KEYS.stream("x"))
        for number, fields in stored[:-lost_parts]:
            server.client.xadd(KEYS.stream("x"), fields, number)
        lost.set()
        assert (await scheduler.wait_task("x", 20)).result == "done"
        whole = ["of the first ", {"n": 0}, {"n": 1}] if keeps else [{"n": 0}, {"n": 1}, {"n": 2}]
        assert data_of(await parts_of(scheduler, "x")) == whole


async def test_a_settle_is_refused_while_parts_are_missing(config: TaskBackoffConfig, server: Server) -> None:
    """Also if the stream that is there is another attempt's. One that a person has overwritten stops nothing."""
    store, scheduler = QueueStore.of(config), TaskBackoffScheduler(config)

    async def settle(held: Claimed, parts: int) -> str:
        done = Settle(held.task.task_id, "lease", held.token, Settlement.complete("1", held.policy), parts=parts)
        request = BatchRequest((done,), 0, may_claim_suspect=False, request_id=f"{next(NUMBERS)}", exchange=0)
        return (await store.exchange.send(request, "w")).answers[0]

    await scheduler.create_task({}, "x")
    old = await claim(store)
    assert await store.streams.emit([emitted(old, "a", "b", "c")]) == [3]
    assert await scheduler.mark_task_failed("x")
    await scheduler.update_task("x", delay=0)
    new = await claim(store)
    assert await settle(new, 2) == "unsent", "the parts are those of the attempt before"
    assert await store.streams.emit([emitted(new, "a")]) == [1]
    assert await settle(new, 2) == "unsent"
    assert await settle(old, 3) == "lost"
    assert await store.streams.emit([emitted(new, "b", place=2)]) == [2]
    assert await settle(new, 2) == "ok"
    assert await settle(new, 2) == "already"
    await scheduler.create_task({}, "y")
    overwritten = await claim(store)
    assert await store.streams.emit([emitted(overwritten, "a")]) == [1]
    server.client.set(KEYS.stream("y"), "mine")
    assert await settle(overwritten, 1) == "ok"
    await scheduler.shutdown()
    await store.aclose()


async def test_a_reader_that_has_more_than_the_server_begins_anew(config: TaskBackoffConfig, server: Server) -> None:
    """The server has lost the last parts, and another attempt has gone on from there, or the task has ended."""
    store, scheduler = QueueStore.of(config), TaskBackoffScheduler(config)
    await scheduler.create_task({}, "x")
    old = await claim(store)
    assert await store.streams.emit([emitted(old, "a", "b", "c")]) == [3]
    had = await _so_far(store, "x")
    await scheduler.mark_task_failed("x")
    await scheduler.update_task("x", delay=0)
    server.client.xdel(KEYS.stream("x"), had[2].id)
    new = await claim(store, "w2")
    assert await store.streams.emit([emitted(new, "new", place=3, continues=True)]) == [3]
    assert [part.data for part in await _so_far(store, "x", had[1].id)] == ["new"]
    mark, *parts = await _so_far(store, "x", had[2].id)
    assert mark.restarted and text_of(parts) == "abnew"
    server.client.xdel(KEYS.stream("x"), parts[2].id)
    assert await _so_far(store, "x", parts[2].id) == [], "the worker may send it again"
    assert await scheduler.mark_task_completed("x")
    assert await parts_of(scheduler, "x", parts[1].id) == []
    again = await parts_of(scheduler, "x", parts[2].id)
    assert again[0].restarted and text_of(again) == "ab"
    await scheduler.shutdown()
    await store.aclose()


async def test_a_first_part_that_is_void_when_its_message_comes(scheduler: TaskBackoffScheduler) -> None:
    """A message may be late: the attempt has lost its task meanwhile."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.emit("new")

    await scheduler.create_task({}, "x")
    reader = asyncio.create_task(parts_of(scheduler, "x"))
    client = scheduler._client
    await eventually(lambda: client._waiters and client._waiters._readers, "it reads")
    assert client._waiters is not None
    client._waiters._wake("\nx\n5-1\nt1\nold\nlines")
    async with scheduler:
        old, *parts = await reader
    assert (old.id, old.data) == ("5-1", "old\nlines")
    assert parts[0].restarted and text_of(parts) == "new"


async def test_earlier_parts_are_read_once_though_the_server_loses_some_meanwhile(
    config: TaskBackoffConfig, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scheduler = QueueStore.of(config), TaskBackoffScheduler(config)
    await scheduler.create_task({}, "x")
    held = await claim(store)
    large = ["a" * 40_000, "b" * 40_000, "c" * 40_000]  # two reads
    assert await store.streams.emit([emitted(held, *large)]) == [3]
    read = store.streams.read_first

    def lose() -> None:
        _, *others = server.client.xrange(KEYS.stream("x"))
        server.client.xdel(KEYS.stream("x"), "1-1", *(number for number, _ in others))

    async def losing(places: list[Place]) -> Any:
        found = await read(places)
        await anyio.to_thread.run_sync(lose)
        return found

    monkeypatch.setattr(store.streams, "read_first", losing)
    assert await scheduler.mark_task_completed("x")
    assert [part.text for part in await store.streams.all_parts("x")] == large[:1]
    await scheduler.shutdown()
    await store.aclose()


async def _so_far(store: QueueStore, task_id: str, after: str = "") -> list[StreamPart]:
    (read,) = await store.streams.read_first([Place(PARTS, task_id, after)])
    assert read is not None
    return read.parts()


@pytest.mark.parametrize("lost_parts", [1, 3, 4])
async def test_parts_that_the_server_has_lost_are_sent_again(
    scheduler: TaskBackoffScheduler, server: Server, lost_parts: int
) -> None:
    """After a failover, say. If parts of an earlier attempt are lost, too, readers begin anew."""
    sent, lost = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        if task.attempt == 1:
            task.emit("kept ")
            raise ValueError
        task.keep_emitted()
        for word in ("one ", "two ", "three "):
            task.emit(word)
            await anyio.sleep(0.05)
        sent.set()
        await lost.wait()
        task.emit("four")

    async with scheduler:
        await scheduler.create_task({}, "x")
        await sent.wait()
        stored = server.client.xrange(KEYS.stream("x"))
        seen = [number.decode() for number, _ in stored]
        assert len(seen) == 4
        server.client.delete(KEYS.stream("x"))
        for number, fields in stored[:-lost_parts]:
            server.client.xadd(KEYS.stream("x"), fields, number)
        lost.set()
        parts = await parts_of(scheduler, "x")
        assert text_of(parts) == "kept one two three four"
        for number, last in enumerate(seen, 1):
            rest = await parts_of(scheduler, "x", last)
            if number == 1 and lost_parts == 4:
                assert rest[0].restarted and rest[1:] == parts
            else:
                assert rest == parts[number:]


async def test_the_end_of_a_task_never_overtakes_its_parts(scheduler: TaskBackoffScheduler) -> None:
    """Handlers end right after their last part, complete or fail; readers see the end and have all."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        for n in range(task.task_params["parts"]):
            task.emit({"n": n})
        task.log("the last line")
        if task.task_params["fails"]:
            raise ValueError

    seen: dict[str, int] = {}

    async def read(task_id: str) -> None:
        seen[task_id] = len(await parts_of(scheduler, task_id))
        assert len(await lines_of(scheduler, task_id)) == 1

    async with scheduler, anyio.create_task_group() as group:
        for n in range(60):
            params = {"parts": n % 7, "fails": n % 2 == 1}
            await scheduler.create_task(params, f"t{n}", max_retry_count=0)
            group.start_soon(read, f"t{n}")
    assert seen == {f"t{n}": n % 7 for n in range(60)}


async def test_an_attempt_is_not_settled_while_its_parts_are_on_their_way(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not sent yet, sent without an answer, and sent once more."""
    asked, go_on = anyio.Event(), anyio.Event()
    calls: list[int] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.emit("a")
        await asked.wait()
        task.emit("b")

    async with scheduler:
        streams = scheduler._service.parts.context.store.streams  # type: ignore[union-attr] - it runs
        emit = streams.emit

        async def slow(given: Any) -> Any:
            calls.append(len(given))
            asked.set()
            if len(calls) < 3:
                raise StorageUnavailableError("no answer")
            await go_on.wait()
            return await emit(given)

        monkeypatch.setattr(streams, "emit", slow)
        await scheduler.create_task({}, "x")
        await eventually(lambda: len(calls) == 3, "the call is repeated")
        task = await scheduler.get_task("x")
        assert task is not None and task.status == "processing"
        assert await _so_far(scheduler._client.store, "x") == []
        go_on.set()
        assert text_of(await parts_of(scheduler, "x")) == "ab"


async def test_an_attempt_that_is_handed_back_is_continued_by_another_worker(config: TaskBackoffConfig) -> None:
    """It uses no retry, and its task has no count of any comeback."""
    config.scheduler.shutdown_grace = 0
    began = anyio.Event()
    first, second = TaskBackoffScheduler(config), TaskBackoffScheduler(config)

    @first.set_custom_task_handler
    async def begin(task: TaskEntity) -> None:
        task.emit("begun ")
        task.emit({"n": 1})
        began.set()
        await anyio.sleep_forever()

    @second.set_custom_task_handler
    async def end(task: TaskEntity) -> object:
        before = task.emitted
        task.keep_emitted()
        task.emit("ended")
        return [*before]

    async with first:
        await first.create_task({}, "x")
        await began.wait()
    async with second:
        parts = await parts_of(second, "x")
        task = await second.get_task("x")
    assert task is not None and (task.retry_count, task.lost_count, task.attempt) == (0, 0, 2)
    assert task.result == ["begun ", {"n": 1}]
    assert data_of(parts) == ["begun ", {"n": 1}, "ended"]


async def test_a_full_server_takes_the_parts_of_running_tasks(scheduler: TaskBackoffScheduler, server: Server) -> None:
    began, full = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        began.set()
        await full.wait()
        for n in range(10):
            task.emit(f"{n} ")
            task.log("line")
            await anyio.sleep(0.03)

    async with scheduler:
        await scheduler.create_task({}, "x")
        await began.wait()
        server.client.config_set("maxmemory", 1)
        try:
            full.set()
            await eventually(lambda: server.client.hget(KEYS.task("x"), "s") == b"completed", "it is completed")
        finally:
            server.client.config_set("maxmemory", 0)
        assert text_of(await parts_of(scheduler, "x")) == "0 1 2 3 4 5 6 7 8 9 "
        assert len(await lines_of(scheduler, "x")) == 10


async def test_a_task_of_a_kind_has_a_stream(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.task
    async def complete(task: TaskEntity, prompt: str) -> str:
        task.emit(prompt)
        current = current_task()
        assert current is not None
        current.emit("!")
        return task.emitted_text()

    async with scheduler:
        handle = await complete.create("a cat")
        parts = [part async for part in handle.stream()]
        assert text_of(parts) == "a cat!" == await handle.result(20)
        assert [part async for part in handle.stream(after=parts[-1].id)] == []


async def test_a_server_that_refuses_parts_stops_no_task(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A right that is missing, say. Tasks complete without a stream, and the log says so."""

    async def refused(*_: object) -> None:
        raise StorageDeniedError("no right to XADD")

    raised: list[str] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str:
        task.emit("lost")
        if task.task_params:
            with pytest.raises(StreamError) as error, anyio.fail_after(20):
                while True:
                    await anyio.sleep(0.01)
                    task.emit("lost, too")
            raised.append(str(error.value))
        return "done"

    async with scheduler:
        monkeypatch.setattr(scheduler._service.parts.context.store.streams, "emit", refused)  # type: ignore[union-attr] - it runs
        await scheduler.create_task({}, "x")
        await scheduler.create_task({"waits": 1}, "y")
        assert [(await scheduler.wait_task(task_id, 20)).result for task_id in "xy"] == ["done"] * 2
    assert raised == ["the server has refused parts: no right to XADD"]
    assert any("the server refuses the streams of" in record.getMessage() for record in caplog.records)


async def test_a_stream_that_a_person_has_overwritten_is_the_trouble_of_its_task_alone(
    config: TaskBackoffConfig, server: Server
) -> None:
    store, scheduler = QueueStore.of(config), TaskBackoffScheduler(config)
    for task_id in ("x", "y"):
        await scheduler.create_task({}, task_id)
    x, y = await claim(store), await claim(store)
    assert await store.streams.emit([emitted(x, "a"), emitted(y, "a")]) == [1, 1]
    server.client.set(KEYS.stream("x"), "mine")
    server.client.set(KEYS.log("x"), "mine")
    both = [emitted(x, "b", place=2, lines=["1 l"]), emitted(y, "b", place=2, lines=["1 l"])]
    assert await store.streams.emit(both) == [None, 2]
    assert text_of(await _so_far(store, "y")) == "ab"
    server.client.delete(KEYS.stream("x"))
    server.client.xadd(KEYS.stream("x"), {"t1": "a"}, "9999999999999999-1")
    assert await store.streams.emit([emitted(x, "b", place=2), emitted(y, "c", place=3)]) == [None, 3]
    for task_id in ("x", "y"):
        assert await scheduler.mark_task_completed(task_id)
        assert server.client.ttl(KEYS.stream(task_id)) > 0
    await scheduler.shutdown()
    await store.aclose()


# With the task


async def emit_in(scheduler: TaskBackoffScheduler, *task_ids: str) -> None:
    """Run a task that emits a part and logs a line; the scheduler goes on."""
    for task_id in task_ids:
        await scheduler.create_task({}, task_id)
        await scheduler.wait_task(task_id, 20)


def handles(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.emit("part")
        task.log("line")


def left(server: Server, task_id: str) -> list[int]:
    """Return the times to live of a task, its stream and its log."""
    return [server.client.ttl(key(task_id)) for key in (KEYS.task, KEYS.stream, KEYS.log)]


async def test_what_was_emitted_is_kept_as_long_as_the_task(scheduler: TaskBackoffScheduler, server: Server) -> None:
    began, running = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.emit("part")
        task.log("line")
        match task.task_id:
            case "failed":
                raise ValueError
            case "waits":
                raise ValueError
            case "running" | "marked":
                (running if task.task_id == "running" else began).set()
                await anyio.sleep_forever()

    async with scheduler:
        for task_id in ("completed", "failed", "running", "marked"):
            await scheduler.create_task({}, task_id, max_retry_count=0, result_ttl=300, failed_ttl=700)
        await scheduler.create_task({}, "waits", backoff_interval=60, result_ttl=300)
        for event in (began, running):
            await event.wait()
        await eventually(
            lambda: server.client.exists(KEYS.log("running"), KEYS.log("marked")) == 2, "both have emitted"
        )
        assert await scheduler.cancel_task("running", running=True)
        assert await scheduler.mark_task_completed("marked")

        async def is_back() -> bool:
            task = await scheduler.get_task("waits")
            return task is not None and task.retry_count == 1

        await eventually(is_back, "it waits for its retry")
        assert await scheduler.cancel_task("waits")
        for task_id in ("completed", "failed", "running", "marked", "waits"):
            await scheduler.wait_task(task_id, 20)
            wanted = 700 if task_id == "failed" else 300
            own, *others = left(server, task_id)
            assert own <= wanted and all(own - 1 <= one <= own for one in others), task_id


async def test_what_was_emitted_goes_with_the_task(config: TaskBackoffConfig, server: Server) -> None:
    config.task.max_finished = 2
    scheduler = TaskBackoffScheduler(config)
    handles(scheduler)
    async with scheduler:
        await emit_in(scheduler, "evicted", "purged", "deleted")
        assert left(server, "evicted") == [-2] * 3
        assert await scheduler.delete_task("deleted") and left(server, "deleted") == [-2] * 3
        assert await scheduler.purge_tasks("completed") == 1 and left(server, "purged") == [-2] * 3


async def test_what_was_emitted_goes_with_a_task_that_waits(scheduler: TaskBackoffScheduler, server: Server) -> None:
    """Between two attempts: deleted, purged, or expired at a deadline, which a claim or the reaper finds."""

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.emit("part")
        task.log("line")
        raise ValueError

    async with scheduler:
        for task_id in ("deleted", "purged"):
            await scheduler.create_task({}, task_id, backoff_interval=60)
        await scheduler.create_task({}, "expired", backoff_interval=0.5, start_within=0.4)

        async def wait_all() -> bool:
            tasks = [await scheduler.get_task(task_id) for task_id in ("deleted", "purged", "expired")]
            return all(task is not None and (task.retry_count or task.status.finished) for task in tasks)

        await eventually(wait_all, "all have come back")
        await scheduler.wait_task("expired", 20)
        await eventually(lambda: server.client.ttl(KEYS.stream("expired")) <= 600, "a worker notes it")
        own, *others = left(server, "expired")
        assert all(own - 1 <= one <= own for one in others)
        assert await scheduler.delete_task("deleted") and left(server, "deleted") == [-2] * 3
        assert await scheduler.purge_tasks("pending") == 1 and left(server, "purged") == [-2] * 3


async def test_a_task_that_is_created_anew_has_nothing_of_the_old_one(
    config: TaskBackoffConfig, server: Server
) -> None:
    """Even where a stream was left behind."""
    store, scheduler = QueueStore.of(config), TaskBackoffScheduler(config)
    await scheduler.create_task({}, "x")
    held = await claim(store)
    await store.streams.emit([emitted(held, "old")])
    (old,) = await _so_far(store, "x")
    server.client.delete(KEYS.task("x"), KEYS("leases"))
    await scheduler.create_task({}, "x")
    assert await _so_far(store, "x") == []
    new = await claim(store)
    assert await store.streams.emit([emitted(new, "new")]) == [1]
    assert text_of(await _so_far(store, "x")) == "new"
    mark, part = (await store.streams.read_first([Place(PARTS, "x", old.id)]))[0].parts()  # type: ignore[union-attr] - the task is there
    assert mark.restarted and part.data == "new"
    assert await scheduler.mark_task_completed("x")
    await scheduler.shutdown()
    await store.aclose()


async def test_a_task_that_emits_nothing_costs_nothing(scheduler: TaskBackoffScheduler, server: Server) -> None:
    attempts: list[Any] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        attempts.extend(scheduler._service.parts.slots.attempts.values())  # type: ignore[union-attr] - it runs

    async with scheduler:
        server.client.config_resetstat()
        await scheduler.create_task({}, "x")
        await scheduler.wait_task("x", 20)
        used = {name.removeprefix("cmdstat_") for name in server.client.info("commandstats")}
    assert attempts and "emission" not in vars(attempts[0]) and "earlier" not in vars(attempts[0])
    assert not used & {"xadd", "xlen", "xrange", "xrevrange"}
    assert not server.client.hexists(KEYS.task("x"), "b")


# Logs


async def test_a_log_has_the_last_lines_of_all_attempts(scheduler: TaskBackoffScheduler) -> None:
    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        for n in range(700):
            task.log(f"line {n} of {task.attempt}{ODD}")
        if task.attempt < 2:
            raise ValueError

    async with scheduler:
        await scheduler.create_task({}, "x")
        task = await scheduler.wait_task("x", 20)
        lines = await lines_of(scheduler, "x")
        assert 1000 <= len(lines) < 1200
        assert [line.text for line in lines[-700:]] == [f"line {n} of 2{ODD}" for n in range(700)]
        assert {line.attempt for line in lines} == {1, 2}
        assert lines == sorted(lines, key=lambda line: line.at)
        assert task.finished_at is not None and all(task.created_at <= line.at <= task.finished_at for line in lines)
        assert await lines_of(scheduler, "x", last=10) == lines[-10:]
        assert await lines_of(scheduler, "x", after=lines[-5].id) == lines[-4:]
        for wrong in (0, 1001, True, "5"):
            with pytest.raises(InvalidValueError, match="last: expected a whole number from 1 to 1000, or None"):
                await lines_of(scheduler, "x", last=wrong)
        with pytest.raises(InvalidValueError, match="last: expected either after or last"):
            await lines_of(scheduler, "x", last=5, after=lines[0].id)


async def test_a_line_is_cut_and_a_log_can_be_followed(scheduler: TaskBackoffScheduler) -> None:
    go_on = anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        task.log("x" * 5000)
        await go_on.wait()
        task.log("")
        task.log("the end")

    async with scheduler:
        await scheduler.create_task({}, "x")
        seen: list[str] = []
        with anyio.fail_after(20):
            async for line in scheduler.logs("x", follow=True, last=5):
                seen.append(line.text)
                go_on.set()
    assert seen == ["x" * 2000, "", "the end"]


def test_the_errors_can_be_told_apart() -> None:
    assert issubclass(StreamFullError, StreamError)
