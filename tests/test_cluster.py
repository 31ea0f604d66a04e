"""Queues in a Cluster: spread over its masters, and followed when a master dies, changes, or gives a slot away."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from load import Load, strays
from support import eventually, quick_config
from topology import KINDS, ClusterRig, Node

from maas_backoff import StorageConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.store.keys import Keys
from maas_backoff.store.preflight.check import check_queue
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.testing import FakeGpu, FakeGpuProbe

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(150)]


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClusterRig]:
    with ClusterRig(request.param, tmp_path) as rig:
        yield rig


def _storage(rig: ClusterRig) -> StorageConfig:
    return StorageConfig(type="cluster", nodes=rig.addresses[:2])


def _queues(rig: ClusterRig, per_master: int) -> list[str]:
    """Return names of queues, so many on each master."""
    found: dict[int, list[str]] = {master.port: [] for master in rig.masters}
    for n in range(1000):
        names = found[rig.owner(f"queue-{n}").port]
        if len(names) < per_master:
            names.append(f"queue-{n}")
    return [name for names in found.values() for name in names]


async def test_the_ledgers_of_gpus_lie_on_other_masters_than_their_queue(rig: ClusterRig) -> None:
    """A device on each master: what is reserved is renewed over leases, never more than there is, and given back."""
    name = _queues(rig, 1)[0]
    uuids = {rig.owner(f"GPU-{n}").port: f"GPU-{n}" for n in range(50)}
    assert len(uuids) == 3
    config = quick_config(_storage(rig))
    config.task.biz_prefix = name
    config.task.min_gpu_memory_gb = 6
    scheduler = TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe([FakeGpu(uuid) for uuid in uuids.values()]))
    running: Counter[str] = Counter()
    most: Counter[str] = Counter()

    @scheduler.set_custom_task_handler
    async def handler(task: TaskEntity) -> None:
        assert task.gpu is not None
        running[task.gpu.uuid] += 1
        most[task.gpu.uuid] = max(most[task.gpu.uuid], running[task.gpu.uuid])
        await anyio.sleep(4 if task.task_id == "long" else 0.2)
        running[task.gpu.uuid] -= 1

    async with scheduler:
        await scheduler.create_task({}, "long")
        ids = await scheduler.create_tasks([{"n": n} for n in range(60)])
        for task_id in ids:
            await scheduler.wait_task(task_id, timeout=40)
        assert most == dict.fromkeys(uuids.values(), 2)
        # Longer than a lease of 3 s, and renewed in time.
        assert (await scheduler.wait_task("long", timeout=40)).attempt == 1
        await eventually(lambda: _reserved_nothing(scheduler), "all is given back")


async def _reserved_nothing(scheduler: TaskBackoffScheduler) -> bool:
    return not any(gpu.reserved_gb for gpu in await scheduler.gpus())


async def test_many_queues_in_one_process_are_spread_over_the_masters(rig: ClusterRig) -> None:
    """Nine queues, three on each master, a worker each: every call works on every one, and all tasks complete."""
    names = _queues(rig, 3)
    ran: set[tuple[str, str]] = set()

    async def handler(task: TaskEntity) -> int:
        ran.add((task.biz_prefix, task.task_id))
        task.update_progress(50)
        if task.attempt == 1:
            raise ValueError("once more")
        return task.attempt

    async with AsyncExitStack() as stack:
        schedulers = {}
        for name in names:
            config = quick_config(_storage(rig))
            config.task.biz_prefix = name
            schedulers[name] = TaskBackoffScheduler(config)
            schedulers[name].set_custom_task_handler(handler)
            await stack.enter_async_context(schedulers[name])

        async def whole_way(scheduler: TaskBackoffScheduler) -> None:
            ids = await scheduler.create_tasks({"n": n} for n in range(50))
            for task_id in ids:
                done = await scheduler.wait_task(task_id, timeout=40)
                assert (done.status, done.result) == ("completed", 2)
            page = await scheduler.list_tasks("completed", limit=100)
            assert len(page.tasks) == (await scheduler.get_queue_stats()).completed_count == 50
            assert await scheduler.delete_task(ids[0])

        async with anyio.create_task_group() as group:
            for scheduler in schedulers.values():
                group.start_soon(whole_way, scheduler)
    assert len(ran) == 50 * len(names)
    for name in names:
        assert rig.owner(name).client.exists(Keys(name)("completed"))
        assert not strays(rig.owner(name).client, name)


async def test_a_worker_that_starts_at_a_replica_asks_who_is_master(rig: ClusterRig) -> None:
    """Its knowledge may be of the moment before a failover: that is no reason to stop."""
    store = QueueStore.of(quick_config(_storage(rig)))
    replica = rig.replica_of(rig.owner("test"))
    store.connection.server.location.moved("127.0.0.1", replica.port)
    await check_queue(store.connection, worker=True)
    assert (await store.connection.server.location.get()).port == rig.owner("test").port
    await store.aclose()


@asynccontextmanager
async def _loads(rig: ClusterRig) -> AsyncIterator[list[Load]]:
    """Three queues under load, one on each master."""
    loads = [Load(_storage(rig), name) for name in _queues(rig, 1)]
    async with AsyncExitStack() as stack:
        for load in loads:
            await stack.enter_async_context(load.running())
        yield loads


async def test_a_killed_master_stops_only_its_own_queues_until_its_replica_takes_over(
    rig: ClusterRig, request: pytest.FixtureRequest
) -> None:
    """Nobody steps in; no acknowledged task is stuck; only writes of the last moment may be lost."""
    victim, other, third = _queues(rig, 1)
    dead = rig.owner(victim)
    async with _loads(rig) as loads:
        dead.kill()
        killed = time.monotonic()
        resumed = await loads[0].goes_on(100) - killed
    print(f"{request.node.name}: resumed after {resumed:.1f} s")
    for load, name in zip(loads, (victim, other, third), strict=True):
        print(f"  {name}: {load.summary()}")
        assert not load.unfinished()
        assert not strays(rig.owner(name).client, name)
    assert rig.owner(victim) is rig.replica_of(dead)
    assert all(killed - 1 < loads[0].acknowledged[task_id] <= killed + 0.1 for task_id in loads[0].lost())
    for load in loads[1:]:
        assert not load.lost()
        assert not load.refused
        # Not `resumed`: a create that was answered in the moment of the kill may run yet.
        assert load.standstill() < loads[0].standstill()


async def test_a_planned_failover_loses_nothing(rig: ClusterRig, request: pytest.FixtureRequest) -> None:
    name = _queues(rig, 1)[0]
    old = rig.owner(name)
    new = rig.replica_of(old)
    load = Load(_storage(rig), name)
    async with load.running():
        begun = time.monotonic()
        new.ask("CLUSTER", "FAILOVER")
        await eventually(lambda: rig.owner(name) is new, "the replica is master", 40)
        took = time.monotonic() - begun
        await load.goes_on(100)
    print(f"{request.node.name}: took {took:.1f} s; {load.summary()}")
    assert not load.lost()
    assert not load.unfinished()
    assert not strays(new.client, name)


async def test_a_queue_that_is_moved_key_by_key_under_load_loses_nothing(
    rig: ClusterRig, request: pytest.FixtureRequest
) -> None:
    """Scripts meet a queue half of which is elsewhere: they are refused whole, and tried again."""
    name = _queues(rig, 1)[0]
    source, target = rig.owner(name), next(master for master in rig.masters if master is not rig.owner(name))
    load = Load(_storage(rig), name)
    async with load.running():
        for _ in range(2):
            begun = time.monotonic()
            moved = await _migrate(rig, rig.slot(name), source, target)
            took = time.monotonic() - begun
            await load.goes_on(100)
            assert rig.owner(name) is target
            assert not _lasting_strays(target, name)
            source, target = target, source
            print(f"{request.node.name}: {moved} keys in {took:.1f} s")
    print(f"  {load.summary()}, {dict(load.refused)}")
    assert not load.lost()
    assert not load.unfinished()
    assert not strays(source.client, name)


def _lasting_strays(node: Node, name: str) -> list[str]:
    """Return tasks in no index, twice in a row: a scan sees tasks that are on their way through a script's states."""
    return sorted(set(strays(node.client, name)) & set(strays(node.client, name)))


async def _migrate(rig: ClusterRig, slot: int, source: Node, target: Node) -> int:
    """Move a slot as redis-cli does, but one key at a time."""
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", rig.id(source))
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", rig.id(target))
    moved = 0
    while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
        source.ask("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
        moved += 1
        await anyio.sleep(0.002)
    for node in (target, source, *(node for node in rig.masters if node not in {source, target})):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", rig.id(target))
    return moved
