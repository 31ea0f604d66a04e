"""The calls on many tasks: what they find, what they change, and what they leave alone."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import anyio
import pytest
from support import Server, eventually

from maas_backoff import (
    InvalidValueError,
    Selection,
    SelectionProgress,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
    TaskStatus,
)
from maas_backoff.client import selected
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.reader import Reader

pytestmark = pytest.mark.anyio


async def _ids(scheduler: TaskBackoffScheduler, selection: Selection, limit: int = 100) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = await scheduler.list_tasks(selection, limit=limit, cursor=cursor, brief=True)
        assert len(page.tasks) <= limit
        found += [task.task_id for task in page.tasks]
        cursor = page.cursor
        if cursor is None:
            return found


async def _fail(scheduler: TaskBackoffScheduler, *ids: str, reason: str = "CUDA error") -> None:
    for task_id in ids:
        assert await scheduler.mark_task_failed(task_id, reason, retry=False)


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selected, "READ_AT_ONCE", 7)


async def test_labels_are_stored_and_select_tasks(scheduler: TaskBackoffScheduler, server: Server) -> None:
    await scheduler.create_task({}, "plain")
    await scheduler.create_task({}, "both", labels=["nightly", "customer=acme", "nightly"])
    await scheduler.create_task({}, "one", labels=("customer=bolt",), max_retry_count=1)
    task = await scheduler.get_task("both")
    assert task is not None and task.labels == ("nightly", "customer=acme")
    assert TaskEntity.from_dict(task.to_dict()) == task and task.to_dict()["labels"] == ["nightly", "customer=acme"]
    assert server.client.hkeys("maas:{test}:t:plain") == [b"p"], "no byte without labels"
    assert await _ids(scheduler, Selection(labels=["nightly"])) == ["both"]
    assert sorted(await _ids(scheduler, Selection(labels=["customer"]))) == ["both", "one"]
    assert await _ids(scheduler, Selection(labels=["customer=bolt"])) == ["one"]
    for wrong in ("nightly", ["a b"], [f"l{n}" for n in range(9)], [5]):
        with pytest.raises(InvalidValueError, match="labels"):
            await scheduler.create_task({}, "wrong", labels=wrong)  # type: ignore[arg-type] - wrong on purpose


async def test_a_kind_and_a_configuration_have_labels_of_their_own(
    config: TaskBackoffConfig,
) -> None:
    config.task.labels = "team=a, nightly"  # type: ignore[assignment] - as the environment gives them
    scheduler = TaskBackoffScheduler(config)

    @scheduler.task(labels=["team=b"])
    async def render() -> tuple[str, ...]:
        from maas_backoff import current_task

        task = current_task()
        assert task is not None and task.worker is not None
        return task.labels

    async with scheduler:
        assert await (await render.create()).result(10) == ("team=b",)
        plain = await scheduler.get_task(await scheduler.create_task({}, delay=60))
        assert plain is not None and plain.labels == ("team=a", "nightly")
        bare = await scheduler.get_task(await scheduler.create_task({}, delay=60, labels=[]))
        assert bare is not None and bare.labels == ()


async def test_a_listing_goes_through_all_states_in_pages(scheduler: TaskBackoffScheduler, small_pages: None) -> None:
    ids = [f"t{n:02}" for n in range(40)]
    await scheduler.create_tasks([TaskSpec({"n": n}, task_id, labels=["all"]) for n, task_id in enumerate(ids)])
    await _fail(scheduler, *ids[:12])
    for task_id in ids[12:15]:
        await scheduler.cancel_task(task_id)
        await scheduler.mark_task_processing(ids[int(task_id[1:]) + 3])
    for limit in (1, 4, 7, 50):
        found = await _ids(scheduler, Selection(labels=["all"]), limit)
        assert sorted(found) == ids and found[22:25] == ids[15:18], "pending ones first, then running ones"
    assert await scheduler.count_tasks(Selection()) == 40
    assert await scheduler.count_tasks(Selection(status=("failed", "cancelled"))) == 15
    assert await scheduler.count_tasks(Selection(params='"n":3')) == 11
    assert await scheduler.count_tasks(Selection(error="cuda")) == 12
    assert await _ids(scheduler, Selection(id_prefix="t0", status="failed")) == ids[:10]
    page = await scheduler.list_tasks(Selection(status="failed"), limit=5, reverse=True)
    assert {task.task_id for task in page.tasks} <= set(ids[:12]) and len(page.tasks) == 5
    with pytest.raises(InvalidValueError, match="cursor"):
        await scheduler.list_tasks(Selection(status="pending"), cursor=page.cursor)
    with pytest.raises(InvalidValueError, match="limit"):
        await scheduler.list_tasks(Selection(), limit=0)


async def test_a_listing_looks_at_a_bounded_number_of_tasks(
    scheduler: TaskBackoffScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selected, "MOST_READ", 100)
    await scheduler.create_tasks([TaskSpec({}, f"t{n}", delay=60 + n) for n in range(250)])
    page = await scheduler.list_tasks(Selection(id_prefix="t249"), limit=10)
    assert page.tasks == [] and page.cursor is not None
    assert await _ids(scheduler, Selection(id_prefix="t249"), 10) == ["t249"]


@pytest.mark.usefixtures("small_pages")
async def test_tasks_are_cancelled_retried_and_deleted_in_pages(scheduler: TaskBackoffScheduler) -> None:
    """Tasks of one call have neighbouring scores, and many tasks that end together have the same one."""
    ids = [f"t{n:03}" for n in range(230)]
    await scheduler.create_tasks([TaskSpec({}, one, tenant="a" if n % 3 else "b") for n, one in enumerate(ids)])
    mine = Selection(tenant="a")
    seen: list[SelectionProgress] = []
    assert await scheduler.cancel_tasks(mine, dry_run=True, on_progress=seen.append) == 153
    assert seen[-1] == SelectionProgress(230, 153, 0) and len(seen) > 30
    assert (await scheduler.get_queue_stats()).cancelled_count == 0
    assert await scheduler.cancel_tasks(mine) == 153 and await scheduler.cancel_tasks(mine) == 0
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.cancelled_count) == (77, 153)
    assert await scheduler.retry_tasks(Selection(id_prefix="t1", status="cancelled")) == 67
    assert await scheduler.retry_tasks() == 0
    assert await scheduler.delete_tasks(Selection(status="cancelled", id_prefix="t0"), dry_run=True) == 66
    assert await scheduler.delete_tasks(Selection(status="cancelled", id_prefix="t0")) == 66
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.cancelled_count) == (144, 20)
    assert await scheduler.delete_tasks(Selection()) == 164
    assert await scheduler.count_tasks(Selection()) == 0
    assert not await scheduler.tenants()


@pytest.mark.usefixtures("small_pages")
async def test_tasks_are_rescheduled_each_once(scheduler: TaskBackoffScheduler) -> None:
    ids = [f"t{n:02}" for n in range(30)]
    await scheduler.create_tasks([TaskSpec({"n": 1}, one, delay=3600 * (n % 2)) for n, one in enumerate(ids)])
    assert await scheduler.update_tasks(Selection(due_from=timedelta()), delay=0, dry_run=True) == 15
    assert await scheduler.update_tasks(Selection(), delay=0) == 15, "others are due already"
    assert (await scheduler.get_queue_stats()).scheduled_count == 0
    assert await scheduler.update_tasks(Selection(), delay=60) == 30
    stats = await scheduler.get_queue_stats()
    assert (stats.pending_count, stats.scheduled_count) == (30, 30)
    assert await scheduler.update_tasks(Selection(id_prefix="t0"), priority=-5) == 10
    assert await scheduler.update_tasks(Selection(id_prefix="t0"), priority=-5) == 0
    task = await scheduler.get_task("t03")
    assert task is not None and task.priority == -5 and task.task_params == {"n": 1}
    assert task.waiting_for is not None and task.waiting_for.startswith("due at")
    for options in ({}, {"delay": -1}, {"max_retry_count": 3}):
        with pytest.raises(InvalidValueError):
            await scheduler.update_tasks(Selection(), **options)  # type: ignore[arg-type] - any options, also wrong ones


async def test_a_task_that_has_changed_meanwhile_is_changed_only_if_it_matches_still(
    scheduler: TaskBackoffScheduler, config: TaskBackoffConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = TaskBackoffScheduler(config.copy())
    await scheduler.create_tasks([TaskSpec({}, one) for one in ("same", "again", "other", "gone", "back")])
    await _fail(scheduler, "same", "again", "other", "gone", "back")
    scan = Reader.scan

    async def then_change(reader: Reader, *args: Any) -> object:
        found = await scan(reader, *args)
        monkeypatch.setattr(Reader, "scan", scan)
        await other.delete_task("gone")
        await other.retry_task("back")
        for task_id, reason in (("again", "CUDA error"), ("other", "timeout")):
            await other.retry_task(task_id)
            await other.mark_task_processing(task_id)  # a new token
            await other.mark_task_failed(task_id, reason, retry=False)
        return found

    monkeypatch.setattr(Reader, "scan", then_change)
    assert await scheduler.delete_tasks(Selection(status="failed", error="cuda")) == 2
    assert await scheduler.get_task("same") is None and await scheduler.get_task("again") is None
    tasks = [await scheduler.get_task(one) for one in ("other", "back")]
    assert [task and task.status for task in tasks] == ["failed", "pending"]
    await other.shutdown()


async def test_a_retry_ends_while_workers_fail_tasks_at_once(scheduler: TaskBackoffScheduler) -> None:
    runs: list[str] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        runs.append(task.task_id)
        raise ValueError("no")

    async with scheduler:
        ids = await scheduler.create_tasks([TaskSpec({}, max_retry_count=0) for _ in range(60)])
        for task_id in ids:
            await scheduler.wait_task(task_id, 20)
        with anyio.fail_after(20):
            assert await scheduler.retry_tasks(Selection(error_type="ValueError")) == 60
        await eventually(lambda: len(runs) == 120, "each ran twice")


async def test_running_tasks_that_end_meanwhile_hide_no_others(
    scheduler: TaskBackoffScheduler, small_pages: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their leases end at the same time, and the place of a reader among them is a number."""
    ids = [f"{n:02}" for n in range(30)]
    await scheduler.create_tasks([TaskSpec({}, task_id) for task_id in ids])
    store, scan, scans = scheduler._client.store, Reader.scan, itertools.count(1)
    request = BatchRequest((), 30, may_claim_suspect=False, request_id="1", exchange=0)
    assert len((await store.exchange.send(request, "worker")).claimed) == 30

    async def after_ends(reader: Reader, *arguments: Any) -> Any:
        if next(scans) == 3:  # the worker has settled those that were cancelled first
            await store.connection.server.execute("ZREM", store.connection.keys("leases"), *ids[:7])
        return await scan(reader, *arguments)

    monkeypatch.setattr(Reader, "scan", after_ends)
    assert await scheduler.cancel_tasks(Selection(status="processing"), running=True) == 30


