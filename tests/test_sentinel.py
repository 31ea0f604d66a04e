"""A master that dies or is replaced, as Sentinels see it: work goes on by itself, and what is lost is counted."""

import os
import time
from pathlib import Path

import pytest
from load import Load, strays
from support import eventually
from topology import KINDS, MASTER, SentinelRig

from maas_backoff import StorageConfig

pytestmark = [pytest.mark.anyio, pytest.mark.long, pytest.mark.timeout(150)]

# A master refuses writes when it has not heard of a replica for so many seconds.
CAREFUL = "min-replicas-to-write 1\nmin-replicas-max-lag 2\n"


USUAL = os.environ.get("MAAS_BACKOFF_TEST_SERVER", KINDS[0])
"""`nox -s matrix` runs the long ones on the others, too."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def _storage(rig: SentinelRig) -> StorageConfig:
    return StorageConfig(type="sentinel", nodes=rig.addresses, master=MASTER)


async def test_work_goes_on_after_the_master_was_killed(kind: str, tmp_path: Path) -> None:
    """Nobody steps in; no acknowledged task is stuck; only writes of the last moment may be lost."""
    with SentinelRig(kind, tmp_path) as rig:
        load = Load(_storage(rig))
        async with load.running():
            rig.master.kill()
            killed = time.monotonic()
            resumed = await load.goes_on(100) - killed
        print(f"{kind}, master killed: resumed after {resumed:.1f} s; {load.summary()}")
        assert not load.unfinished()
        assert not strays(rig.named().client)
        assert all(killed - 1 < load.acknowledged[task_id] <= killed + 0.1 for task_id in load.lost())


async def test_after_a_planned_failover_the_old_master_is_left_within_seconds(tmp_path: Path) -> None:
    """It goes on acknowledging until it is demoted, after 11 s, and all of that is lost: so one asks who is master."""
    with SentinelRig(USUAL, tmp_path) as rig:
        load, begun = await _planned_failover(rig)
        print(f"{USUAL}, planned failover: {load.summary()}")
        assert all(begun - 1 < load.acknowledged[task_id] < begun + 5 for task_id in load.lost())


@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_planned_failover_loses_next_to_nothing_where_writes_need_a_replica(
    replicas: int, tmp_path: Path
) -> None:
    """With one replica there is none until the old master is demoted, and nothing is accepted for so long."""
    with SentinelRig(USUAL, tmp_path, CAREFUL, replicas=replicas) as rig:
        load, begun = await _planned_failover(rig)
        print(f"{USUAL}, planned failover, min-replicas-to-write 1, {replicas} replicas: {load.summary()}")
        # A replica that changes its master leaves the old one with what it was told in the last moment.
        assert all(begun - 1 < load.acknowledged[task_id] < begun + 5 for task_id in load.lost())
        assert len(load.lost()) <= (5 if replicas == 1 else len(load.acknowledged) // 2)


async def _planned_failover(rig: SentinelRig) -> tuple[Load, float]:
    """Order it under load; wait until the old master has been demoted, and all is done."""
    load = Load(_storage(rig))
    async with load.running():
        begun = time.monotonic()
        rig.sentinels[0].ask("SENTINEL", "FAILOVER", MASTER)
        await eventually(lambda: rig.named() is not rig.master, "the Sentinels name the new master", 40)
        await eventually(lambda: rig.master.info("replication")["role"] == "slave", "the old master is demoted", 40)
        await load.goes_on(100)
    assert not load.unfinished()
    assert not strays(rig.named().client)
    return load, begun
