"""Workers as they are run: processes with children, on the real pynvml and a pretend driver."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from gpu.driver import GIB, Driver
from support import Server, eventually, quick_config

from maas_backoff import TaskBackoffScheduler, TaskSpec, TaskStatus
from maas_backoff.store.ledger import DeviceLedger, Ledgers
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(120), pytest.mark.blocks]

TESTS = Path(__file__).parents[1]


@attrs.define
class Rig:
    """A producer, the driver, workers, and what their tasks have noted."""

    server: Server
    driver: Driver
    log: Path
    producer: TaskBackoffScheduler
    workers: list[subprocess.Popen[bytes]] = attrs.field(factory=list)

    def start_worker(self, **env: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **self.driver.env, "PYTHONPATH": str(TESTS), "GPU_TEST_LOG": str(self.log)}
        environment |= {"GPU_TEST_PORT": str(self.server.port), **env}
        environment.pop("CUDA_VISIBLE_DEVICES", None)
        command = [sys.executable, "-m", "maas_backoff", "worker", "gpu.pretend_worker:scheduler"]
        with self.log.with_suffix(".out").open("ab") as out:
            worker = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        self.workers.append(worker)
        return worker

    async def ready(self) -> None:
        """Wait until all workers have told of their devices."""

        async def told() -> bool:
            fleet = await self.producer._client.store.registry.fleet()
            alive = [worker for worker in self.workers if worker.poll() is None]
            return len(fleet) >= len(alive) and all(worker.devices for worker in fleet)

        await eventually(told, "the workers know their devices", 30)

    def events(self) -> list[list[str]]:
        return [line.split(" ") for line in self.log.read_text().splitlines()] if self.log.exists() else []

    async def ledger(self, uuid: str) -> DeviceLedger:
        tasks = self.producer._client
        return await Ledgers(self.producer.config.storage, tasks.store.connection.server, lease=3).read(uuid)

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        for worker in self.workers:
            try:
                worker.wait(15)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()


@pytest.fixture
async def rig(server: Server, driver: Driver, tmp_path: Path) -> AsyncIterator[Rig]:
    config = quick_config(server.storage)
    config.task.min_gpu_memory_gb = 4
    producer = TaskBackoffScheduler(config)
    rig = Rig(server, driver, tmp_path / "events", producer)
    yield rig
    rig.stop()
    await producer.shutdown()


def most_at_once(events: list[list[str]]) -> dict[str, float]:
    """Return the most GiB that tasks ran with at one time, by device."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    sizes: dict[str, float] = {}
    for _, kind, *rest in events:
        if kind == "begin":
            task_id, uuid, size = rest
            sizes[task_id] = float(size)
            now[uuid] += sizes[task_id]
            most[uuid] = max(most[uuid], now[uuid])
        elif kind == "end":
            now[rest[1]] -= sizes[rest[0]]
    return dict(most)


async def test_forty_tasks_by_three_workers_never_have_more_than_there_is(
    rig: Rig, new_uuid: Callable[[], str]
) -> None:
    """4 GiB each on 16 and on 4; a child sees its device only, serves that one only, and loads its model once."""
    roomy, tight = new_uuid(), new_uuid()
    rig.driver.device(roomy)
    rig.driver.device(tight, used_gb=12)
    for _ in range(3):
        rig.start_worker()
    await rig.ready()
    ids = await rig.producer.create_tasks([{"n": n, "seconds": 0.05} for n in range(40)])
    most: Counter[str] = Counter()
    async with asyncio.TaskGroup() as group:

        async def watch() -> None:
            while True:
                for uuid in (roomy, tight):
                    reserved = sum(one.mib for one in (await rig.ledger(uuid)).reservations.values())
                    most[uuid] = max(most[uuid], reserved)
                await anyio.sleep(0.005)

        watching = group.create_task(watch())
        tasks = [await rig.producer.wait_task(task_id, 60) for task_id in ids]
        watching.cancel()
    assert all(task.status is TaskStatus.COMPLETED and task.attempt == 1 for task in tasks)
    print(f"most reserved: {most[roomy] / 1024:g} of 16 GiB, {most[tight] / 1024:g} of 4 GiB")
    print(f"most at once: {most_at_once(rig.events())}")
    assert most[roomy] <= 16 * 1024 and most[tight] <= 4 * 1024
    at_once = most_at_once(rig.events())
    assert at_once[roomy] <= 16 and at_once[tight] <= 4
    for uuid, visible, _, model, index, memory in (task.result for task in tasks):
        assert visible == uuid and index == 0 and memory == 4 and model.startswith("model of")
    loaded = [event[2:] for event in rig.events() if event[1] == "loaded"]
    assert all(order == "PCI_BUS_ID" and device in {roomy, tight} for _, device, order in loaded)
    assert len(loaded) == len({pid for pid, *_ in loaded}) and len(loaded) < len(ids)


