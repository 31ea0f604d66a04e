"""Tasks start where there is room, and only there; they say why they wait; what they held is given back."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
import psutil
import pytest
from gpu import handlers as gpu_handlers
from support import Server, eventually, quick_config, started_processes

from maas_backoff import (
    GpuConfig,
    HandlerError,
    InvalidValueError,
    ResultEntity,
    Retry,
    StorageError,
    StorageUnavailableError,
    TaskBackoffConfig,
    TaskBackoffScheduler,
    TaskEntity,
    TaskSpec,
    TaskStatus,
)
from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.domain.kind import Kinds
from maas_backoff.gate import others, reports
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.gate import Gate
from maas_backoff.gate.grant import Grant
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.placement import Placement
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store import server as servers
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.exchange import Exchange
from maas_backoff.store.ledger import Ledgers, Reservation
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.writer import Writer
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio

NewUuid = Callable[[], str]


class OutOfMemoryError(Exception):
    """As PyTorch names it."""


@pytest.fixture
def gpu_config(config: TaskBackoffConfig) -> TaskBackoffConfig:
    """Each task wants 4 GiB unless it says something else."""
    config.task.min_gpu_memory_gb = 4
    config.gpu.gpu_settle_time = 0.2
    return config


@pytest.fixture
def two(new_uuid: NewUuid) -> FakeGpuProbe:
    """16 GiB, and 16 of which another process has 12."""
    return FakeGpuProbe([FakeGpu(new_uuid()), FakeGpu(new_uuid(), other_processes_gb=12)])


def worker(
    config: TaskBackoffConfig, probe: FakeGpuProbe, handler: Callable[[TaskEntity], Any]
) -> TaskBackoffScheduler:
    scheduler = TaskBackoffScheduler(config, gpu_probe=probe)
    scheduler.set_custom_task_handler(handler)
    return scheduler


def gpu_of(task: TaskEntity) -> str:
    assert task.gpu is not None
    return task.gpu.uuid


async def reserved(scheduler: TaskBackoffScheduler, uuid: str) -> int:
    """MiB that the ledger has."""
    ledger = await scheduler._client._ledgers.read(uuid)
    return sum(one.mib for one in ledger.reservations.values())


async def test_forty_tasks_of_4_gib_on_16_and_on_4(gpu_config: TaskBackoffConfig, two: FakeGpuProbe) -> None:
    """At most four at once on the first, one on the second; all complete, each with its device; all is given back."""
    roomy, tight = (gpu.uuid for gpu in two.gpus)
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()

    async def handler(task: TaskEntity) -> list[object]:
        assert task.gpu is not None
        uuid = task.gpu.uuid
        now[uuid] += 1
        most[uuid] = max(most[uuid], now[uuid])
        await anyio.sleep(0.1)  # on a busy machine, too, all that may run at once do
        now[uuid] -= 1
        return [uuid, task.gpu.index, task.gpu.memory_gb]

    async with worker(gpu_config, two, handler) as scheduler:
        ids = await scheduler.create_tasks([{"n": n} for n in range(40)])
        results = [tuple((await scheduler.wait_task(task_id, 30)).result) for task_id in ids]
        assert set(results) == {(roomy, 0, 4), (tight, 1, 4)}
        assert most == {roomy: 4, tight: 1}
        await eventually(lambda: _all_given_back(scheduler, two), "all is given back")


async def _all_given_back(scheduler: TaskBackoffScheduler, probe: FakeGpuProbe) -> bool:
    return not any([await reserved(scheduler, gpu.uuid) for gpu in probe.gpus])


async def test_two_queues_count_on_the_same_memory_once(
    server: Server, gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """Three workers of two queues on one device of 16 GiB: never more than four tasks of 4 GiB among them."""
    gpu = FakeGpu(new_uuid())
    now, most = 0, 0

    async def handler(task: TaskEntity) -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(0.1)
        now -= 1

    configs = [gpu_config.copy() for _ in range(3)]
    configs[2].task.biz_prefix = "other"
    workers = [worker(config, FakeGpuProbe([gpu]), handler) for config in configs]
    for one in workers:
        await one.start()
    ids = {one: await one.create_tasks([{}] * 20) for one in workers[1:]}
    for one, theirs in ids.items():
        for task_id in theirs:
            await one.wait_task(task_id, 30)
    assert 3 <= most <= 4
    for one in workers:
        await one.shutdown()


async def test_a_task_that_fits_nowhere_says_so_and_keeps_nobody_waiting(
    gpu_config: TaskBackoffConfig, two: FakeGpuProbe
) -> None:
    """In `waiting_for` and in the stats; smaller ones pass; it may be cancelled or deleted."""

    async def handler(task: TaskEntity) -> str:
        return gpu_of(task)

    async with worker(gpu_config, two, handler) as scheduler:
        await scheduler.create_task({}, "huge", min_gpu_memory_gb=64)
        two.gpus[0].utilization = two.gpus[1].utilization = 90
        await scheduler.create_task({}, "busy", max_gpu_utilization=10)
        await scheduler.create_task({}, "small")
        await scheduler.wait_task("small", 20)
        await eventually(lambda: _waits_for(scheduler, "huge", "largest: 16 GiB"), "it says so")
        huge = await scheduler.get_task("huge")
        assert huge is not None
        assert huge.waiting_for == "gpu: needs 64 GiB free, more than any device has (the largest: 16 GiB)"
        await eventually(lambda: _waits_for(scheduler, "busy", "a utilisation of 90 %"), "it says so")
        stats = await scheduler.get_queue_stats()
        assert (stats.pending_count, stats.gpu_count, stats.unfit_count) == (2, 2, 1)
        assert await scheduler.cancel_task("huge")
        assert await scheduler.delete_task("busy")
        stats = await scheduler.get_queue_stats()
        assert (stats.pending_count, stats.gpu_count, stats.unfit_count) == (0, 0, 0)


async def _waits_for(scheduler: TaskBackoffScheduler, task_id: str, text: str) -> bool:
    task = await scheduler.get_task(task_id)
    return task is not None and text in (task.waiting_for or "")


async def test_what_there_is_in_the_way_is_told(gpu_config: TaskBackoffConfig, two: FakeGpuProbe) -> None:
    """How much the best device has free, by what is promised and not used yet."""
    done = anyio.Event()

    async def handler(task: TaskEntity) -> None:
        await done.wait()

    async with worker(gpu_config, two, handler) as scheduler:
        await scheduler.create_tasks([TaskSpec({}, "first", min_gpu_memory_gb=10), TaskSpec({}, "second")])
        await eventually(lambda: _running(scheduler, 2), "both run")
        await scheduler.create_task({}, "third", min_gpu_memory_gb=9)
        await eventually(lambda: _waits_for(scheduler, "third", "best device has 6 GiB free"), "it says so")
        done.set()
        await scheduler.wait_task("third", 20)


async def _running(scheduler: TaskBackoffScheduler, count: int) -> bool:
    return (await scheduler.get_queue_stats()).processing_count == count


async def test_tasks_without_a_demand_and_ready_ones_know_their_position(config: TaskBackoffConfig) -> None:
    done = anyio.Event()

    async def handler(task: TaskEntity) -> None:
        await done.wait()

    config.threadpool.concurrency = 1
    async with worker(config, FakeGpuProbe([]), handler) as scheduler:
        await scheduler.create_task({}, "runs")
        await eventually(lambda: _running(scheduler, 1), "it runs")
        await scheduler.create_tasks([TaskSpec({}, f"waits {n}") for n in range(3)])
        await scheduler.create_task({}, "gpu", min_gpu_memory_gb=1)
        found = [await scheduler.get_task(task_id) for task_id in ("waits 0", "waits 2", "gpu")]
        reasons = [task.waiting_for for task in found if task is not None]
        assert reasons[:2] == ["slot: next in line", "slot: 2 ahead of it"]
        assert reasons[2] == "gpu: needs 1 GiB free, and no running worker has a GPU"
        done.set()
        await scheduler.cancel_task("gpu")


async def test_a_task_that_ran_out_of_memory_comes_back_elsewhere_for_more(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """Half as much again, on another device, with no retry used; the handler sees how often; then retries count."""
    gpu_config.task.max_ooms = 2
    gpu_config.task.max_retry_count = 0
    probe = FakeGpuProbe([FakeGpu(new_uuid()), FakeGpu(new_uuid())])
    seen: list[tuple[str, float, int, int]] = []

    async def handler(task: TaskEntity) -> None:
        assert task.gpu is not None
        seen.append((task.gpu.uuid, task.gpu.memory_gb, task.oom_count, task.retry_count))
        raise OutOfMemoryError("tried to allocate 5 GiB")

    async with worker(gpu_config, probe, handler) as scheduler:
        await scheduler.create_task({}, "x")
        task = await scheduler.wait_task("x", 20)
    assert [(memory, ooms, retries) for _, memory, ooms, retries in seen] == [(4, 0, 0), (6, 1, 0), (9, 2, 0)]
    assert seen[0][0] != seen[1][0]
    assert (task.status, task.oom_count, task.retry_count) == (TaskStatus.FAILED, 2, 0)
    assert [attempt.error.type for attempt in task.attempts] == ["OutOfMemoryError"] * 3


async def test_it_asks_for_no_more_than_can_be_had(gpu_config: TaskBackoffConfig, two: FakeGpuProbe) -> None:
    """12 GiB, half as much again, and 16 at most: where it fits alone."""
    asked: list[float] = []

    async def handler(task: TaskEntity) -> None:
        assert task.gpu is not None
        asked.append(task.gpu.memory_gb)
        if task.oom_count < 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")

    async with worker(gpu_config, two, handler) as scheduler:
        await scheduler.create_task({}, "x", min_gpu_memory_gb=12)
        assert (await scheduler.wait_task("x", 20)).status is TaskStatus.COMPLETED
    assert asked == [12, 16, 16]


async def test_a_handler_may_come_back_with_smaller_params(gpu_config: TaskBackoffConfig, two: FakeGpuProbe) -> None:
    """Retry(params=…) for want of memory uses no retry; the id still stands for the params it was created with."""
    gpu_config.task.max_retry_count = 0
    seen: list[tuple[dict[str, Any], float]] = []

    async def handler(task: TaskEntity) -> object:
        assert task.gpu is not None
        seen.append((task.task_params, task.gpu.memory_gb))
        try:
            if task.task_params["batch"] > 2:
                raise OutOfMemoryError
        except OutOfMemoryError:
            raise Retry(params={"batch": task.task_params["batch"] // 2}) from None
        return task.task_params

    async with worker(gpu_config, two, handler) as scheduler:
        await scheduler.create_task({"batch": 8}, "x", exec_timeout=20)
        task = await scheduler.wait_task("x", 20)
        assert [params["batch"] for params, _ in seen] == [8, 4, 2]
        assert {memory for _, memory in seen} == {4}, "smaller params need no more memory"
        assert (task.result, task.task_params, task.retry_count) == ({"batch": 2}, {"batch": 2}, 0)
        assert await scheduler.create_task({"batch": 8}, "x") == "x"


async def test_params_of_a_retry_are_checked(config: TaskBackoffConfig) -> None:
    """A result that JSON cannot hold, or that is too large, fails the task at once and says why."""
    config.task.max_payload_bytes = 1000

    async def handler(task: TaskEntity) -> None:
        raise Retry(0, params={"x": object()} if task.task_params["how"] == "object" else {"x": "y" * 1000})

    async with worker(config, FakeGpuProbe([]), handler) as scheduler:
        for how in ("object", "large"):
            await scheduler.create_task({"how": how}, how)
            task = await scheduler.wait_task(how, 20)
            assert task.status is TaskStatus.FAILED and task.error is not None
            assert task.error.type == "not_serializable" and "params" in task.error.message


async def test_new_params_without_a_gpu(config: TaskBackoffConfig) -> None:
    """They stay for all later attempts, by whatever they fail, and beside the task's own options."""
    seen: list[object] = []

    async def handler(task: TaskEntity) -> None:
        seen.append((task.task_params, task.max_retry_count))
        if len(seen) == 1:
            raise Retry(0, params={"n": 2})
        if len(seen) == 2:
            raise ValueError

    async with worker(config, FakeGpuProbe([]), handler) as scheduler:
        await scheduler.create_task({"n": 1}, "x", max_retry_count=7)
        task = await scheduler.wait_task("x", 20)
    assert seen == [({"n": 1}, 7), ({"n": 2}, 7), ({"n": 2}, 7)]
    assert task.retry_count == 2


