"""Compare what NVML, CUDA and the product say of a real device: its memory, its UUID, and the owners of the memory."""

import os
import shutil
import subprocess
from collections.abc import Callable

import pytest
from real_gpu.device import VARIABLE
from real_gpu.rig import CONTEXT, GIB, Rig, Watch, seconds_until

from maas_backoff.gate.owner import owner_of

pytestmark = [pytest.mark.anyio, pytest.mark.alone, pytest.mark.long, pytest.mark.blocks, pytest.mark.timeout(60)]

Tell = Callable[[str], None]


async def test_a_sample_agrees_with_cuda_and_with_nvidia_smi(rig: Rig, tell: Tell) -> None:
    with rig.other(1) as seen:
        sample = rig.watch.sample()
        smi = _nvidia_smi(sample.uuid)
    tell(f"{sample.name}, Linux {os.uname().release}, memory by {rig.env[VARIABLE]}")
    tell(f"free of total MiB: NVML {sample.free} of {sample.total}, CUDA {seen.free} of {seen.total}, nvidia-smi {smi}")
    assert (seen.count, seen.uuid) == (1, sample.uuid)
    assert abs(seen.free - sample.free) <= GIB and abs(seen.total - sample.total) <= 2 * GIB
    if smi:
        total, free, temperature = smi
        assert abs(total - sample.total) <= 1 and abs(free - sample.free) <= 64
        assert sample.temperature is None or abs(temperature - sample.temperature) <= 5


def _nvidia_smi(uuid: str) -> list[int]:
    """Return total and free MiB and the temperature; none where there is no nvidia-smi, or not such a device."""
    if shutil.which("nvidia-smi") is None:
        return []
    fields = "--query-gpu=memory.total,memory.free,temperature.gpu"
    command = ["nvidia-smi", f"--id={uuid}", fields, "--format=csv,noheader,nounits"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return [int(word) for word in shown.stdout.split(",")] if shown.returncode == 0 else []


def test_a_round_of_readings_is_quick(watch: Watch, tell: Tell) -> None:
    """A worker takes up to 20 rounds a second while memory comes back."""
    costs = watch.costs()
    tell(f"the first round took {max(costs):.1f} ms; median {costs[15]:.2f}, p90 {costs[26]:.2f}")
    assert costs[26] < 50


async def test_a_child_sees_its_device_only(rig: Rig, tell: Tell) -> None:
    await rig.start()
    result = (await rig.ended(await rig.create())).result
    (loaded,) = rig.notes("loaded")
    tell(f"CUDA_VISIBLE_DEVICES={result['visible']}: {result['seen']}; opened in {loaded[1]} s")
    assert result["visible"] == result["gpu"] == result["seen"]["uuid"] == rig.uuid
    assert result["seen"]["count"] == 1


async def test_a_context_uses_memory_that_is_attributed_to_its_child(rig: Rig, tell: Tell) -> None:
    before = rig.watch.sample().free
    await rig.start()
    (child,) = rig.notes("loaded")
    sample = rig.watch.sample()
    used = sample.used.get(owner_of(int(child[0])), 0)
    tell(f"{used} MiB attributed to a child that allocates nothing; the device lost {before - sample.free} MiB")
    assert 100 <= used <= CONTEXT and 100 <= before - sample.free <= CONTEXT


async def test_memory_is_attributed_to_the_child_also_that_of_a_process_it_starts(rig: Rig, tell: Tell) -> None:
    """The started process has a session of its own."""
    await rig.start()
    task = await rig.create(["allocate", 4 * GIB], ["sleep", 2], ["start", 2 * GIB], ["sleep", 3], min_gpu_memory_gb=10)
    child = await rig.begun(task)
    await rig.did(task, "allocate")
    took = await seconds_until(lambda: rig.watch.used_by(child) >= 4 * GIB, "the child's memory shows", 2)
    alone = rig.watch.used_by(child)
    await rig.did(task, "start")
    took += await seconds_until(lambda: rig.watch.used_by(child) >= 6 * GIB, "that of the other shows", 2)
    both = rig.watch.used_by(child)
    tell(f"{alone} MiB with 4 GiB allocated; {both} with 2 GiB of a started process; shown after {took:.2f} s")
    assert alone <= 4 * GIB + CONTEXT and both <= 6 * GIB + 2 * CONTEXT
    await rig.ended(task)