async def test_a_killed_worker_leaves_its_part_to_others_within_two_leases(
    rig: Rig, new_uuid: Callable[[], str]
) -> None:
    """SIGKILL: its children die with it, its reservations by lease, and its tasks run elsewhere."""
    uuid = new_uuid()
    rig.driver.device(uuid)
    victim = rig.start_worker()
    await rig.ready()
    ids = await rig.producer.create_tasks([{"n": n, "seconds": 30} for n in range(4)])
    await eventually(lambda: sum(event[1] == "begin" for event in rig.events()) == 4, "all four run", 30)
    assert sum(one.mib for one in (await rig.ledger(uuid)).reservations.values()) == 16 * 1024
    rig.start_worker()
    victim.kill()
    victim.wait()
    killed = time.monotonic()

    async def free() -> bool:
        reserved = (await rig.ledger(uuid)).reservations.values()
        return not any(str(victim.pid) in one.worker for one in reserved)

    await eventually(free, "nothing of the dead worker's is left", 20)
    took = (time.monotonic() - killed) / 3
    print(f"its reservations were free again after {took:.2f} leases")
    assert took <= 2
    for task_id in ids:
        await rig.producer.cancel_task(task_id, running=True)
    for task_id in ids:
        task = await rig.producer.wait_task(task_id, 30)
        assert task.status is TaskStatus.CANCELLED


async def test_a_lost_device_and_a_slow_driver(rig: Rig, new_uuid: Callable[[], str]) -> None:
    """Each call of NVML takes 200 ms, and a device is lost half-way: no task starts there then, and all complete."""
    stays, goes = new_uuid(), new_uuid()
    rig.driver.device(stays)
    rig.driver.device(goes)
    rig.start_worker()
    await rig.ready()
    rig.driver.globals = {"latency_ms": 200}
    rig.driver.write()
    ids = await rig.producer.create_tasks([{"n": n, "seconds": 0.2} for n in range(200)])
    await eventually(lambda: sum(event[1] == "end" for event in rig.events()) >= 6, "some have run", 60)
    rig.driver.change(goes, lost=1)
    await eventually(lambda: _health(rig, goes, "GPU is lost"), "it is told of", 30)
    told = time.monotonic()
    # A task that has a reservation by then may begin yet.
    granted = len((await rig.ledger(goes)).reservations)
    tasks = [await rig.producer.wait_task(task_id, 60) for task_id in ids]
    assert {task.status for task in tasks} == {TaskStatus.COMPLETED}
    begun = Counter(event[3] for event in rig.events() if event[1] == "begin" and float(event[0]) > told)
    assert begun[goes] <= granted <= 8 and begun[stays] > 10, (begun, granted)
    assert not await _health(rig, stays, "GPU is lost")


async def _health(rig: Rig, uuid: str, text: str) -> bool:
    return any(gpu.uuid == uuid and text in gpu.health for gpu in await rig.producer.gpus())


async def test_what_ran_out_of_memory_comes_back_for_more_in_a_new_child(rig: Rig, new_uuid: Callable[[], str]) -> None:
    """4, 6, then 9 GiB; it wants 7; never in the same process, and elsewhere than before."""
    uuids = {new_uuid(), new_uuid()}
    for uuid in uuids:
        rig.driver.device(uuid)
    rig.start_worker()
    await rig.ready()
    await rig.producer.create_task({"wants": 7}, "x", max_retry_count=0)
    task = await rig.producer.wait_task("x", 60)
    begins = [event[3:] for event in rig.events() if event[1] == "begin"]
    print(f"ran with {begins}")
    assert [float(memory) for _, memory in begins] == [4, 6, 9]
    assert {uuid for uuid, _ in begins} == uuids
    assert (task.status, task.oom_count, task.retry_count) == (TaskStatus.COMPLETED, 2, 0)
    assert len({event[2] for event in rig.events() if event[1] == "loaded"}) == 3


