"""Workers and GPUs that a person takes out of use, and who runs which task."""

from collections.abc import AsyncIterator

import anyio
import pytest
from support import Server, eventually

from maas_backoff import InvalidValueError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, Worker
from maas_backoff.domain.waiting import waiting_for

pytestmark = pytest.mark.anyio


@pytest.fixture
async def other(config: TaskBackoffConfig) -> AsyncIterator[TaskBackoffScheduler]:
    """A client without a worker."""
    other = TaskBackoffScheduler(config.copy())
    yield other
    await other.shutdown()


async def _is_quiet(scheduler: TaskBackoffScheduler) -> bool:
    return all(worker.quiet for worker in await scheduler.workers())


@pytest.mark.long
async def test_a_quiet_worker_claims_nothing_and_its_attempts_go_on(
    config: TaskBackoffConfig, other: TaskBackoffScheduler, server: Server
) -> None:
    """Also if tasks come that would wake it; those are for other workers."""
    config.scheduler.worker_name = "box"
    scheduler = TaskBackoffScheduler(config)
    go_on, running = anyio.Event(), anyio.Event()

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> str | None:
        if task.task_id == "long":
            running.set()
            await go_on.wait()
        return task.worker

    async with scheduler:
        await other.create_task({}, "long")
        await running.wait()
        assert [one.name[:4] for one in await other.quiet_workers("box")] == ["box-"]
        assert await other.quiet_workers("nobody") == [] and await other.quiet_workers("bo") == []
        await eventually(lambda: _is_quiet(other), "it says so")
        for n in range(5):
            await other.create_task({}, f"t{n}")
        await anyio.sleep(0.3)
        stats = await other.get_queue_stats()
        assert (stats.pending_count, stats.processing_count) == (5, 1)
        task = await other.get_task("t0")
        assert task is not None and task.waiting_for == "worker: all that could run it are quiet"
        assert await other.explain() == "The only worker is quiet: 5 tasks due, 1 task running."
        assert server.client.zcard("maas:{test}:marker") == 1, "for another worker"
        go_on.set()
        assert (await other.wait_task("long", 10)).status == "completed"
        assert len(await other.quiet_workers("box", on=False)) == 1
        for n in range(5):
            ended = await other.wait_task(f"t{n}", 20)
            assert ended.result == ended.worker and ended.worker is not None
        await eventually(lambda: _awake(other), "it says so")


async def _awake(scheduler: TaskBackoffScheduler) -> bool:
    return not await _is_quiet(scheduler)


@pytest.mark.long
async def test_another_worker_runs_what_a_quiet_one_leaves(config: TaskBackoffConfig) -> None:
    workers = [TaskBackoffScheduler(config.copy()) for _ in range(2)]
    for scheduler in workers:
        scheduler.set_custom_task_handler(_worker_of)
    async with workers[0], workers[1]:
        one, _ = await workers[0].workers()
        assert [found.name for found in await workers[0].quiet_workers(one.name)] == [one.name]

        async def is_quiet() -> bool:
            return [found.quiet for found in await workers[0].workers() if found.name == one.name] == [True]

        await eventually(is_quiet, "it says so")
        for n in range(20):
            ended = await workers[0].wait_task(await workers[0].create_task({"n": n}), 10)
            assert ended.worker != one.name


async def _worker_of(task: TaskEntity) -> str | None:
    return task.worker


async def test_names_are_checked(other: TaskBackoffScheduler) -> None:
    for wrong in ("", None, 5):
        with pytest.raises(InvalidValueError, match="worker: expected a name"):
            await other.quiet_workers(wrong)  # type: ignore[arg-type] - wrong on purpose
        with pytest.raises(InvalidValueError, match="gpu: expected a name"):
            await other.quarantine_gpu(wrong)  # type: ignore[arg-type] - wrong on purpose
    with pytest.raises(InvalidValueError, match="there is none"):
        await other.release_gpu("GPU-a")


async def test_a_gpu_without_a_live_worker_is_named_by_its_whole_uuid(
    other: TaskBackoffScheduler, server: Server
) -> None:
    """Its ledger is kept for as long as the quarantine lasts, also if others write it."""
    uuid = "GPU-12345678-1234-1234-1234-123456789abc"
    assert await other.quarantine_gpu(uuid, "burnt") == uuid
    ledgers = other._client._ledgers
    await ledgers.need(uuid, 1, 5)
    assert server.client.ttl(f"maas:gpu:{{{uuid}}}") > 300_000_000
    assert (await ledgers.read(uuid)).quarantine == "by hand: burnt"
    with pytest.raises(InvalidValueError, match="reason"):
        await other.quarantine_gpu(uuid, "a\nb")
    assert await other.release_gpu(uuid) and not await other.release_gpu(uuid)
    assert not (await ledgers.read(uuid)).quarantine
    assert server.client.ttl(f"maas:gpu:{{{uuid}}}") <= 86_400


def test_a_name_means_a_worker() -> None:
    worker = Worker("gpu-7-123-abc", host="gpu-7.local")
    assert all(map(worker.is_named, ["gpu-7-123-abc", "gpu-7", "gpu-7-123", "gpu-7.local"]))
    assert not any(map(worker.is_named, ["gp", "gpu-7-12", "gpu-7.loc", "abc"]))
    assert waiting_for(0, 1, None, [Worker("a", quiet=True), Worker("b")]) == "slot"
