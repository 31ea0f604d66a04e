"""Fake GPUs for tests."""

import time
from collections.abc import Callable, Sequence

import attrs

from maas_backoff.config.options import must
from maas_backoff.domain.demand import MIB_PER_GIB
from maas_backoff.gate.owner import owner_in_session
from maas_backoff.gate.sample import GpuSample


@attrs.define
class FakeGpu:
    """A fake GPU. Fields may be assigned while a worker runs; amounts are in GiB.

    `processes` is the memory used by process id. `other_processes_gb` is memory used by other, unknown processes. A
    text in `trouble` makes the GPU unusable.
    """

    uuid: str = attrs.field(validator=must("text without blanks", lambda uuid: uuid == "".join(str(uuid).split())))
    total_gb: float = 16
    name: str = "Fake GPU"
    other_processes_gb: float = 0
    processes: dict[int, float] = attrs.field(factory=dict[int, float])
    utilization: float | None = 0
    trouble: str = ""


class FakeGpuProbe:
    """Replaces NVML: `TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe([FakeGpu("GPU-a", total_gb=24)]))`.

    `samples` always shows the present `gpus`.
    """

    trouble = ""
    patience: float = 3.0
    has_answered = True

    def __init__(self, gpus: Sequence[FakeGpu]) -> None:
        self.gpus: list[FakeGpu] = list(gpus)
        self._changed: Callable[[], None] | None = None

    def start(self, changed: Callable[[], None]) -> None:
        """Set the function to call after a change, and call it."""
        self._changed = changed
        changed()

    def stop(self) -> None:
        """Forget the function to call after a change."""
        self._changed = None

    def poke(self) -> None:
        """Make the worker check the GPUs now, after a change of `gpus`; without this it checks within a second."""
        if self._changed is not None:
            self._changed()

    def samples(self) -> list[GpuSample]:
        """Return a sample of each GPU."""
        return [_sample(index, gpu) for index, gpu in enumerate(self.gpus)]


def _sample(index: int, gpu: FakeGpu) -> GpuSample:
    used = gpu.other_processes_gb + sum(gpu.processes.values())
    return GpuSample(
        uuid=gpu.uuid,
        index=index,
        name=gpu.name,
        total=round(gpu.total_gb * MIB_PER_GIB),
        free=0 if gpu.trouble else max(0, round((gpu.total_gb - used) * MIB_PER_GIB)),
        at=time.monotonic(),
        used={owner_in_session(pid): round(amount * MIB_PER_GIB) for pid, amount in gpu.processes.items()},
        utilization=gpu.utilization,
        trouble=gpu.trouble,
    )