async def test_what_earlier_tasks_left_in_the_worker_s_own_process_is_room_for_the_next_ones(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """A caching allocator gives nothing back. Memory that the process had before its first task stays its own."""
    gpu = FakeGpu(new_uuid(), total_gb=16, processes={os.getpid(): 2})
    probe = FakeGpuProbe([gpu])
    scheduler = TaskBackoffScheduler(gpu_config, gpu_probe=probe)
    rooms: list[float] = []

    @scheduler.set_custom_task_handler
    async def handle(task: TaskEntity) -> None:
        rooms.append(task.task_params["needs"])
        gpu.processes[os.getpid()] = max(gpu.processes[os.getpid()], 2 + task.task_params["needs"])

    async with scheduler:
        for needs in (8, 12, 14):
            task_id = await scheduler.create_task({"needs": needs}, min_gpu_memory_gb=needs)
            assert (await scheduler.wait_task(task_id, 20)).status is TaskStatus.COMPLETED
        too_much = await scheduler.create_task({"needs": 15}, min_gpu_memory_gb=15)
        with pytest.raises(TimeoutError):
            await scheduler.wait_task(too_much, 1)
    assert rooms == [8, 12, 14]


async def test_a_device_on_which_tasks_fail_is_left_alone_and_tried_again(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """Three tasks fail there with errors of CUDA: it is shut, they run elsewhere with no retry used; it is tried."""
    gpu_config.task.max_retry_count = 0
    gpu_config.gpu.gpu_quarantine = 1
    gpu_config.gpu.tasks_per_gpu = 1
    good, bad = FakeGpu(new_uuid()), FakeGpu(new_uuid())
    broken = True
    ran: Counter[str] = Counter()

    async def handler(task: TaskEntity) -> None:
        ran[gpu_of(task)] += 1
        await anyio.sleep(0.01)
        if broken and gpu_of(task) == bad.uuid:
            raise RuntimeError("CUDA error: unspecified launch failure")

    async with worker(gpu_config, FakeGpuProbe([good, bad]), handler) as scheduler:
        ids = await scheduler.create_tasks([{"n": n} for n in range(30)])
        tasks = [await scheduler.wait_task(task_id, 30) for task_id in ids]
        assert all(task.status is TaskStatus.COMPLETED and task.retry_count == 0 for task in tasks)
        assert ran[bad.uuid] >= 3
        health = {gpu.uuid: gpu.health for gpu in await scheduler.gpus()}
        assert health[bad.uuid].startswith("quarantine: RuntimeError: CUDA error")
        broken = False
        await eventually(lambda: _works_again(scheduler, bad.uuid), "it is let back in")
    assert ran[bad.uuid] > 3


async def test_a_device_in_quarantine_by_hand_takes_no_tasks_until_it_is_released(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """Other devices do. The beginning of a UUID is enough, and a success of a running attempt ends no quarantine."""
    gpu_config.gpu.tasks_per_gpu = 1
    good, sick = FakeGpu(new_uuid()), FakeGpu(new_uuid())
    ran: Counter[str] = Counter()
    go_on = anyio.Event()

    async def handler(task: TaskEntity) -> None:
        ran[gpu_of(task)] += 1
        if "waits" in task.task_params:
            await go_on.wait()

    async with worker(gpu_config, FakeGpuProbe([good, sick]), handler) as scheduler:
        first = await scheduler.create_tasks([{"waits": n} for n in range(2)])
        await eventually(lambda: ran.total() == 2, "both devices are used")
        assert await scheduler.quarantine_gpu(sick.uuid[:12], "smells of smoke") == sick.uuid
        go_on.set()
        for task_id in first:
            await scheduler.wait_task(task_id, 20)
        for task_id in await scheduler.create_tasks([{"n": n} for n in range(10)]):
            ended = await scheduler.wait_task(task_id, 20)
            assert ended.gpu is not None and ended.gpu.uuid == good.uuid, "the last attempt's device is shown"
        health = {gpu.uuid: gpu.health for gpu in await scheduler.gpus()}
        assert health[sick.uuid] == "quarantine: by hand: smells of smoke"
        assert await scheduler.release_gpu(sick.uuid) and not await scheduler.release_gpu(sick.uuid)
        await eventually(lambda: _works_again(scheduler, sick.uuid) if ran[sick.uuid] < 2 else True, "it is used again")
        with pytest.raises(InvalidValueError, match="gpu: expected the UUID of a GPU of a live worker"):
            await scheduler.quarantine_gpu("GPU-")


async def _works_again(scheduler: TaskBackoffScheduler, uuid: str) -> bool:
    ids = await scheduler.create_tasks([{}, {}])
    for task_id in ids:
        await scheduler.wait_task(task_id, 20)
    ledger = await scheduler._client._ledgers.read(uuid)
    return not ledger.quarantine


async def test_a_program_s_own_error_uses_a_retry_and_says_nothing_against_the_device(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """In a child, where CUDA is of no use any more, another child takes its place."""
    gpu_config.task.max_retry_count = 1
    gpu_config.gpu.max_gpu_faults = 1
    gpu = FakeGpu(new_uuid())
    gpu_config.threadpool.proc_mode = "process"
    async with worker(gpu_config, FakeGpuProbe([gpu]), gpu_handlers.asserts_once) as scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}), 30)
        assert (task.status, task.retry_count, task.attempt) == (TaskStatus.COMPLETED, 1, 2)
        assert not task.attempts[0].error.message.endswith(f" {task.result}"), "it ran in the same process"
        assert [one.health for one in await scheduler.gpus()] == ["ok"]


async def test_a_task_that_fails_on_every_device_does_not_shut_them_all(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """It is at fault itself: after `max_ooms` comebacks it uses its retries, and fails."""
    gpu_config.task.max_retry_count = 1
    probe = FakeGpuProbe([FakeGpu(new_uuid()), FakeGpu(new_uuid())])

    async def handler(task: TaskEntity) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    async with worker(gpu_config, probe, handler) as scheduler:
        await scheduler.create_task({}, "x")
        task = await scheduler.wait_task("x", 30)
        assert (task.status, task.attempt, task.retry_count) == (TaskStatus.FAILED, 5, 1)
        assert {gpu.health for gpu in await scheduler.gpus()} == {"ok"}


async def test_a_lost_device_gets_no_tasks_and_what_fails_there_uses_no_retry(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """With each form of the error. When the device answers again, it is tried with one task."""
    gpu_config.task.max_retry_count = 0
    gpu_config.gpu.tasks_per_gpu = 1
    good, lost = FakeGpu(new_uuid(), total_gb=4), FakeGpu(new_uuid(), total_gb=5)
    probe = FakeGpuProbe([good, lost])
    started = anyio.Event()
    ran: list[str] = []

    async def handler(task: TaskEntity) -> None:
        ran.append(gpu_of(task))
        if gpu_of(task) == lost.uuid and len(ran) == 1:
            started.set()
            await eventually(lambda: lost.trouble, "the device is lost")
            raise ValueError("nothing about a GPU in here")

    async with worker(gpu_config, probe, handler) as scheduler:
        await scheduler.create_task({}, "x", min_gpu_memory_gb=4.5)
        await started.wait()
        lost.trouble = "GPU is lost"
        probe.poke()
        await eventually(lambda: _pending(scheduler, "x"), "it has come back")
        assert scheduler.health().ready, "another one is well"
        task = await scheduler.get_task("x")
        assert task is not None and (task.retry_count, task.attempt) == (0, 1)
        await scheduler.create_task({}, "y")
        await scheduler.wait_task("y", 20)
        assert ran == [lost.uuid, good.uuid]
        lost.trouble = ""
        probe.poke()
        assert (await scheduler.wait_task("x", 20)).status is TaskStatus.COMPLETED
        assert ran[-1] == lost.uuid


async def _pending(scheduler: TaskBackoffScheduler, task_id: str) -> bool:
    task = await scheduler.get_task(task_id)
    return task is not None and task.status is TaskStatus.PENDING


async def test_a_device_that_tells_no_utilisation_passes_with_one_warning(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid, caplog: pytest.LogCaptureFixture
) -> None:
    """MIG slices tell none: a ceiling does not count there."""
    gpu = FakeGpu(new_uuid(), utilization=None)

    async def handler(task: TaskEntity) -> None:
        pass

    async with worker(gpu_config, FakeGpuProbe([gpu]), handler) as scheduler:
        for task_id in await scheduler.create_tasks([TaskSpec({}, max_gpu_utilization=10)] * 3):
            await scheduler.wait_task(task_id, 20)
    assert [record.message for record in caplog.records if "utilisation" in record.message] == [
        f"GPU {gpu.uuid} reports no utilisation; max_gpu_utilization has no effect there"
    ]


async def test_without_any_device_that_is_well_a_worker_is_not_ready(
    gpu_config: TaskBackoffConfig, two: FakeGpuProbe
) -> None:
    async with worker(gpu_config, two, lambda task: None) as scheduler:
        assert scheduler.health().ready
        for gpu in two.gpus:
            gpu.trouble = "GPU is lost"
        assert scheduler.health().reasons == ("none of 2 GPUs can be used: GPU is lost",)


async def test_a_reading_that_is_too_old_admits_nothing(gpu_config: TaskBackoffConfig, two: FakeGpuProbe) -> None:
    """Nobody knows what is free: tasks that need a GPU wait, others run; it goes on with the next sample."""

    class Hanging(FakeGpuProbe):
        age = 3600.0

        def samples(self) -> list[GpuSample]:
            return [attrs.evolve(one, at=one.at - self.age) for one in super().samples()]

    probe = Hanging(two.gpus)
    ran: list[str] = []

    async def handler(task: TaskEntity) -> None:
        ran.append(task.task_id)

    async with worker(gpu_config, probe, handler) as scheduler:
        await scheduler.create_tasks([TaskSpec({}, "gpu"), TaskSpec({}, "cpu", min_gpu_memory_gb=0)])
        await scheduler.wait_task("cpu", 20)
        await anyio.sleep(0.1)
        assert ran == ["cpu"]
        assert {gpu.health for gpu in await scheduler.gpus()} == {"the last GPU sample is 3600 s old"}
        Hanging.age = 0
        probe.poke()
        await scheduler.wait_task("gpu", 20)


@pytest.mark.parametrize("gpus", [(), (7,), ("GPU-elsewhere",)])
async def test_devices_that_are_not_named_are_not_used(
    gpu_config: TaskBackoffConfig, two: FakeGpuProbe, gpus: tuple[int | str, ...]
) -> None:
    gpu_config.gpu.gpus = gpus

    async def handler(task: TaskEntity) -> None:
        raise AssertionError

    async with worker(gpu_config, two, handler) as scheduler:
        await scheduler.create_task({}, "x")
        await eventually(lambda: _waits_for(scheduler, "x", "no running worker has a GPU"), "it says so")
        await scheduler.cancel_task("x")


async def test_cuda_visible_devices_is_respected(
    gpu_config: TaskBackoffConfig, two: FakeGpuProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the second is visible, and so it is what CUDA calls 0 here."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", two.gpus[1].uuid)

    async def handler(task: TaskEntity) -> list[object]:
        assert task.gpu is not None
        return [task.gpu.uuid, task.gpu.index]

    async with worker(gpu_config, two, handler) as scheduler:
        await scheduler.create_task({}, "x")
        assert (await scheduler.wait_task("x", 20)).result == [two.gpus[1].uuid, 0]
        assert [gpu.uuid for gpu in await scheduler.gpus()] == [two.gpus[1].uuid]


@pytest.mark.alone
async def test_a_large_task_gets_its_turn_among_small_ones(gpu_config: TaskBackoffConfig, new_uuid: NewUuid) -> None:
    """14 GiB among an endless stream of 2 GiB on 16: a device is held for it once it has starved, and not before."""
    gpu_config.gpu.starvation_after = 1
    gpu_config.threadpool.concurrency = 20
    probe = FakeGpuProbe([FakeGpu(new_uuid())])
    started: dict[str, float] = {}

    async def handler(task: TaskEntity) -> None:
        started[task.task_id] = time.monotonic()
        await anyio.sleep(0.1)

    async with worker(gpu_config, probe, handler) as scheduler:

        async def stream() -> None:
            for number in range(10_000):
                await scheduler.create_task({}, f"small {number}", min_gpu_memory_gb=2)
                await anyio.sleep(0.01)

        async with anyio.create_task_group() as group:
            group.start_soon(stream)
            await eventually(lambda: len(started) > 8, "small ones run")
            created = time.monotonic()
            await scheduler.create_task({}, "large", min_gpu_memory_gb=14)
            await scheduler.wait_task("large", 20)
            group.cancel_scope.cancel()
        waited = started["large"] - created
        print(f"the large one has waited {waited:.2f} s")
        assert waited >= 1
        for task in (await scheduler.list_tasks("pending", limit=1000)).tasks:
            await scheduler.cancel_task(task.task_id)


async def test_tasks_of_both_kinds_share_the_slots_by_their_age(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """One slot, a crowd that needs no GPU, and one in the middle that does: it gets the slot in its turn."""
    gpu_config.threadpool.concurrency = 1
    order: list[str] = []

    async def handler(task: TaskEntity) -> None:
        order.append(task.task_id)
        await anyio.sleep(0.01)

    scheduler = worker(gpu_config, FakeGpuProbe([FakeGpu(new_uuid())]), handler)
    await scheduler.create_tasks([TaskSpec({}, f"before {n}", min_gpu_memory_gb=0) for n in range(30)])
    await scheduler.create_task({}, "gpu")
    await scheduler.create_tasks([TaskSpec({}, f"after {n}", min_gpu_memory_gb=0) for n in range(100)])
    async with scheduler:
        await scheduler.wait_task("gpu", 20)
        await eventually(lambda: len(order) == 131, "all have run")
    assert 25 <= order.index("gpu") <= 100, order.index("gpu")


async def test_more_demands_than_are_told_apart(gpu_config: TaskBackoffConfig, new_uuid: NewUuid) -> None:
    """Fifty different ones: all run, each with what it asked for, and the list of demands ends empty."""
    gpu_config.threadpool.concurrency = 3

    async def handler(task: TaskEntity) -> float:
        assert task.gpu is not None
        return task.gpu.memory_gb

    scheduler = worker(gpu_config, FakeGpuProbe([FakeGpu(new_uuid())]), handler)
    needs = [n / 8 for n in range(1, 51)]
    await scheduler.create_tasks([TaskSpec({}, f"{need}", min_gpu_memory_gb=need) for need in needs])
    client = scheduler._client.store.connection
    assert len(await client.server.execute("HKEYS", client.keys("demands"))) == 12 + 3, "to 2, 4 and 8 GiB"
    assert (await scheduler.get_queue_stats()).gpu_count == 50
    async with scheduler:
        results = [(await scheduler.wait_task(f"{need}", 30)).result for need in needs]
        assert results == needs
        assert await client.server.execute("HKEYS", client.keys("demands")) == []


async def test_a_thread_that_cannot_be_stopped_keeps_its_part_of_the_gpu(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """After its timeout the attempt is settled; its memory is free for others when the thread has ended."""
    gpu_config.task.max_retry_count = 0
    probe = FakeGpuProbe([FakeGpu(new_uuid(), total_gb=6)])
    end = threading.Event()

    def handler(task: TaskEntity) -> None:
        if task.task_id == "hangs":
            end.wait(30)

    async with worker(gpu_config, probe, handler) as scheduler:
        await scheduler.create_task({}, "hangs", exec_timeout=0.2)
        await scheduler.wait_task("hangs", 20)
        await scheduler.create_task({}, "next")
        await eventually(lambda: _waits_for(scheduler, "next", "best device has 2 GiB free"), "it waits")
        end.set()
        await scheduler.wait_task("next", 20)


async def test_what_could_not_be_given_back_is_given_back_later(
    gpu_config: TaskBackoffConfig, two: FakeGpuProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed reserved for a lease when the server did not answer, or the worker stopped in that moment."""
    gpu_config.scheduler.lease = 60
    failures = 0
    release = Ledgers.release

    async def fails_twice(self: Ledgers, uuid: str, ids: Sequence[str]) -> None:
        nonlocal failures
        failures += 1
        if failures <= 2:
            raise StorageUnavailableError("no answer")
        await release(self, uuid, ids)

    async def handler(task: TaskEntity) -> None: ...

    monkeypatch.setattr(Ledgers, "release", fails_twice)
    async with worker(gpu_config, two, handler) as scheduler:
        for task_id in await scheduler.create_tasks([{"n": n} for n in range(6)]):
            await scheduler.wait_task(task_id, 30)
        await eventually(lambda: _all_given_back(scheduler, two), "all is given back")
        assert failures > 2


async def test_a_worker_that_is_stopped_gives_everything_back(gpu_config: TaskBackoffConfig, two: FakeGpuProbe) -> None:
    """Also for the tasks that it hands back."""
    gpu_config.scheduler.shutdown_grace = 0

    async def handler(task: TaskEntity) -> None:
        await anyio.sleep_forever()

    scheduler = worker(gpu_config, two, handler)
    async with scheduler:
        await scheduler.create_tasks([{"n": n} for n in range(6)])
        await eventually(lambda: _running(scheduler, 5), "five run")
        assert [await reserved(scheduler, gpu.uuid) for gpu in two.gpus] == [16 * 1024, 4 * 1024]
    assert [await reserved(scheduler, gpu.uuid) for gpu in two.gpus] == [0, 0]
    assert (await scheduler.get_queue_stats()).gpu_count == 6
    await scheduler.shutdown()


async def test_a_lost_task_is_run_by_an_idle_worker(gpu_config: TaskBackoffConfig, two: FakeGpuProbe) -> None:
    """Its worker has died; also while a claim of other tasks sleeps on the server."""
    gpu_config.threadpool.concurrency = 8

    async def handler(task: TaskEntity) -> int:
        return task.lost_count

    store = QueueStore.of(gpu_config)
    scheduler = worker(gpu_config, two, handler)
    ids = await scheduler.create_tasks([TaskSpec({}, f"lost {n}") for n in range(3)])
    request = BatchRequest((), 3, may_claim_suspect=True, request_id="1", exchange=0, fits=("4096:0 GPU-x 0 4096",) * 3)
    assert len((await store.exchange.send(request, "a ghost")).claimed) == 3
    async with scheduler:
        assert [(await scheduler.wait_task(task_id, 30)).result for task_id in ids] == [1, 1, 1]
    await store.aclose()


async def test_a_slot_that_was_kept_for_nothing_is_given_to_others(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """A task that needs a GPU is next, and cancelled before a slot is free: those behind it run."""
    gpu_config.threadpool.concurrency = 1
    gpu_config.scheduler.interval = 3600
    go_on = anyio.Event()

    async def handler(task: TaskEntity) -> None:
        if task.task_id == "long":
            await go_on.wait()

    async with worker(gpu_config, FakeGpuProbe([FakeGpu(new_uuid())]), handler) as scheduler:
        await scheduler.create_task({}, "long", min_gpu_memory_gb=0)
        await eventually(lambda: _running(scheduler, 1), "it runs")
        await scheduler.create_task({}, "gpu")
        await scheduler.create_tasks([TaskSpec({}, f"behind {n}", min_gpu_memory_gb=0) for n in range(3)])
        assert scheduler._service is not None
        slots = scheduler._service.parts.slots
        await eventually(lambda: slots.spare, "the next slot is kept")
        await scheduler.cancel_task("gpu")
        go_on.set()
        for n in range(3):
            await scheduler.wait_task(f"behind {n}", 20)


async def test_what_was_reserved_in_vain_is_given_back(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server fails between two reservations, and again at the claim."""
    probe = FakeGpuProbe([FakeGpu(new_uuid()), FakeGpu(new_uuid())])
    reserve, exchange = Ledgers.reserve, Exchange.send
    calls: list[str] = []

    async def failing_reserve(self: Ledgers, *args: Any, **kwargs: Any) -> str:
        calls.append("reserve")
        if len(calls) == 2:
            raise StorageError("a fault of the test")
        return await reserve(self, *args, **kwargs)

    async def failing_exchange(self: Exchange, request: BatchRequest, worker: str, kinds: Kinds) -> Any:
        if request.fits and "claim" not in calls:
            calls.append("claim")
            raise StorageError("another fault of the test")
        return await exchange(self, request, worker, kinds)

    monkeypatch.setattr(Ledgers, "reserve", failing_reserve)
    monkeypatch.setattr(Exchange, "send", failing_exchange)

    async def handler(task: TaskEntity) -> None:
        pass

    scheduler = worker(gpu_config, probe, handler)
    ids = await scheduler.create_tasks([TaskSpec({}, min_gpu_memory_gb=memory) for memory in (8, 9, 10)])
    async with scheduler:
        for task_id in ids:
            await scheduler.wait_task(task_id, 30)
        assert "claim" in calls
        await eventually(lambda: _all_given_back(scheduler, probe), "all is given back")
        assert scheduler._service is not None and scheduler._service.parts.slots.free >= 7, "no slot is lost"


async def test_a_running_task_is_told_of_its_cancel_at_once(gpu_config: TaskBackoffConfig, two: FakeGpuProbe) -> None:
    """Not by the next heartbeat, which is ten seconds away."""
    gpu_config.scheduler.lease = 30

    async def handler(task: TaskEntity) -> None:
        await anyio.sleep(60)

    async with worker(gpu_config, two, handler) as scheduler:
        await scheduler.create_task({}, "x")
        await eventually(lambda: _running(scheduler, 1), "it runs")
        assert await scheduler.cancel_task("x", running=True)
        assert (await scheduler.wait_task("x", 5)).status is TaskStatus.CANCELLED


@pytest.mark.long
async def test_a_worker_that_is_busy_hears_of_tasks_for_its_gpu(
    gpu_config: TaskBackoffConfig, two: FakeGpuProbe
) -> None:
    """A backlog that needs no GPU, and a task with a head start that does: it does not wait for `interval`."""
    gpu_config.scheduler.interval = 3600
    gpu_config.threadpool.concurrency = 2
    done: list[str] = []

    async def handler(task: TaskEntity) -> None:
        await anyio.sleep(0.01)
        done.append(task.task_id)

    async with worker(gpu_config, two, handler) as scheduler:
        await scheduler.create_tasks([TaskSpec({}, min_gpu_memory_gb=0) for _ in range(2000)])
        await eventually(lambda: len(done) > 10, "it is busy")
        await scheduler.create_task({}, "gpu", priority=-100)
        await scheduler.wait_task("gpu", 20)
        assert len(done) < 1500
        for task in (await scheduler.list_tasks("pending", limit=1000)).tasks:
            await scheduler.cancel_task(task.task_id)


async def test_more_is_asked_for_although_the_memory_is_seen_to_be_full(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """NVML shows this process at 15.5 GiB when memory runs out: the most it could have is all."""
    gpu = FakeGpu(new_uuid())
    asked: list[float] = []

    async def handler(task: TaskEntity) -> None:
        assert task.gpu is not None
        asked.append(task.gpu.memory_gb)
        gpu.processes[os.getpid()] = 15.5
        await anyio.sleep(0.05)
        if task.oom_count < 2:
            raise OutOfMemoryError
        gpu.processes.clear()

    async def release() -> None:
        while True:
            await anyio.sleep(0.3)
            gpu.processes.clear()

    async with worker(gpu_config, FakeGpuProbe([gpu]), handler) as scheduler, anyio.create_task_group() as group:
        group.start_soon(release)
        await scheduler.create_task({}, "x")
        assert (await scheduler.wait_task("x", 20)).status is TaskStatus.COMPLETED
        group.cancel_scope.cancel()
    assert asked == [4, 6, 9]


async def test_no_device_is_held_for_a_task_that_only_its_ceiling_keeps_away(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    gpu_config.gpu.starvation_after = 0
    gpu = FakeGpu(new_uuid(), utilization=90)

    async def handler(task: TaskEntity) -> None:
        pass

    async with worker(gpu_config, FakeGpuProbe([gpu]), handler) as scheduler:
        await scheduler.create_task({}, "picky", max_gpu_utilization=10)
        await eventually(lambda: _waits_for(scheduler, "picky", "a utilisation of 90 %"), "it says so")
        await scheduler.create_task({}, "plain")
        await scheduler.wait_task("plain", 10)
        await scheduler.cancel_task("picky")


async def test_no_second_device_is_held_where_another_worker_was_faster(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read that no device is held. Smaller tasks go on where none is."""
    gpu_config.gpu.starvation_after = 0
    done, answers, hold = anyio.Event(), list[bool](), Writer.hold
    held, hold_device = list[str](), Ledgers.hold

    async def note(self: Ledgers, uuid: str, *arguments: Any) -> None:
        held.append(uuid)
        await hold_device(self, uuid, *arguments)

    async def slower(self: Writer, value: str, seconds: float) -> bool:
        if not answers:
            assert await hold(self, f"{value.split(maxsplit=1)[0]} GPU-elsewhere another", 60)
        answers.append(await hold(self, value, seconds))
        return answers[-1]

    async def handler(task: TaskEntity) -> None:
        if task.task_id == "first":
            await done.wait()

    monkeypatch.setattr(Writer, "hold", slower)
    monkeypatch.setattr(Ledgers, "hold", note)
    async with worker(gpu_config, FakeGpuProbe([FakeGpu(new_uuid())]), handler) as scheduler:
        await scheduler.create_task({}, "first", min_gpu_memory_gb=8)
        await eventually(lambda: _is_running(scheduler, "first"), "it runs")
        await scheduler.create_task({}, "large", min_gpu_memory_gb=14)
        await eventually(lambda: answers == [False], "the other worker was faster")
        await scheduler.create_task({}, "small", min_gpu_memory_gb=2)
        await scheduler.wait_task("small", 10)
        assert held == []
        assert answers == [False], "a hold that is known is not asked for"
        await scheduler.cancel_task("large")
        done.set()
        await scheduler.wait_task("first", 10)


async def _is_running(scheduler: TaskBackoffScheduler, task_id: str) -> bool:
    task = await scheduler.get_task(task_id)
    return task is not None and task.status is TaskStatus.PROCESSING


async def test_what_closes_a_device_that_is_well_is_told(gpu_config: TaskBackoffConfig, new_uuid: NewUuid) -> None:
    gpu_config.gpu.tasks_per_gpu = 1
    done = anyio.Event()

    async def handler(task: TaskEntity) -> None:
        await done.wait()

    async with worker(gpu_config, FakeGpuProbe([FakeGpu(new_uuid())]), handler) as scheduler:
        await scheduler.create_tasks([TaskSpec({}, "first"), TaskSpec({}, "second", min_gpu_memory_gb=2)])
        expected = "and the device with room runs 1 tasks, which is tasks_per_gpu"
        await eventually(lambda: _either_waits_for(scheduler, expected), "it says so")
        done.set()
        for task_id in ("first", "second"):
            await scheduler.wait_task(task_id, 20)


async def _either_waits_for(scheduler: TaskBackoffScheduler, text: str) -> bool:
    return await _waits_for(scheduler, "first", text) or await _waits_for(scheduler, "second", text)


async def test_waiting_for_memory_to_come_back_keeps_nobody_busy(
    server: Server, gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """A killed child's memory is shown for 3 s: some looks a second, not thousands."""
    gpu_config.threadpool.proc_mode = "process"
    gpu_config.task.max_retry_count = 0
    gpu = FakeGpu(new_uuid())
    scheduler = TaskBackoffScheduler(gpu_config, gpu_probe=FakeGpuProbe([gpu]))
    scheduler.set_custom_task_handler(gpu_handlers.sleep_for_long)
    async with scheduler:
        await scheduler.create_task({}, "x", exec_timeout=1)
        assert scheduler._service is not None
        gate = scheduler._service.parts.gate
        await eventually(lambda: any(grant.owner != "-" for grant in gate.grants), "its child is there")
        (grant,) = gate.grants
        gpu.processes[int(grant.owner.split(":")[1])] = 4
        await scheduler.wait_task("x", 20)
        before = server.client.info("stats")["total_commands_processed"]
        await anyio.sleep(2)
        assert server.client.info("stats")["total_commands_processed"] - before < 1000
        assert await reserved(scheduler, gpu.uuid) == 4096
        gpu.processes.clear()
        await eventually(lambda: _all_given_back(scheduler, FakeGpuProbe([gpu])), "it is given back")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that belongs to nobody here."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


async def test_what_was_reserved_for_a_killed_neighbour_is_given_back_when_its_processes_have_ended(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid, child: subprocess.Popen[bytes]
) -> None:
    """The ledger's lease is not waited for. A child that is still being ended may use the memory until then."""
    gpu_config.scheduler.lease = 300
    gpu_config.threadpool.concurrency = 2
    gpu = FakeGpu(new_uuid())

    async def handler(task: TaskEntity) -> None:
        pass

    async with worker(gpu_config, FakeGpuProbe([gpu]), handler) as scheduler:
        assert scheduler._service is not None
        ledgers, parts = scheduler._client._ledgers, scheduler._service.parts
        for number, (name, owner) in enumerate(
            [("killed", owner_of(child.pid)), ("killed", "-"), ("other", owner_of(os.getpid()))]
        ):
            one = Reservation(f"{name}/{number}", 4096, "running", owner, name, "test", "x")
            answer = await ledgers.reserve(
                gpu.uuid, one, free=16_384, used={}, limit=0, start_grace=0, holder=f"test {number}"
            )
            assert answer == "ok"
        parts.orphans.neighbour_ended("killed")
        await eventually(lambda: _is_reserved(scheduler, gpu.uuid, 8192), "that of its own process is given back")
        child.kill()
        await eventually(lambda: _is_reserved(scheduler, gpu.uuid, 4096), "that of its child, too")


async def _is_reserved(scheduler: TaskBackoffScheduler, uuid: str, mib: int) -> bool:
    return await reserved(scheduler, uuid) == mib


async def test_children_whose_memory_nobody_tells_of_serve_one_task_after_the_other(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """A container sees no processes: what a warm child keeps looks like another process's, and its next task has it."""
    gpu_config.threadpool.proc_mode = "process"
    gpu_config.task.min_gpu_memory_gb = 10
    gpu = FakeGpu(new_uuid())
    scheduler = TaskBackoffScheduler(gpu_config, gpu_probe=FakeGpuProbe([gpu]))
    scheduler.set_custom_task_handler(gpu_handlers.pid)
    async with scheduler:
        first = await scheduler.wait_task(await scheduler.create_task({}), 20)
        gpu.other_processes_gb = 9
        await anyio.sleep(0.5)
        second = await scheduler.wait_task(await scheduler.create_task({}), 20)
        assert second.result == first.result, "the same process"
        # A small one is given no more than it asks for.
        await scheduler.wait_task(await scheduler.create_task({}, min_gpu_memory_gb=2), 20)
        assert await reserved(scheduler, gpu.uuid) == 2048
        # And one that is too large for what is free beside it has the child ended.
        large = await scheduler.create_task({}, min_gpu_memory_gb=14)
        await eventually(lambda: _child_is_gone(first.result), "it is gone")
        gpu.other_processes_gb = 0
        assert (await scheduler.wait_task(large, 20)).result != first.result


def _child_is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def test_a_child_that_is_replaced_leaves_its_place_to_the_next(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """Two tasks each: no process is left over, and each that lives is one that the ledger knows."""
    gpu_config.threadpool.proc_mode = "process"
    gpu_config.threadpool.max_tasks_per_process = 2
    gpu = FakeGpu(new_uuid())
    scheduler = TaskBackoffScheduler(gpu_config, gpu_probe=FakeGpuProbe([gpu]))
    scheduler.set_custom_task_handler(gpu_handlers.pid)
    async with scheduler:
        pids = [(await scheduler.wait_task(await scheduler.create_task({}), 20)).result for _ in range(9)]
        assert max(Counter(pids).values()) == 2
        living = [pid for pid in set(pids) if not _child_is_gone(pid)]
        await eventually(lambda: len([pid for pid in living if not _child_is_gone(pid)]) <= 1, "they have ended")
        assert scheduler._service is not None
        owners = {grant.owner for grant in scheduler._service.parts.gate.grants}
        assert {owner_of(pid) for pid in living if not _child_is_gone(pid)} <= owners


async def test_a_model_that_does_not_fit_is_a_want_of_memory(gpu_config: TaskBackoffConfig, new_uuid: NewUuid) -> None:
    """A lifespan that runs out of memory: the task comes back for more, with no retry used."""
    gpu_config.threadpool.proc_mode = "process"
    gpu_config.task.max_retry_count = 0
    scheduler = TaskBackoffScheduler(gpu_config, gpu_probe=FakeGpuProbe([FakeGpu(new_uuid())]))
    scheduler.set_custom_task_handler(gpu_handlers.pid_with_model)
    scheduler.set_worker_lifespan(gpu_handlers.too_large)
    async with scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}), 30)
    assert (task.status, task.oom_count, task.attempt) == (TaskStatus.FAILED, 3, 4)
    assert "CUDA out of memory" in task.attempts[0].error.message


async def test_the_lifespan_of_a_worker_is_entered_once_and_left_at_the_end(config: TaskBackoffConfig) -> None:
    """Its value is the handler's second argument; start waits for it. For coroutines and for threads."""
    steps: list[str] = []

    @contextmanager
    def live() -> Any:
        steps.append("loaded")
        yield "a model"
        steps.append("unloaded")

    @asynccontextmanager
    async def live_on_the_loop() -> Any:
        with live() as model:
            yield model

    async def handle_on_the_loop(task: TaskEntity, model: str) -> str:
        return model

    def handle(task: TaskEntity, model: str) -> str:
        return model

    for handler, lifespan in ((handle, live), (handle_on_the_loop, live_on_the_loop), (handle, live_on_the_loop)):
        scheduler = TaskBackoffScheduler(config.copy())
        scheduler.set_custom_task_handler(handler)
        scheduler.set_worker_lifespan(lifespan)
        async with scheduler:
            assert steps == ["loaded"]
            for task_id in await scheduler.create_tasks([{}] * 3):
                assert (await scheduler.wait_task(task_id, 20)).result == "a model"
        assert steps == ["loaded", "unloaded"]
        steps.clear()


async def test_a_lifespan_that_fails_keeps_the_worker_from_starting(config: TaskBackoffConfig) -> None:
    scheduler = worker(config, FakeGpuProbe([]), lambda task, model: None)

    @scheduler.set_worker_lifespan
    @asynccontextmanager
    async def live() -> Any:
        raise FileNotFoundError("model.bin")
        yield

    with pytest.raises(FileNotFoundError, match=r"model\.bin"):
        await scheduler.start()


def model_worker(config: TaskBackoffConfig, gpus: list[FakeGpu], lifespan: Any = gpu_handlers.load) -> Any:
    config.threadpool.proc_mode = "process"
    scheduler = TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe(gpus))
    scheduler.set_custom_task_handler(gpu_handlers.device_and_pid)
    scheduler.set_worker_lifespan(lifespan)
    return scheduler


async def test_a_worker_is_ready_when_its_model_is_loaded_on_a_gpu(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`start` waits for the lifespan in the first child, whose memory is reserved; the first task finds it warm."""
    log = tmp_path / "loaded"
    monkeypatch.setenv("GPU_TEST_LOG", str(log))
    gpu = FakeGpu(new_uuid())
    async with model_worker(gpu_config, [FakeGpu(new_uuid(), other_processes_gb=15), gpu]) as scheduler:
        assert log.read_text().split()[2] == gpu.uuid
        assert await reserved(scheduler, gpu.uuid) == 4096
        task = await scheduler.wait_task(await scheduler.create_task({}), 20)
        device, model, pid = task.result
        assert device == gpu.uuid and model == [gpu.uuid, pid]
        assert len(log.read_text().splitlines()) == 1
    await eventually(lambda: _nothing_reserved(gpu_config, gpu.uuid), "it is given back")


async def test_a_lifespan_with_a_parameter_is_told_what_was_granted(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    gpu = FakeGpu(new_uuid())
    async with model_worker(gpu_config, [gpu], gpu_handlers.told) as scheduler:
        task = await scheduler.wait_task(await scheduler.create_task({}), 20)
        assert task.result[:2] == [gpu.uuid, [gpu.uuid, 4]]


async def test_a_worker_starts_without_its_model_where_no_gpu_has_room(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so, and loads it for the first task that gets a device."""
    gpu = FakeGpu(new_uuid(), other_processes_gb=13)
    async with model_worker(gpu_config, [gpu]) as scheduler:
        assert "no GPU has room for the worker_lifespan now" in caplog.text
        task_id = await scheduler.create_task({})
        gpu.other_processes_gb = 0
        scheduler._probe.poke()
        task = await scheduler.wait_task(task_id, 20)
        assert task.result[0] == gpu.uuid


async def test_a_model_that_cannot_be_loaded_on_a_gpu_keeps_the_worker_from_starting(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """As without a GPU; and what was reserved for it is free again."""
    gpu = FakeGpu(new_uuid())
    scheduler = model_worker(gpu_config, [gpu], gpu_handlers.broken)
    with pytest.raises(HandlerError, match=r"(?s)worker_lifespan failed there:.*model\.bin"):
        await scheduler.start()
    assert await _nothing_reserved(gpu_config, gpu.uuid)
    assert not await scheduler._client.store.registry.fleet()
    await scheduler.shutdown()


async def _nothing_reserved(config: TaskBackoffConfig, uuid: str) -> bool:
    producer = TaskBackoffScheduler(config.copy())
    try:
        return await reserved(producer, uuid) == 0
    finally:
        await producer.shutdown()


async def test_an_exception_handler_may_stand_in_for_a_task_that_ran_out(
    gpu_config: TaskBackoffConfig, two: FakeGpuProbe
) -> None:
    """It is asked first, as for any other exception."""

    async def handler(task: TaskEntity) -> None:
        raise OutOfMemoryError

    scheduler = worker(gpu_config, two, handler)
    scheduler.set_custom_task_exception_handler(lambda task: ResultEntity.ok(result="fallback"))
    async with scheduler:
        await scheduler.create_task({}, "x")
        assert (await scheduler.wait_task("x", 20)).result == "fallback"


async def test_the_options_are_checked(server: Server) -> None:
    config = quick_config(server.storage)
    assert config.gpu == GpuConfig()
    for wrong in ([""], [-1], [True], [1.5], 3):
        with pytest.raises(ValueError, match=r"gpu\.gpus: expected 'all', or a list of indices and UUIDs"):
            config.gpu.gpus = wrong  # type: ignore[assignment] - wrong on purpose
    made = TaskBackoffConfig.from_env(environ={"MAAS_BACKOFF_GPUS": "0,GPU-a", "MAAS_BACKOFF_TASKS_PER_GPU": "2"})
    assert (made.gpu.gpus, made.gpu.tasks_per_gpu) == ((0, "GPU-a"), 2)


@pytest.mark.blocks
async def test_a_model_that_is_missing_for_a_while_harms_no_task(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU is not to blame: tasks go back, and one at a time tries, until the first child is ready for it again."""
    missing = tmp_path / "missing"
    monkeypatch.setenv("GPU_TEST_MISSING", str(missing))
    monkeypatch.setattr("maas_backoff.worker.setback.LONGEST_PAUSE", 2.0)
    gpu_config.threadpool.proc_mode = "process"
    gpu_config.threadpool.concurrency = 4
    scheduler = worker(gpu_config, FakeGpuProbe([FakeGpu(new_uuid())]), gpu_handlers.own_pid)
    scheduler.set_worker_lifespan(gpu_handlers.missing_for_a_while)
    async with scheduler:
        first = (await scheduler.wait_task(await scheduler.create_task({}), 30)).result
        missing.touch()
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: not psutil.pid_exists(first), "its child has ended")
        ids = await scheduler.create_tasks([{"n": n} for n in range(6)])
        await eventually(lambda: "model.bin" in " ".join(scheduler.health().reasons), "it is not ready")
        attempts: list[int] = []

        async def tried() -> bool:
            tasks = [await scheduler.get_task(one) for one in ids]
            attempts.append(sum(task.attempt for task in tasks if task is not None))
            return attempts[-1] >= attempts[0] + 2

        await eventually(tried, "one after the other tries", 30)
        missing.unlink()
        tasks = [await scheduler.wait_task(one, 30) for one in ids]
        done = {(task.status, task.retry_count, task.oom_count, task.attempts) for task in tasks}
        assert done == {(TaskStatus.COMPLETED, 0, 0, ())}
        assert sum(task.attempt for task in tasks) < 6 + 20, "not as fast as the server answers"
        await eventually(lambda: scheduler.health().ready, "it is over")


@pytest.mark.long
async def test_memory_that_only_another_container_shows_in_use_is_counted_once(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two containers share a device, each seeing its own processes only: 10 of 16 GiB in use leave room for 5."""
    monkeypatch.setattr(reports, "is_contained", lambda: True)
    monkeypatch.setattr(others, "is_elsewhere", lambda owner: owner != "-")
    uuid = new_uuid()
    there, here = FakeGpu(uuid), FakeGpu(uuid)
    probe = FakeGpuProbe([there])
    other = gpu_config.copy()
    other.task.biz_prefix = "other"
    other.threadpool.proc_mode = "process"
    neighbour = TaskBackoffScheduler(other, gpu_probe=probe)
    neighbour.set_custom_task_handler(gpu_handlers.sleep_for_long)

    async def handler(task: TaskEntity) -> None: ...

    async with neighbour, worker(gpu_config, FakeGpuProbe([here]), handler) as scheduler:
        await neighbour.create_task({}, min_gpu_memory_gb=10)
        assert neighbour._service is not None
        gate = neighbour._service.parts.gate
        await eventually(lambda: any(grant.owner != "-" for grant in gate.grants), "its child is there")
        (grant,) = gate.grants
        here.other_processes_gb = 10
        await scheduler.create_task({}, "x", min_gpu_memory_gb=5)
        await eventually(lambda: _waits_for(scheduler, "x", "best device has 0 GiB free"), "it is counted twice")
        there.processes[int(grant.owner.split(":")[1])] = 10
        async with anyio.create_task_group() as group:
            group.start_soon(_read_every_half_second, probe)
            assert (await scheduler.wait_task("x", 20)).status is TaskStatus.COMPLETED
            group.cancel_scope.cancel()
        # The child's peak is counted with the end of its attempt.
        (running,) = [task for gpu in await scheduler.gpus() for task in gpu.tasks]
        assert running.memory_gb == 10
        await neighbour.cancel_task(running.task_id, running=True)
        await eventually(lambda: _peak_is(neighbour, 10), "it is measured")


async def _read_every_half_second(probe: FakeGpuProbe) -> None:
    while True:
        probe.poke()
        await anyio.sleep(0.5)


async def _peak_is(scheduler: TaskBackoffScheduler, gib: float) -> bool:
    total = (await scheduler.get_history(1)).total
    peak, need = total.gpu_peaks.quantile(0.99), total.gpu_needs.quantile(0.99)
    return peak is not None and need is not None and abs(peak - gib) < 0.2 * gib and abs(need - gib) < 0.2 * gib


class AGate:
    """A gate of a worker with children, on one device of 16 GiB, without the worker."""

    def __init__(self, config: TaskBackoffConfig, uuid: str) -> None:
        config.gpu.gpu_settle_time = 0
        self.uuid = uuid
        self.stopped: list[Grant] = []
        server = servers.Server(config.storage, "maas:gpu:{x}")
        self.ledgers = Ledgers(config.storage, server, lease=30, queue="test")
        self.probe = FakeGpuProbe([FakeGpu(uuid)])
        self.gate = Gate(
            self.probe,
            self.ledgers,
            GateContext(config.gpu, worker="w", queue="test", in_children=True, changed=asyncio.Event()),
            hand_back=self.stopped.append,
        )
        self.probe.start(lambda: None)

    async def child(self, pid: int, gib: int) -> Grant:
        """A grant that a child has, of a process that is not there."""
        demand = Demand(1024 * gib)
        (start,) = (await self.gate.plan([Waiting(demand.name, demand, rank=0, age=0)], slots=1, held="")).starts
        grant = await self.gate.reserve(attrs.evolve(start, grant=None))
        assert grant is not None
        grant.used_by(pid, lambda: None)
        return grant

    async def another_worker_takes(self, gib: int, owner: str = "-") -> None:
        taken = Reservation("other/1", 1024 * gib, "running", owner, "other", "q", "t")
        answer = await self.ledgers.reserve(
            self.uuid, taken, free=16 * 1024, used={}, limit=0, start_grace=0, holder="q 1:0"
        )
        assert answer == "ok"

    async def reserved(self) -> dict[str, int]:
        found = (await self.ledgers.read(self.uuid)).reservations.values()
        return {one.id: one.mib // 1024 for one in found}


@pytest.fixture
async def a_gate(server: Server, gpu_config: TaskBackoffConfig, new_uuid: NewUuid) -> AsyncIterator[AGate]:
    made = AGate(gpu_config, new_uuid())
    yield made
    await made.ledgers._server.aclose()


NOBODY = 2**22 + 1
"""An id that no process has."""


@pytest.mark.parametrize(("taken", "goes_on"), [(4, True), (8, False)])
async def test_a_reservation_that_has_lapsed_is_asked_for_again(a_gate: AGate, taken: int, goes_on: bool) -> None:
    """The worker stood still for longer than a lease. If others have the memory by now, the child ends."""
    grant = await a_gate.child(NOBODY, 10)
    await a_gate.ledgers.release(a_gate.uuid, [grant.id])
    await a_gate.another_worker_takes(taken)
    a_gate.gate.grants.renewal.note_missing([grant.id])
    await a_gate.gate.tidy()
    assert a_gate.stopped == ([] if goes_on else [grant])
    assert await a_gate.reserved() == {"other/1": taken, **({grant.id: 10} if goes_on else {})}
    assert a_gate.gate.grants.renewal.lapsed_children == []


@pytest.mark.parametrize("taken", [0, 8])
async def test_a_warm_child_whose_reservation_is_gone_asks_for_its_next_task(a_gate: AGate, taken: int) -> None:
    """After a standstill, a task may come before the heartbeat reports that the reservation has lapsed."""
    grant = await a_gate.child(NOBODY, 10)
    grant.attempt_ended()
    await a_gate.ledgers.release(a_gate.uuid, [grant.id])
    if taken:
        await a_gate.another_worker_takes(taken)
    demand = Demand(1024 * 10)
    waiting = [Waiting(demand.name, demand, rank=0, age=0)]
    await a_gate.gate.plan(waiting, slots=1, held="")  # reads the ledger
    placement = Placement(waiting[0], a_gate.gate.devices.usable[0], grant)
    assert (await a_gate.gate.reserve(placement) is grant) == (not taken)
    assert await a_gate.reserved() == ({"other/1": taken} if taken else {grant.id: 10})


async def test_a_lapsed_reservation_waits_for_a_reading(a_gate: AGate, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a standstill the last sample is as old as that: it says nothing about the room."""
    grant = await a_gate.child(NOBODY, 10)
    await a_gate.ledgers.release(a_gate.uuid, [grant.id])
    a_gate.gate.grants.renewal.note_missing([grant.id])
    with monkeypatch.context() as patch:
        patch.setattr(FakeGpuProbe, "patience", -1.0)
        await a_gate.gate.tidy()
        assert await a_gate.reserved() == {} and a_gate.gate.grants.needs_tidy
    await a_gate.gate.tidy()
    assert await a_gate.reserved() == {grant.id: 10}


async def test_an_idle_child_whose_reservation_has_lapsed_ends_where_others_have_its_room(a_gate: AGate) -> None:
    grant = await a_gate.child(NOBODY, 10)
    grant.attempt_ended()
    await a_gate.ledgers.release(a_gate.uuid, [grant.id])
    await a_gate.another_worker_takes(8)
    a_gate.gate.grants.renewal.note_missing([grant.id])
    await a_gate.gate.tidy()
    assert grant.state == "ending" and await a_gate.reserved() == {"other/1": 8}


async def test_a_change_that_the_ledger_did_not_hear_of_is_told_again(
    a_gate: AGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = await a_gate.child(NOBODY, 10)
    with monkeypatch.context() as patch:
        patch.setattr(Ledgers, "keep", _refuse)
        with pytest.raises(StorageError):
            await a_gate.gate.tidy()
    assert grant.changed
    await a_gate.gate.tidy()
    (found,) = (await a_gate.ledgers.read(a_gate.uuid)).reservations.values()
    assert found.owner == owner_of(NOBODY) and not grant.changed


async def _refuse(*_: object, **__: object) -> None:
    raise StorageError("a fault of the test")


@contextmanager
def a_process() -> Iterator[int]:
    """The id of a process that has ended after the block."""
    with started_processes() as started:
        started.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        yield started[0].pid


async def test_the_memory_of_an_ended_worker_stays_reserved_while_a_process_of_it_runs(a_gate: AGate) -> None:
    """A child may outlive its worker by a moment, and still uses the memory."""
    with a_process() as pid:
        await a_gate.another_worker_takes(4, owner_of(pid))
        assert not await a_gate.gate.release_ended("other")
        assert await a_gate.reserved() == {"other/1": 4}
    assert await a_gate.gate.release_ended("other")
    assert await a_gate.reserved() == {}


async def test_a_task_whose_gpu_memory_was_given_away_is_handed_back(
    gpu_config: TaskBackoffConfig, new_uuid: NewUuid
) -> None:
    """Its child is killed, it uses no retry, and it waits for room."""
    gpu_config.threadpool.proc_mode = "process"
    uuid = new_uuid()
    scheduler = TaskBackoffScheduler(gpu_config, gpu_probe=FakeGpuProbe([FakeGpu(uuid)]))
    scheduler.set_custom_task_handler(gpu_handlers.sleep_for_long)
    async with scheduler:
        await scheduler.create_task({}, "x", min_gpu_memory_gb=10)
        assert scheduler._service is not None
        gate = scheduler._service.parts.gate
        await eventually(lambda: any(grant.owner != "-" for grant in gate.grants), "its child is there")
        (grant,) = gate.grants
        ledgers = scheduler._client._ledgers
        await ledgers.release(uuid, [grant.id])
        taken = Reservation("other/1", 8 * 1024, "running", "-", "other", "q", "t")
        await ledgers.reserve(uuid, taken, free=16 * 1024, used={}, limit=0, start_grace=0, holder="q 1:0")
        await eventually(lambda: _is_pending(scheduler, "x"), "it waits for room", 20)
        task = await scheduler.get_task("x")
        assert task is not None and (task.retry_count, task.lost_count) == (0, 0)
        assert _child_is_gone(int(grant.owner.split(":")[1]))
        await ledgers.release(uuid, ["other/1"])


async def _is_pending(scheduler: TaskBackoffScheduler, task_id: str) -> bool:
    task = await scheduler.get_task(task_id)
    return task is not None and task.status is TaskStatus.PENDING


async def test_a_warm_child_tries_a_doubted_device_as_one_of_many(a_gate: AGate) -> None:
    """After a quarantine one task tries the device, also where several children wait there for tasks."""
    for pid in (NOBODY, NOBODY + 1):
        await a_gate.child(pid, 1)
    for grant in a_gate.gate.grants:
        grant.attempt_ended()
    await a_gate.ledgers.doubt(a_gate.uuid, "", "Xid 79", limit=1, seconds=0)
    demand = Demand(1024)
    waiting = [Waiting(demand.name, demand, rank=0, age=0)]
    made = (await a_gate.gate.plan(waiting, slots=1, held="")).starts
    assert [one.grant is not None for one in made] == [True]
    assert await a_gate.gate.reserve(made[0]) is not None
    assert not (await a_gate.gate.plan(waiting, slots=1, held="")).starts, "it is tried"
