"""GPUs that are not there."""

import time
from collections.abc import Callable, Sequence

import attrs

from maas_backoff.config.options import must
from maas_backoff.domain.demand import MIB_PER_GIB
from maas_backoff.gate.owner import owner_in_session
from maas_backoff.gate.sample import GpuSample


@attrs.define
class FakeGpu:
    """A GPU that is not there. Fields may be assigned while a worker runs; amounts are GiB.

    `processes` is what the processes of these ids use; `strangers_gb` what nobody knows the user of. `trouble` breaks
    it.
    """

    uuid: str = attrs.field(validator=must("text without blanks", lambda uuid: uuid == "".join(str(uuid).split())))
    total_gb: float = 16
    name: str = "Fake GPU"
    strangers_gb: float = 0
    processes: dict[int, float] = attrs.field(factory=dict[int, float])
    utilization: float | None = 0
    trouble: str = ""


class FakeGpuProbe:
    """Stands in for NVML: `TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe([FakeGpu("GPU-a", total_gb=24)]))`.

    A change of `gpus` is seen when somebody looks, at once.
    """

    trouble = ""
    patience: float = 3.0
    has_answered = True

    def __init__(self, gpus: Sequence[FakeGpu]) -> None:
        self.gpus: list[FakeGpu] = list(gpus)
        self._changed: Callable[[], None] | None = None

    def start(self, changed: Callable[[], None]) -> None:
        """Begin."""
        self._changed = changed
        changed()

    def stop(self) -> None:
        """End."""
        self._changed = None

    def poke(self) -> None:
        """Have the worker look again: to be called after a change of `gpus`, or a second passes."""
        if self._changed is not None:
            self._changed()

    def samples(self) -> list[GpuSample]:
        """Return the devices as they are now."""
        return [_sample(index, gpu) for index, gpu in enumerate(self.gpus)]


def _sample(index: int, gpu: FakeGpu) -> GpuSample:
    used = gpu.strangers_gb + sum(gpu.processes.values())
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
