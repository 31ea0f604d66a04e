"""Answers of NVML are read as they are meant, by the real pynvml; a missing answer is never "free"."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from gpu.driver import GIB, Driver

from maas_backoff.gate import device, listing, nvml, sampling
from maas_backoff.gate.nvml import NvmlProbe
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.sample import GpuSample

Started = Callable[[], "Probing"]


class Probing:
    """A probe that runs."""

    def __init__(self) -> None:
        self.probe = NvmlProbe()
        self._round = threading.Event()
        self.probe.start(self._round.set)

    def next(self, seconds: float = 20) -> dict[str, GpuSample]:
        """Return what a round says that begins now."""
        asked = time.monotonic()
        while True:
            self._round.clear()
            self.probe.poke()
            assert self._round.wait(seconds), self.probe.trouble
            found = {one.uuid: one for one in self.probe.samples()}
            if all(one.at > asked for one in found.values()):
                return found


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def started(here: Driver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    monkeypatch.setattr(listing, "LISTED_FOR", 0.2)
    monkeypatch.setattr(listing, "MISSED_FOR", 0.2)
    monkeypatch.setattr(sampling, "FAILING_FOR", 0.2)
    probes: list[Probing] = []

    def start() -> Probing:
        probes.append(Probing())
        return probes[-1]

    yield start
    for probing in probes:
        probing.probe.stop()


def test_a_device_and_what_changes_about_it(here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, total, free, utilisation, temperature and who uses what; the next round sees a change."""
    monkeypatch.setattr(device, "is_contained", lambda: False)
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
    assert second.used == {owner_of(os.getpid()): 2048, owner_of(999999): 1024}


