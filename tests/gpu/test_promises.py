"""The promises of a worker with a GPU, whatever happens to a ledger or a device."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import attrs
import pytest
from gpu import handlers as gpu_handlers
from support import Server, eventually

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.gate.renewal import Renewal
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.keys import ledger as ledger_key
from maas_backoff.store.ledger import Ledgers
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = pytest.mark.anyio


class Rig:
    """One device of 16 GiB, a handler that waits until it is let go, and the ledger of the device."""

    def __init__(self, config: TaskBackoffConfig, uuid: str) -> None:
        config.task.min_gpu_memory_gb = 4
        config.gpu.gpu_settle_time = 0
        self.config, self.uuid = config, uuid
        self.probe = FakeGpuProbe([FakeGpu(uuid)])
        self.let_go = anyio.Event()
        self.ran: list[str] = []
        self.scheduler = self.worker()
        self.ledgers: Ledgers = self.scheduler._client._ledgers

    def worker(self) -> TaskBackoffScheduler:
        made = TaskBackoffScheduler(self.config, gpu_probe=self.probe)
        made.set_custom_task_handler(self.handle)
        return made

    async def handle(self, task: TaskEntity) -> None:
        self.ran.append(task.task_id)
        if task.task_id == "waits":
            await self.let_go.wait()

    async def reserved(self) -> dict[str, int]:
        """GiB by id."""
        found = (await self.ledgers.read(self.uuid)).reservations.values()
        return {one.id: one.mib // 1024 for one in found}

    async def is_free(self) -> bool:
        return not await self.reserved()


@pytest.fixture
async def rig(config: TaskBackoffConfig, new_uuid: Callable[[], str]) -> AsyncIterator[Rig]:
    rig = Rig(config, new_uuid())
    yield rig
    rig.let_go.set()
    await rig.scheduler.shutdown()


async def test_a_device_is_held_for_a_task_that_has_waited_too_long(rig: Rig) -> None:
    """A younger task that would fit waits, and says why; `gpus()` shows the hold."""
    rig.config.gpu.starvation_after = 0
    async with rig.scheduler as scheduler:
        await scheduler.create_task({}, "waits", min_gpu_memory_gb=10)
        await eventually(lambda: rig.ran == ["waits"], "it runs")
        await scheduler.create_task({}, "large", min_gpu_memory_gb=14)

        async def is_held() -> bool:
            (gpu,) = await scheduler.gpus()
            return gpu.health == "ok, held for tasks of test that need 14 GiB free"

        await eventually(is_held, "the device is held")
        await scheduler.create_task({}, "small", min_gpu_memory_gb=2)

        async def says_so() -> bool:
            task = await scheduler.get_task("small")
            return "the device with room is held for tasks of test" in ((task and task.waiting_for) or "")

        await eventually(says_so, "the small one says why it waits")
        rig.let_go.set()
        for task_id in ("large", "small"):
            await scheduler.wait_task(task_id, 20)
    assert rig.ran == ["waits", "large", "small"]


@pytest.mark.long
async def test_a_thread_whose_reservation_has_lapsed_is_entered_again(rig: Rig) -> None:
    """Nothing can stop a thread: it goes on with its memory, and others are to know."""
    async with rig.scheduler as scheduler:
        await scheduler.create_task({}, "waits")
        await eventually(lambda: rig.ran == ["waits"], "it runs")
        before = await rig.reserved()
        await rig.ledgers.release(rig.uuid, list(before))
        await eventually(lambda: _is(rig.reserved, before), "it is entered again")


async def _is(read: Callable[[], Any], expected: object) -> bool:
    return bool(await read() == expected)


async def test_a_ledger_that_was_written_over_keeps_no_lease_from_being_renewed(rig: Rig, server: Server) -> None:
    """The lease of a task runs for 3 s. The ledger of its device cannot be renewed for longer."""
    async with rig.scheduler as scheduler:
        await scheduler.create_task({}, "waits")
        await eventually(lambda: rig.ran == ["waits"], "it runs")
        server.client.set(ledger_key(rig.uuid), "nonsense")
        await anyio.sleep(4.5)
        server.client.delete(ledger_key(rig.uuid))
        rig.let_go.set()
        task = await scheduler.wait_task("waits", 20)
    assert (task.status, task.lost_count, rig.ran) == ("completed", 0, ["waits"])


async def test_a_ledger_that_does_not_answer_keeps_no_lost_task_from_coming_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat waits for the ledger for as long as its period, and then looks for lost tasks all the same."""
    hung = 0

    async def hang(*_: object) -> list[str]:
        nonlocal hung
        hung += 1
        await anyio.sleep_forever()
        return []

    rig.config.threadpool.concurrency = 1
    async with rig.scheduler as scheduler:
        await scheduler.create_task({}, "waits")
        await eventually(lambda: rig.ran == ["waits"], "it has the only slot")
        monkeypatch.setattr(Renewal, "renew", hang)
        await eventually(lambda: hung > 2, "the ledger does not answer")
        store = scheduler._client.store
        await scheduler.create_task({}, "lost", min_gpu_memory_gb=0)
        request = BatchRequest((), 1, may_claim_suspect=False, request_id="1", exchange=0)
        assert len((await store.exchange.send(request, "dead")).claimed) == 1
        await eventually(lambda: _is_back(scheduler, "lost"), "its lease is over")
        monkeypatch.undo()
        rig.let_go.set()
        await scheduler.wait_task("lost", 20)
    assert rig.ran == ["waits", "lost"]


