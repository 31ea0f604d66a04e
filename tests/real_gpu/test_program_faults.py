"""Programs that fail or compute on a real device: endless kernels, illegal addresses, error texts, utilisation."""

import subprocess
import sys
import time
from collections.abc import Callable

import anyio
import pytest
from real_gpu.device import VARIABLE
from real_gpu.rig import GIB, Rig, Watch, seconds_until

from maas_backoff import TaskStatus
from maas_backoff.domain.fault import fault_of

pytestmark = [pytest.mark.anyio, pytest.mark.alone, pytest.mark.long, pytest.mark.blocks, pytest.mark.timeout(60)]

Tell = Callable[[str], None]


async def test_a_timeout_ends_a_running_kernel_and_its_memory_is_back(rig: Rig, tell: Tell) -> None:
    await rig.start()
    task_id = await rig.create(["allocate", 4 * GIB], ["spin", 60], min_gpu_memory_gb=8, exec_timeout=3)
    await rig.did(task_id, "allocate")
    child = await rig.begun(task_id)
    begun = time.monotonic()
    task = await rig.ended(task_id, 20)
    settled = time.monotonic() - begun
    back = await seconds_until(lambda: not rig.watch.used_by(child), "the memory is free", 10)
    again = await rig.ended(await rig.create(min_gpu_memory_gb=8), 40)
    tell(f"a kernel of 60 s: settled after {settled:.2f} s, its memory free {back:.2f} s later; {again.status.value}")
    assert task.error is not None and task.error.type == "timeout" and settled < 6 and back < 5
    assert again.status is TaskStatus.COMPLETED and again.result["pid"] != child


async def test_an_illegal_address_replaces_the_child_and_the_device_stays_open(rig: Rig, tell: Tell) -> None:
    """Xid 31, which a program brings about: the next task has a new child on the same device."""
    await rig.start()
    task_id = await rig.create("corrupt", max_ooms=1)
    task = await rig.ended(task_id)
    pids = [pid for pid, _ in rig.attempts(task_id)]
    await anyio.sleep(2)  # until an event of the device would have been read
    created = time.monotonic()
    after = await rig.ended(await rig.create(), 40)
    took = time.monotonic() - created
    (gpu,) = [one for one in await rig.producer.gpus() if one.uuid == rig.uuid]
    tell(f"{len(pids)} attempts: {str(task.error)[:80]!r}; device {gpu.health!r}; the next task: {took:.1f} s")
    assert task.status is TaskStatus.FAILED and len(pids) <= 2
    assert gpu.health == "ok" and after.status is TaskStatus.COMPLETED and took < 20
    assert len({*pids, after.result["pid"]}) == len(pids) + 1


async def test_a_ceiling_of_utilisation_keeps_a_task_away_from_a_busy_device(rig: Rig, tell: Tell) -> None:
    await rig.start()
    with rig.other(GIB, busy=True):
        load = lambda: rig.watch.sample().utilization or 0  # noqa: E731 - a name for what is waited for
        risen = await seconds_until(lambda: load() > 80, "the load shows", 15)
        task = await rig.create(max_gpu_utilization=50)

        async def is_told() -> bool:
            return "utilisation" in (await rig.status(task))[1]

        await seconds_until(is_told, "the reason is told", 5)
        await anyio.sleep(1)
        reason, shown = await rig.status(task), load()
    ended = time.monotonic()
    await rig.ended(task, 30)
    took = time.monotonic() - ended
    tell(f"{shown:.0f} % after {risen:.1f} s, the task {reason}; completed {took:.1f} s after the other's end")
    assert reason[0] == "pending" and took < 10


# A name; what the error may be told as; code that raises the error.
TEXTS = [
    ("too large", {"out_of_memory"}, "torch.empty(1 << 42, dtype=torch.uint8, device='cuda')"),
    (
        "bit by bit",
        {"out_of_memory"},
        "taken = []\nwhile True: taken.append(torch.empty(1 << 32, dtype=torch.uint8, device='cuda'))",
    ),
    (
        "no room for cuBLAS",
        {"out_of_memory"},
        """
ones = torch.ones(64, 64, device='cuda')
taken = torch.empty(torch.cuda.mem_get_info()[0] - (32 << 20), dtype=torch.uint8, device='cuda')
(ones @ ones).sum().item()""",
    ),
    ("no such device", {""}, "torch.empty(1, device='cuda:7')"),
    (
        "index out of range",
        {"program"},
        "torch.zeros(4, device='cuda')[torch.tensor([1 << 40], device='cuda')].sum().item()",
    ),
    # Until fault.py tells an illegal address apart from a broken device.
    ("illegal address", {"gpu", "program"}, "from real_gpu.device import TorchDevice\nTorchDevice().corrupt()"),
    ("no device", {"gpu"}, "torch.cuda.init()"),
]


@pytest.mark.timeout(60)
def test_the_texts_of_pytorch_are_told_as_what_they_are(env: dict[str, str], watch: Watch, tell: Tell) -> None:
    if env[VARIABLE] != "torch":
        pytest.skip("the texts of PyTorch need PyTorch")
    wrong: list[str] = []
    for name, expected, code in TEXTS:
        visible = {"CUDA_VISIBLE_DEVICES": "" if name == "no device" else watch.sample().uuid}
        command = [sys.executable, "-P", "-c", f"import torch\ntry:\n{_indented(code)}\n{CATCH}"]
        ran = subprocess.run(command, env={**env, **visible}, capture_output=True, text=True, timeout=25, check=False)
        kind, _, message = ran.stdout.partition("\n")
        told = fault_of(kind, message) if kind else "nothing was raised"
        tell(f"{name}: {kind}: {message[:100]!r} is told as {told!r}")
        if told not in expected:
            wrong.append(name)
    assert not wrong


CATCH = "except Exception as error: print(type(error).__name__, error, sep='\\n')"


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" for line in code.splitlines())