async def test_a_warm_child_ends_when_its_room_is_needed(rig: Rig, new_uuid: Callable[[], str]) -> None:
    """Two keep 5 GiB each: one ends for a task of 14, which starts in the other; that one ends for another queue."""
    uuid = new_uuid()
    rig.driver.device(uuid)
    rig.start_worker()
    await rig.ready()
    ids = await rig.producer.create_tasks([{"n": n, "seconds": 1} for n in range(2)])
    children = [(await rig.producer.wait_task(task_id, 30)).result[2] for task_id in ids]
    assert len(set(children)) == 2
    rig.driver.change(uuid, used=10 * GIB, procs=",".join(f"{child}:{5 * GIB}" for child in children))
    await eventually(lambda: _reserved(rig, uuid, 5 * 1024, 5 * 1024), "what they keep is their own", 20)
    await rig.producer.create_task({}, "large", min_gpu_memory_gb=14)
    await eventually(lambda: sum(map(_exists, children)) == 1, "one of them has ended", 30)
    stays = next(filter(_exists, children))
    rig.driver.change(uuid, used=5 * GIB, procs=f"{stays}:{5 * GIB}")
    assert (await rig.producer.wait_task("large", 30)).result[2] == stays
    await eventually(lambda: _reserved(rig, uuid, 5 * 1024), "it keeps what it had", 20)
    config = quick_config(rig.server.storage)
    config.task.biz_prefix = "other"
    gpu = FakeGpu(uuid, processes={stays: 5})
    other = TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe([gpu]))
    other.set_custom_task_handler(lambda task: task.task_id)
    async with other:
        await other.create_task({}, "of another queue", min_gpu_memory_gb=14)
        await eventually(lambda: not _exists(stays), "the last has ended", 30)
        gpu.processes.clear()
        rig.driver.change(uuid, used=0, procs="")
        await other.wait_task("of another queue", 30)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def _reserved(rig: Rig, uuid: str, *mib: int) -> bool:
    return [one.mib for one in (await rig.ledger(uuid)).reservations.values()] == list(mib)


async def test_a_killed_attempt_keeps_its_part_until_the_memory_is_back(rig: Rig, new_uuid: Callable[[], str]) -> None:
    """After a timeout the child is killed; NVML shows its memory for a while; nobody else counts on it until then."""
    uuid = new_uuid()
    rig.driver.device(uuid)
    rig.start_worker()
    await rig.ready()
    await rig.producer.create_task({"seconds": 60}, "hangs", min_gpu_memory_gb=12, exec_timeout=2, max_retry_count=0)
    await eventually(lambda: rig.events() and rig.events()[0][1] == "loaded", "its child is there", 30)
    child = rig.events()[0][2]
    rig.driver.change(uuid, used=12 * GIB, procs=f"{child}:{12 * GIB}")
    assert (await rig.producer.wait_task("hangs", 30)).status is TaskStatus.FAILED
    ledger = await rig.ledger(uuid)
    assert [one.mib for one in ledger.reservations.values()] == [12 * 1024]
    await rig.producer.create_task({}, "next", min_gpu_memory_gb=8)
    await anyio.sleep(1.5)
    next_task = await rig.producer.get_task("next")
    assert next_task is not None and next_task.status is TaskStatus.PENDING
    rig.driver.change(uuid, used=0, procs="")
    await rig.producer.wait_task("next", 30)


@pytest.fixture
def command(server: Server, driver: Driver) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "maas_backoff", "gpus", *arguments]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MAAS_BACKOFF_")} | env
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    return run


async def test_the_command_shows_devices_and_what_runs_there(
    rig: Rig, command: Callable[..., Any], new_uuid: Callable[[], str]
) -> None:
    uuid = new_uuid()
    rig.driver.device(uuid, used_gb=2, name="Fake_H100", util=35)
    rig.start_worker()
    await rig.ready()
    await rig.producer.create_task({"seconds": 60}, "long")
    await eventually(lambda: any(event[1] == "begin" for event in rig.events()), "it runs", 30)
    await eventually(lambda: _owned(rig, uuid), "its ledger tells who uses it")
    shown = command("--url", f"redis://127.0.0.1:{rig.server.port}", **rig.driver.env)
    print(shown.stdout)
    assert shown.returncode == 0
    assert "Fake H100  16.0   2.0     4.0       14.0  10.0  35%   40C   1      ok" in shown.stdout
    assert "gpu 0: 'long' of test, 4.0 GiB, by " in shown.stdout
    alone = command("--json", **rig.driver.env)
    assert '"free_gb": 14.0' in alone.stdout and '"tasks": []' in alone.stdout
    running = await rig.producer.get_task("long")
    assert running is not None and running.gpu is not None and running.gpu.uuid == uuid
    await rig.producer.cancel_task("long", running=True)
    await rig.producer.wait_task("long", 30)


async def _owned(rig: Rig, uuid: str) -> bool:
    reservations = (await rig.ledger(uuid)).reservations.values()
    return all(one.owner != "-" and one.task_id == "long" for one in reservations)


async def test_the_command_where_there_is_no_gpu(command: Callable[..., Any]) -> None:
    shown = command()
    assert shown.returncode == 1
    assert shown.stdout.startswith("no GPU can be used here: no driver: ")
    assert command("--json").stdout == "[]\n"
    assert command("--url", "ftp://x").returncode == 2


def test_specs_know_the_options_of_gpus() -> None:
    assert TaskSpec({}, oom_growth=2, max_ooms=1).options == {"oom_growth": 2, "max_ooms": 1}