async def test_running_tasks_are_found_by_their_worker_and_cancelled(scheduler: TaskBackoffScheduler) -> None:
    count = itertools.count()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        next(count)
        await anyio.sleep(60)

    async with scheduler:
        await scheduler.create_tasks([TaskSpec({}, f"r{n}") for n in range(3)])
        await scheduler.create_task({}, "later", delay=60)
        await eventually(lambda: next(count) > 3, "all run")
        (worker,) = await scheduler.workers()
        mine = Selection(worker=worker.name)
        task = await scheduler.get_task("r0")
        assert task is not None and task.worker == worker.name
        assert sorted(await _ids(scheduler, Selection(worker=worker.host))) == ["r0", "r1", "r2"]
        assert await scheduler.cancel_tasks(mine) == 0, "they run"
        assert await scheduler.cancel_tasks(mine, running=True, dry_run=True) == 3
        assert await scheduler.cancel_tasks(mine, running=True) == 3
        for n in range(3):
            ended = await scheduler.wait_task(f"r{n}", 20)
            assert ended.status is TaskStatus.CANCELLED and ended.worker == worker.name
        assert await scheduler.count_tasks(Selection(status="pending")) == 1


async def test_a_call_refuses_states_that_it_cannot_change(config: TaskBackoffConfig) -> None:
    config.storage.port = 1
    unreachable = TaskBackoffScheduler(config)
    calls: list[Callable[[], Any]] = [
        lambda: unreachable.cancel_tasks(Selection(status="failed")),
        lambda: unreachable.cancel_tasks(Selection(status="processing")),
        lambda: unreachable.retry_tasks(Selection(status="pending")),
        lambda: unreachable.retry_tasks(Selection(error="x"), error="y"),
        lambda: unreachable.delete_tasks(Selection(status="processing")),
        lambda: unreachable.update_tasks(Selection(status="failed"), delay=1),
        lambda: unreachable.delete_tasks("failed"),  # type: ignore[arg-type] - wrong on purpose
        lambda: unreachable.count_tasks(None),  # type: ignore[arg-type] - wrong on purpose
    ]
    for call in calls:
        with pytest.raises(InvalidValueError):
            await call()
    await unreachable.shutdown()