async def _is_back(scheduler: TaskBackoffScheduler, task_id: str) -> bool:
    task = await scheduler.get_task(task_id)
    return task is not None and (task.status, task.lost_count) == ("pending", 1)


async def test_gpus_that_cannot_be_described_keep_no_lease_from_being_renewed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """The registry of workers lists none of them, and the log says so once."""
    rig.probe.gpus[0].name = object()  # type: ignore[assignment]  # no text: as a driver might tell it
    async with rig.scheduler as scheduler:
        await scheduler.create_task({}, "waits")
        await eventually(lambda: rig.ran == ["waits"], "it runs")
        await anyio.sleep(4.5)
        rig.let_go.set()
        task = await scheduler.wait_task("waits", 20)
        assert [worker.devices for worker in await scheduler.workers()] == [()]
    assert (task.status, task.lost_count) == ("completed", 0)
    assert [record.message for record in caplog.records].count(
        "the GPUs cannot be described; the registry lists no GPU of this worker"
    ) == 1


class ExclusiveProbe(FakeGpuProbe):
    """Devices in the compute mode EXCLUSIVE_PROCESS."""

    def samples(self) -> list[GpuSample]:
        return [attrs.evolve(one, exclusive=True) for one in super().samples()]


async def test_an_exclusive_device_is_one_worker_s_as_long_as_it_has_a_task_there(rig: Rig) -> None:
    """Its threads share the device. Another worker's task waits, although there is room."""
    rig.probe = ExclusiveProbe(rig.probe.gpus)
    first = rig.worker()
    other_config = rig.config.copy()
    other_config.task.biz_prefix = "other"
    other = TaskBackoffScheduler(other_config, gpu_probe=rig.probe)
    other.set_custom_task_handler(rig.handle)
    async with first, other:
        await first.create_task({}, "waits")
        await eventually(lambda: rig.ran == ["waits"], "it runs")
        await other.create_task({}, "later")
        await first.create_task({}, "beside it")
        await first.wait_task("beside it", 20)
        await anyio.sleep(1.5)
        assert rig.ran == ["waits", "beside it"]
        rig.let_go.set()
        await other.wait_task("later", 20)


async def test_out_of_memory_that_names_another_process_asks_for_no_more(rig: Rig) -> None:
    """Other programs had the memory: the task comes back for as much as before."""
    asked: list[float] = []

    class OutOfMemoryError(Exception):
        pass

    async def handler(task: TaskEntity) -> None:
        assert task.gpu is not None
        asked.append(task.gpu.memory_gb)
        if len(asked) == 1:
            raise OutOfMemoryError("CUDA out of memory. Process 1 has 9.00 GiB memory in use.")

    rig.scheduler.set_custom_task_handler(handler)
    async with rig.scheduler as scheduler:
        await scheduler.create_task({}, "x")
        task = await scheduler.wait_task("x", 20)
    assert (asked, task.status, task.retry_count) == ([4, 4], "completed", 0)


class TestAWarmChild:
    """Its memory stays reserved for its next task, until somebody else needs it or the device is gone."""

    @pytest.fixture
    async def warm(self, rig: Rig) -> AsyncIterator[Rig]:
        rig.config.threadpool.proc_mode = "process"
        rig.config.gpu.gpu_release_timeout = 1
        rig.scheduler = TaskBackoffScheduler(rig.config, gpu_probe=rig.probe)
        rig.scheduler.set_custom_task_handler(gpu_handlers.handle)
        rig.scheduler.set_worker_lifespan(gpu_handlers.lifespan)
        rig.ledgers = rig.scheduler._client._ledgers
        async with rig.scheduler as scheduler:
            await scheduler.create_task({}, "x")
            await scheduler.wait_task("x", 20)
            assert list((await rig.reserved()).values()) == [4]
            yield rig

    async def test_ends_where_the_device_is_held_for_another_queue(self, warm: Rig) -> None:
        assert await warm.ledgers.hold(warm.uuid, "other 1024:0", 1024, 20)
        await eventually(warm.is_free, "its memory is given back")

    async def test_ends_where_the_device_is_lost(self, warm: Rig) -> None:
        """No reading shows its memory back: it is given up after `gpu_release_timeout`."""
        warm.probe.gpus[0].trouble = "GPU is lost"
        warm.probe.poke()
        await eventually(warm.is_free, "its memory is given back")
