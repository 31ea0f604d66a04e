"""A call by hand that is sent again, as its reply was lost, is done once, and is answered as the first time."""

from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest
from proxy import Proxy, kind
from support import Server, load_scripts, quick_config

from maas_backoff import TaskBackoffScheduler, TaskStatus
from maas_backoff.domain.settlement import Settlement
from maas_backoff.store import writer as module
from maas_backoff.store.batch import Settle
from maas_backoff.store.reader import Reader

pytestmark = pytest.mark.anyio

Call = Callable[[TaskBackoffScheduler], Awaitable[object]]


@pytest.fixture
async def pair(any_server: Server) -> AsyncIterator[tuple[TaskBackoffScheduler, TaskBackoffScheduler]]:
    """One who makes a call, and somebody else."""
    one, other = (TaskBackoffScheduler(quick_config(any_server.storage)) for _ in range(2))
    async with one, other:
        yield one, other


class Repeated:
    """Makes a call twice under one id, as if its first reply had been lost, and another thing in between."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch = monkeypatch
        self._calls = 0

    async def __call__(self, who: TaskBackoffScheduler, call: Call, between: Awaitable[object]) -> list[object]:
        self._calls += 1
        name = f"call-{self._calls}"
        with self._patch.context() as patch:
            patch.setattr(module, "new_call", lambda: name)
            first = await call(who)
        await between
        with self._patch.context() as patch:
            patch.setattr(module, "new_call", lambda: name)
            return [first, await call(who)]


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> Repeated:
    return Repeated(monkeypatch)


async def test_a_repeated_delete_leaves_the_task_that_was_created_anew(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], repeated: Repeated
) -> None:
    one, other = pair
    await one.create_task({"n": 1}, "x", delay=60)
    assert await repeated(one, lambda s: s.delete_task("x"), other.create_task({"n": 2}, "x", delay=60)) == [True, True]
    task = await other.get_task("x")
    assert task is not None and task.task_params == {"n": 2}
    assert await one.delete_task("x") and not await one.delete_task("x")


async def test_a_repeated_failure_is_counted_once(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], repeated: Repeated
) -> None:
    """Though another attempt has failed in between; the history has both, and none besides."""
    one, other = pair
    await one.create_task({}, "y", max_retry_count=9)

    async def another_attempt() -> None:
        await other.mark_task_processing("y")
        await other.mark_task_failed("y", "another")

    assert await repeated(one, lambda s: s.mark_task_failed("y", "once"), another_attempt()) == [True, True]
    task = await other.get_task("y")
    assert task is not None and task.retry_count == 2
    total = (await one.get_history()).total
    assert (total.retried, dict(total.errors)) == (2, {"failed": 2})


async def test_a_repeated_completion_is_true_though_the_task_is_gone(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler],
) -> None:
    """The answer that a task is live comes from the first time: `find_live` reads, and is not part of the call."""
    one, other = pair
    await one.create_task({}, "x")
    store = one._client.store
    found = await store.reader.find_live("x")
    assert found is not None
    settle = found.settle(Settlement.complete("1", found.policy))
    assert await store.writer.settle(settle, settle_id="same") == "ok"
    await other.delete_task("x")
    await other.create_task({}, "x")
    assert await store.writer.settle(settle, settle_id="same") == "ok"
    task = await other.get_task("x")
    assert task is not None and task.status == "pending"


async def test_a_repeated_retry_is_true_though_the_task_has_ended_again(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], repeated: Repeated
) -> None:
    one, other = pair
    await one.create_task({}, "z")
    await one.mark_task_failed("z", "for good", retry=False)
    assert await repeated(one, lambda s: s.retry_task("z"), other.mark_task_failed("z", "again", retry=False)) == [
        True,
        True,
    ]
    task = await other.get_task("z")
    assert task is not None and task.status == "failed"
    await one.retry_task("z")
    await one.mark_task_failed("z", "third", retry=False)
    again = other.mark_task_failed("z", "fourth", retry=False)
    store = one._client.store

    settle = Settle("z", "finished", None, Settlement.release(one.config.task.policy))
    first = await store.writer.settle_all([settle], "same batch")
    await again
    assert first == await store.writer.settle_all([settle], "same batch") == ["ok"]
    task = await other.get_task("z")
    assert task is not None and task.status == "failed"


async def test_a_repeated_cancel_does_not_stop_the_next_attempt(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], repeated: Repeated, any_server: Server
) -> None:
    """The task was cancelled, taken up again, and claimed, before the request came a second time."""
    one, other = pair
    await one.create_task({}, "x", delay=60)
    assert await repeated(
        one, lambda s: s._client.store.writer.request_cancel("x"), other.update_task("x", priority=1)
    ) == [
        "pending",
        "pending",
    ]
    running = {"s": "processing", "t": "7", "n": "1", "y": "1 worker"}

    async def next_attempt() -> None:
        any_server.client.hdel("maas:{test}:t:x", "x")
        any_server.client.delete("maas:{test}:ctl:worker")

    any_server.client.hset("maas:{test}:t:x", mapping=running)
    answers = await repeated(one, lambda s: s._client.store.writer.request_cancel("x"), next_attempt())
    assert answers == ["processing", "processing"]
    assert not any_server.client.hexists("maas:{test}:t:x", "x")
    assert not any_server.client.exists("maas:{test}:ctl:worker")


async def test_a_repeated_pause_undoes_no_resume(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], repeated: Repeated
) -> None:
    one, other = pair
    assert await repeated(one, lambda s: s.pause(), other.resume()) == [True, True]
    assert not (await one.get_queue_stats()).paused
    await one.pause()
    assert await repeated(one, lambda s: s.resume(), other.pause()) == [True, True]
    assert (await one.get_queue_stats()).paused
    await one.resume()


async def test_a_repeated_pause_of_a_kind_undoes_no_resume(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], repeated: Repeated
) -> None:
    one, other = pair
    assert await repeated(one, lambda s: s.pause(kind="render"), other.resume(kind="render")) == [True, True]
    assert not (await one.get_queue_stats()).paused_kinds
    await one.pause(kind="render")
    assert await repeated(one, lambda s: s.resume(kind="render"), other.pause(kind="render")) == [True, True]
    assert list((await one.get_queue_stats()).paused_kinds) == ["render"]
    await one.resume(kind="render")


async def test_a_repeated_purge_deletes_no_further_tasks(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], repeated: Repeated
) -> None:
    one, other = pair
    await one.create_tasks([{}] * 3)
    store = one._client.store
    answers = await repeated(one, lambda _: store.writer.purge(TaskStatus.PENDING), other.create_tasks([{}] * 2))
    assert answers == [(3, False), (3, False)]
    assert (await other.get_queue_stats()).pending_count == 2


async def test_a_repeated_change_moves_nothing_that_was_moved_since(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], repeated: Repeated
) -> None:
    one, other = pair
    await one.create_task({}, "x", delay=60)
    answers = await repeated(one, lambda s: s.update_task("x", delay=600), other.update_task("x", delay=6000))
    assert answers == [True, True]
    task = await other.get_task("x")
    assert task is not None and task.next_execute_time is not None and task.created_at is not None
    assert (task.next_execute_time - task.created_at).total_seconds() > 5000


async def test_answers_to_calls_are_kept_for_a_while_and_no_longer(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], any_server: Server
) -> None:
    one, _ = pair
    await one.create_task({}, "x")
    await one.cancel_task("x")
    await one.delete_task("x")
    await one.pause()
    await one.resume()
    await one.purge_tasks("failed")
    keys = any_server.client.keys("maas:{test}:call:*")
    assert len(keys) == 5 and all(30 <= any_server.client.ttl(key) <= 600 for key in keys)


@pytest.mark.parametrize("lost", [1, 3])
async def test_a_lost_reply_changes_no_answer(server: Server, lost: int) -> None:
    """Each call in turn, whose reply is lost once or three times."""
    load_scripts(server)
    async with Proxy(server.port) as proxy:
        config = quick_config(proxy.storage)
        config.storage.timeout = 20
        async with TaskBackoffScheduler(config) as one:
            calls: list[tuple[str, Call, object]] = [
                ("settle", lambda s: s.mark_task_processing("a"), True),
                ("settle", lambda s: s.mark_task_failed("a", "no", retry=False), True),
                ("settle", lambda s: s.retry_task("a"), True),
                ("settle", lambda s: s.update_task("a", delay=60), True),
                ("settle", lambda s: s.mark_task_completed("a", 1), True),
                ("settle", lambda s: s.mark_task_completed("a", 1), False),
                ("settle", lambda s: s.cancel_task("b"), True),
                ("settle", lambda s: s.retry_tasks("cancelled"), 1),
                ("purge", lambda s: s.purge_tasks("pending"), 1),
                ("delete", lambda s: s.delete_task("a"), True),
                ("delete", lambda s: s.delete_task("a"), False),
                ("pause", lambda s: s.pause(), True),
                ("pause", lambda s: s.pause(), False),
                ("pause", lambda s: s.resume(), True),
            ]
            await one.create_task({}, "a")
            await one.create_task({}, "b")
            for name, call, expected in calls:
                left = lost

                def drops(command: list[bytes], name: str = name) -> bool:
                    nonlocal left
                    left -= kind(command) == name
                    return kind(command) == name and left >= 0

                proxy.drops = drops
                assert await call(one) == expected, name


async def test_a_mark_says_true_only_if_it_was_stored(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel that comes between the look at the task and the mark wins, and the mark says False."""
    one, other = pair
    find_live = Reader.find_live
    for name, mark in (
        ("completed", lambda: one.mark_task_completed("completed", 12)),
        ("failed", lambda: one.mark_task_failed("failed", "no", retry=False)),
        ("retried", lambda: one.mark_task_failed("retried", "no")),
        ("taken", lambda: one.mark_task_processing("taken")),
    ):
        await one.create_task({}, name, delay=60)

        async def and_then_cancel(store: Reader, task_id: str) -> object:
            found = await find_live(store, task_id)
            monkeypatch.setattr(Reader, "find_live", find_live)
            assert await other.cancel_task(task_id)
            return found

        if name == "taken":
            await other.cancel_task(name)
        else:
            monkeypatch.setattr(Reader, "find_live", and_then_cancel)
        assert not await mark()
        task = await one.get_task(name)
        assert task is not None and (task.status, task.result, task.error) == ("cancelled", None, None)


async def test_marks_that_race_with_a_cancel_tell_who_has_won(
    pair: tuple[TaskBackoffScheduler, TaskBackoffScheduler],
) -> None:
    one, other = pair
    for n in range(50):
        task_id = await one.create_task({}, delay=60)
        said: dict[str, bool] = {}

        async def mark(task_id: str = task_id, n: int = n, said: dict[str, bool] = said) -> None:
            said["marked"] = await one.mark_task_completed(task_id, n)

        async def cancel(task_id: str = task_id, said: dict[str, bool] = said) -> None:
            said["cancelled"] = await other.cancel_task(task_id)

        async with anyio.create_task_group() as group:
            group.start_soon(mark)
            group.start_soon(cancel)
        task = await one.get_task(task_id)
        assert task is not None
        assert said == {"marked": task.status == "completed", "cancelled": task.status == "cancelled"}