@pytest.mark.long
@pytest.mark.rare
@pytest.mark.timeout(300)
async def test_a_hundred_thousand_tasks(scheduler: TaskBackoffScheduler) -> None:
    """Other calls are answered meanwhile, and little memory is used."""
    import tracemalloc

    for start in range(0, 100_000, 10_000):
        await scheduler.create_tasks(
            [TaskSpec({}, f"t{n}", labels=["odd"] if n % 2 else []) for n in range(start, start + 10_000)]
        )
    slowest = 0.0

    async def look() -> None:
        nonlocal slowest
        while True:
            sent = anyio.current_time()
            await scheduler.get_task("t0")
            slowest = max(slowest, anyio.current_time() - sent)
            await anyio.sleep(0.01)

    tracemalloc.start()
    async with anyio.create_task_group() as group:
        group.start_soon(look)
        before, _ = tracemalloc.get_traced_memory()
        assert await scheduler.cancel_tasks(Selection(labels=["odd"])) == 50_000
        _, peak = tracemalloc.get_traced_memory()
        group.cancel_scope.cancel()
    tracemalloc.stop()
    print(f"the slowest call took {slowest * 1000:.0f} ms; at most {(peak - before) / 1e6:.1f} MB were used")
    assert peak - before < 20e6
    assert await scheduler.delete_tasks(Selection(labels=["odd"])) == 50_000
    assert await scheduler.purge_tasks("pending") == 50_000
