"""What NVML says is read as it is meant, by the real pynvml; what it does not say is never "free"."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gpu.driver import GIB, Driver

from maas_backoff.gate import nvml
from maas_backoff.gate.nvml import NvmlProbe
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.reading import Reading

Started = Callable[[], "Probing"]


class Probing:
    """A probe that runs."""

    def __init__(self) -> None:
        self.probe = NvmlProbe()
        self._round = threading.Event()
        self.probe.start(self._round.set)

    def next(self, seconds: float = 20) -> dict[str, Reading]:
        """Return what a round says that begins now."""
        asked = time.monotonic()
        while True:
            self._round.clear()
            self.probe.poke()
            assert self._round.wait(seconds), self.probe.trouble
            found = {one.uuid: one for one in self.probe.readings()}
            if all(one.at > asked for one in found.values()):
                return found


@pytest.fixture
def started(here: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.setattr(nvml, "LISTED_FOR", 0.2)
    probes: list[Probing] = []

    def start() -> Probing:
        probes.append(Probing())
        return probes[-1]

    yield start
    for probing in probes:
        probing.probe.stop()


def test_a_device_and_what_changes_about_it(here: Driver, started: Started) -> None:
    """Name, total, free, utilisation, temperature and who uses what; the next round sees a change."""
    here.device("GPU-a", used_gb=3, name="Fake_H100", util=40, temp=61, reserved=GIB)
    probing = started()
    (first,) = probing.next().values()
    assert (first.uuid, first.index, first.name, first.trouble) == ("GPU-a", 0, "Fake H100", "")
    assert (first.total, first.free, first.temperature, first.utilization) == (16 * 1024, 12 * 1024, 61, 40)
    assert first.used == {}
    # This process, one that is not there, and one whose memory is not told.
    here.change("GPU-a", used=6 * GIB, procs=f"{os.getpid()}:{2 * GIB},999999:{GIB},1:{2**64 - 1}")
    second = probing.next()["GPU-a"]
    assert second.free == 9 * 1024
    assert second.used == {owner_of(os.getsid(0)): 2048, owner_of(999999): 1024}


def test_utilisation_is_an_average_of_the_last_readings(here: Driver, started: Started) -> None:
    here.device("GPU-a", util=100)
    probing = started()
    probing.next()
    here.change("GPU-a", util=0)
    assert 0 < (probing.next()["GPU-a"].utilization or 0) < 100
    for _ in range(nvml.WINDOW):
        last = probing.next()["GPU-a"].utilization
    assert last == 0


def test_a_slice_is_a_device_and_its_parent_none(here: Driver, started: Started) -> None:
    """MIG: memory of its own, no utilisation; slices may come and go."""
    here.device("GPU-whole")
    here.device("GPU-cut")
    here.slices = {"MIG-1": {"parent": 1, "total": 10 * GIB}, "MIG-2": {"parent": 1, "total": 5 * GIB, "used": GIB}}
    here.write()
    probing = started()
    found = probing.next()
    assert list(found) == ["GPU-whole", "MIG-1", "MIG-2"]
    assert [one.free for one in found.values()] == [16 * 1024, 10 * 1024, 4 * 1024]
    assert found["MIG-1"].utilization is None and found["GPU-whole"].utilization == 0
    del here.slices["MIG-2"]
    here.write()
    time.sleep(nvml.LISTED_FOR)
    found = probing.next()
    assert (found["MIG-2"].trouble, found["MIG-2"].free) == ("it is gone", 0)


@pytest.mark.parametrize("how", ["mem_error=3", "total=0"])
def test_a_device_that_shares_the_machines_memory(here: Driver, started: Started, how: str) -> None:
    """GB10, Jetson: NVML tells no memory; what the machine has available stands for it."""
    name, _, value = how.partition("=")
    here.device("GPU-a", **{name: int(value)})
    one = started().next()["GPU-a"]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    told = {line.split()[0]: int(line.split()[1]) // 1024 for line in lines}
    assert one.total == told["MemTotal:"]
    assert abs(one.free - told["MemAvailable:"]) < 1024
    assert one.trouble == ""


@pytest.mark.parametrize("how", ["lost=1", "mem_error=999", "mem_error=16", "handle_error=15"])
def test_a_broken_device_is_never_free(here: Driver, started: Started, how: str) -> None:
    """Lost, to be reset, unknown: it has no room, and says why; the others go on; it may come back."""
    here.device("GPU-a")
    here.device("GPU-b")
    probing = started()
    assert probing.next()["GPU-a"].trouble == ""
    name, _, value = how.partition("=")
    here.change("GPU-a", **{name: int(value)})
    time.sleep(nvml.LISTED_FOR)
    found = probing.next()
    assert found["GPU-a"].free == 0 and found["GPU-a"].trouble
    assert found["GPU-b"].free == 16 * 1024 and not found["GPU-b"].trouble
    here.change("GPU-a", **{name: 0})
    time.sleep(nvml.LISTED_FOR)
    assert probing.next()["GPU-a"].trouble == ""


def test_an_xid_is_noted_unless_a_program_brings_it_about(here: Driver, started: Started) -> None:
    here.device("GPU-a")
    here.device("GPU-b")
    probing = started()
    probing.next()
    here.change("GPU-a", xid=79)
    here.change("GPU-b", xid=13)
    probing.next()
    found = probing.next()
    assert (found["GPU-a"].trouble, found["GPU-b"].trouble) == ("Xid 79", "")


def test_a_device_that_is_lost_in_the_moment_of_its_xid_does_not_take_the_others_with_it(
    here: Driver, started: Started
) -> None:
    here.device("GPU-a")
    here.device("GPU-b")
    probing = started()
    probing.next()
    here.change("GPU-a", xid=79, lost=1)
    probing.next()
    found = probing.next()
    assert found["GPU-a"].trouble and found["GPU-b"].free == 16 * 1024


def test_without_a_driver_there_is_nothing_and_it_says_why(here: Driver, started: Started) -> None:
    here.globals = {"init_error": 9}
    here.write()
    probe = started().probe
    deadline = time.monotonic() + 20
    while "initialised" not in probe.trouble:
        assert time.monotonic() < deadline, probe.trouble
        time.sleep(0.01)
    assert "Driver Not Loaded" in probe.trouble and not probe.readings()
    # It is loaded later.
    here.globals = {}
    here.device("GPU-a")
    while not probe.readings():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert probe.trouble == ""


def test_a_slow_driver_gets_more_patience_and_a_hanging_one_is_told_of(
    here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How old a reading may be grows with the time that reading takes, to a limit; readings() itself never waits."""
    here.device("GPU-a")
    probing = started()
    probing.next()
    assert probing.probe.patience == 3 * nvml.PERIOD
    here.globals = {"latency_ms": 400}
    here.write()
    probing.next()
    probing.next()
    assert 3 * nvml.PERIOD < probing.probe.patience <= 3 * nvml.DEADLINE
    monkeypatch.setattr(nvml, "DEADLINE", 0.1)
    deadline = time.monotonic() + 20
    while "has not answered" not in probing.probe.trouble:
        assert time.monotonic() < deadline
        began = time.monotonic()
        probing.probe.readings()
        assert time.monotonic() - began < 0.3