def test_utilisation_is_an_average_over_time(here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many samples are taken out of turn: a value counts for the time since the one before."""
    monkeypatch.setattr(device, "WINDOW", 1.5)
    here.device("GPU-a", util=100)
    probing = started()
    began = time.monotonic()
    while time.monotonic() < began + 1:
        assert probing.next()["GPU-a"].utilization == 100
    here.change("GPU-a", util=0)
    for _ in range(5):  # within a quarter of a second
        soon = probing.next()["GPU-a"].utilization or 0
    assert soon > 40
    changed = time.monotonic()
    while (last := probing.next()["GPU-a"].utilization) != 0:
        assert last is not None and last < 100
        assert time.monotonic() < changed + 20


@pytest.mark.parametrize(
    "how", ["temp_error=999", "util_error=4", "proc_error=999", "mode_error=4", "register_error=3"]
)
def test_all_but_the_memory_is_a_decoration(
    here: Driver, started: Started, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """A device is used without what cannot be read, and one warning says so."""
    name, _, value = how.partition("=")
    here.device("GPU-a", procs=f"{os.getpid()}:{GIB}", used_gb=1, **{name: int(value)})
    probing = started()
    for _ in range(3):
        one = probing.next()["GPU-a"]
    assert (one.trouble, one.free) == ("", 15 * 1024)
    assert (one.temperature is None, one.utilization is None, not one.used) == tuple(
        name == what for what in ("temp_error", "util_error", "proc_error")
    )
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(said) == (name != "register_error")  # many devices have no events


def test_a_name_that_is_no_utf8(here: Driver, started: Started) -> None:
    """As under WSL2; pynvml raises UnicodeDecodeError."""
    here.device("GPU-a", name="\xf8\x95")
    one = started().next()["GPU-a"]
    assert (one.name, one.trouble, one.free) == ("a GPU without a name", "", 16 * 1024)


def test_another_module_of_that_name(here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old ones give bytes, and have fewer functions; one that has not even these is told of."""
    import pynvml

    for name in ("nvmlDeviceGetUUID", "nvmlDeviceGetName"):
        real = getattr(pynvml, name)
        monkeypatch.setattr(pynvml, name, lambda handle, real=real: real(handle).encode())
    for name in ("nvmlDeviceGetComputeMode", "nvmlEventSetCreate", "nvmlDeviceGetMigMode"):
        monkeypatch.delattr(pynvml, name)
    here.device("GPU-a")
    probing = started()
    one = probing.next()["GPU-a"]
    assert (one.uuid, one.name, one.trouble) == ("GPU-a", "Fake", "")
    monkeypatch.delattr(pynvml, "nvmlDeviceGetCount")
    until(lambda: "is not nvidia-ml-py: it has no nvmlDeviceGetCount" in probing.probe.trouble)


def test_a_garbled_list_of_processes(here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is attributed than is in use."""
    monkeypatch.setattr(device, "is_contained", lambda: False)
    me, other = os.getpid(), 999999
    here.device("GPU-a", used_gb=6, procs=f"{me}:{15 * GIB},{other}:{15 * GIB}")
    one = started().next()["GPU-a"]
    assert one.used == {owner_of(me): 3 * 1024, owner_of(other): 3 * 1024}


def test_in_a_container_a_list_of_the_machine_s_process_ids_says_nothing(
    here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them may have the number of a process of the container, which uses nothing."""
    monkeypatch.setattr(device, "is_contained", lambda: True)
    me, nobody = os.getpid(), 2**22 + 1
    here.device("GPU-a", used_gb=2, procs=f"{me}:{GIB},{nobody}:{GIB}")
    here.device("GPU-b", used_gb=2, procs=f"{me}:{GIB}")
    samples = started().next()
    assert samples["GPU-a"].used == {}
    assert samples["GPU-b"].used == {owner_of(me): 1024}


@pytest.mark.parametrize(("mode", "exclusive", "trouble"), [(0, False, ""), (3, True, ""), (2, False, "compute mode")])
def test_the_compute_mode(here: Driver, started: Started, mode: int, exclusive: bool, trouble: str) -> None:
    here.device("GPU-a", compute_mode=mode)
    one = started().next()["GPU-a"]
    assert one.exclusive == exclusive and (trouble in one.trouble if trouble else not one.trouble)


def test_mig_mode_without_a_slice(here: Driver, started: Started) -> None:
    """CUDA has no device there."""
    here.device("GPU-a", mig_mode=1)
    assert "there is no slice" in started().next()["GPU-a"].trouble


def test_a_device_that_falls_off_the_bus_gives_its_number_to_no_other(here: Driver, started: Started) -> None:
    """It is shown as gone for some time, and forgotten then; the numbers stay."""
    for name in "abc":
        here.device(f"GPU-{name}")
    probing = started()
    probing.next()
    here.change("GPU-b", gone=1)
    until(lambda: probing.next()["GPU-b"].trouble == "it is gone")
    assert [(one.uuid, one.index) for one in probing.probe.samples()] == [("GPU-a", 0), ("GPU-b", 1), ("GPU-c", 2)]
    until(lambda: "GPU-b" not in probing.next())
    assert [one.index for one in probing.probe.samples()] == [0, 2]
    here.change("GPU-b", gone=0)
    until(lambda: "GPU-b" in probing.next())
    assert [one.uuid for one in probing.probe.samples()] == ["GPU-a", "GPU-b", "GPU-c"]


def test_after_a_reload_of_the_driver_nvml_is_initialised_again(here: Driver, started: Started) -> None:
    here.device("GPU-a")
    probing = started()
    probing.next()
    here.globals = {"generation": 1}
    here.write()
    until(lambda: probing.probe.trouble == "" and probing.next()["GPU-a"].trouble == "")
    here.change("GPU-a", xid=79)
    until(lambda: probing.next()["GPU-a"].trouble == "Xid 79")


def test_a_driver_that_cannot_be_initialised_after_a_reload_is_asked_until_it_can(
    here: Driver, started: Started
) -> None:
    here.device("GPU-a")
    probing = started()
    probing.next()
    here.globals = {"generation": 1, "init_error": 9}
    here.write()
    until(lambda: probing.next()["GPU-a"].trouble != "")
    for _ in range(3):
        time.sleep(listing.LISTED_FOR)
        assert probing.next()["GPU-a"].trouble != "", "no task gets a device that cannot be read"
    here.globals = {"generation": 1}
    here.write()
    until(lambda: probing.probe.trouble == "" and probing.next()["GPU-a"].trouble == "")


def test_a_probe_that_dies_has_no_samples_and_says_why(
    here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault of the library itself: old samples must not admit tasks for ever."""
    here.device("GPU-a")
    probing = started()
    probing.next()

    def fail(_: object) -> None:
        raise RuntimeError("a fault of the test")

    monkeypatch.setattr(sampling.Sampling, "take_round", fail)
    probing.probe.poke()
    until(lambda: probing.probe.trouble == "the probe has died: a fault of the test")
    assert probing.probe.samples() == []
    until(lambda: "the probe of the GPUs has died" in caplog.text)


def test_nvml_is_left_to_others_as_it_was(here: Driver, started: Started) -> None:
    """NVML counts: a probe that was never initialised ends nothing, and each ends what it has begun."""
    import pynvml

    here.device("GPU-a")
    pynvml.nvmlInit()
    try:
        started().next()
        here.globals = {"init_error": 9}
        here.write()
        failing = started().probe
        until(lambda: "initialised" in failing.trouble)
        failing.stop()
        until(lambda: sum(thread.name == "maas-backoff-nvml" for thread in threading.enumerate()) == 1)
        assert pynvml.nvmlDeviceGetCount() == 1
    finally:
        pynvml.nvmlShutdown()


def test_a_reading_that_fails_for_a_moment_grows_old(
    here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing new starts by it, and nothing is broken: that would end warm children."""
    monkeypatch.setattr(sampling, "FAILING_FOR", 100.0)
    here.device("GPU-a")
    here.device("GPU-b")
    probing = started()
    before = probing.next()["GPU-a"]
    here.change("GPU-a", mem_error=999)
    until(lambda: probing.probe.samples()[1].at > before.at + 0.5)
    kept = probing.probe.samples()[0]
    assert (kept.trouble, kept.free) == ("", before.free) and kept.at < before.at + 0.5
    here.change("GPU-a", mem_error=0)
    assert probing.next()["GPU-a"].at > kept.at
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_lost_device_is_told_of_once(here: Driver, started: Started, caplog: pytest.LogCaptureFixture) -> None:
    here.device("GPU-a")
    here.device("GPU-b")
    probing = started()
    probing.next()
    here.change("GPU-b", lost=1)
    began = time.monotonic()
    while time.monotonic() < began + 2:
        probing.next()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(said) <= 2 and len(set(said)) == len(said)


def test_the_driver_itself_tells_what_an_xid_means(
    here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer drivers name the action to recover a device by: none, for most."""
    import pynvml

    # Versions of the package before 12.570 lack the name.
    monkeypatch.setattr(pynvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 274, raising=False)
    action = 0

    def fields(handle: object, ids: list[int]) -> list[SimpleNamespace]:
        assert ids == [pynvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=action))]

    monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", fields)
    here.device("GPU-a")
    probing = started()
    probing.next()
    here.change("GPU-a", xid=95)
    probing.next()
    assert probing.next()["GPU-a"].trouble == ""
    action = 1
    here.change("GPU-a", xid=79)
    until(lambda: probing.next()["GPU-a"].trouble == "Xid 79")


def test_where_the_driver_names_no_action_the_number_of_the_xid_decides(
    here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML then answers the call, and gives an error for the value."""
    import pynvml

    monkeypatch.setattr(pynvml, "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION", 274, raising=False)
    unknown = SimpleNamespace(nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED, value=SimpleNamespace(uiVal=0))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetFieldValues", lambda *_: [unknown])
    here.device("GPU-a")
    probing = started()
    probing.next()
    here.change("GPU-a", xid=79)
    until(lambda: probing.next()["GPU-a"].trouble == "Xid 79")


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
    time.sleep(listing.LISTED_FOR)
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
    time.sleep(listing.LISTED_FOR)
    found = probing.next()
    assert found["GPU-a"].free == 0 and found["GPU-a"].trouble
    assert found["GPU-b"].free == 16 * 1024 and not found["GPU-b"].trouble
    here.change("GPU-a", **{name: 0})
    time.sleep(listing.LISTED_FOR)
    assert probing.next()["GPU-a"].trouble == ""


@pytest.mark.parametrize("how", ["lost=1", "handle_error=15"])
def test_a_device_that_was_missed_is_looked_for_soon(
    here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Not when the devices are next listed, which is half a minute later: tasks may wait for it."""
    for name in "ab":
        here.device(f"GPU-{name}")
    probing = started()
    probing.next()
    name, _, value = how.partition("=")
    here.change("GPU-a", **{name: int(value)})
    time.sleep(listing.LISTED_FOR)
    until(lambda: probing.next()["GPU-a"].trouble)
    monkeypatch.setattr(listing, "LISTED_FOR", 30.0)
    monkeypatch.setattr(listing, "MISSED_FOR", 0.1)
    probing.next()
    here.change("GPU-a", **{name: 0})
    until(lambda: not probing.next()["GPU-a"].trouble)


def test_an_xid_is_noted_unless_a_program_brings_it_about(here: Driver, started: Started) -> None:
    here.device("GPU-a")
    here.device("GPU-b")
    probing = started()
    probing.next()
    here.change("GPU-a", xid=79)
    until(lambda: probing.next()["GPU-a"].trouble == "Xid 79")
    for harmless in (13, 31, 43, 45, 63, 68, 92, 94, 109):
        here.change("GPU-b", xid=harmless)
        probing.next()
        found = probing.next()
        assert found["GPU-b"].trouble == ""


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
    assert "Driver Not Loaded" in probe.trouble and not probe.samples()
    # It is loaded later.
    here.globals = {}
    here.device("GPU-a")
    while not probe.samples():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert probe.trouble == ""


@pytest.mark.long
def test_a_slow_driver_gets_more_patience_and_a_hanging_one_is_told_of(
    here: Driver, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How old a sample may be grows with the time that a round takes, to a limit; samples() itself never waits."""
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
        probing.probe.samples()
        assert time.monotonic() - began < 0.3
