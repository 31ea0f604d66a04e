"""GPUs as users see them: the GPU of a task, and all GPUs of a queue's workers."""

from collections.abc import Mapping
from typing import Any, Self

import attrs

from maas_backoff.domain.demand import MIB_PER_GIB


@attrs.frozen
class GpuAssignment:
    """The device of an attempt: `task.gpu`.

    `index` is the number of the device for CUDA in the handler's process. It is 0 in a child process, which sees no
    other device. In thread mode it is the place among the worker's visible devices, by PCI address.
    """

    uuid: str
    index: int
    memory_gb: float
    """GiB that are reserved for this attempt."""

    @classmethod
    def of(cls, uuid: str, index: int, mib: int) -> Self:
        """Return the assignment of `mib` MiB."""
        return cls(uuid, index, mib / MIB_PER_GIB)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any] | None) -> Self | None:
        """Return the assignment in a dict of `attrs.asdict`; None for None."""
        return None if data is None else cls(**data)


@attrs.frozen
class GpuTask:
    """A task with a reservation on a device."""

    task_id: str
    queue: str
    worker: str
    memory_gb: float


@attrs.frozen
class GpuStatus:
    """A device of a live worker. Amounts are GiB.

    `other_processes_gb` is the memory of other processes. `reserved_gb` is the sum of all reservations, used or not.
    `free_gb` is the free memory by NVML. `room_gb` is the most that a new task could reserve now. `health` is "ok", or
    the trouble. `age` is the seconds since the GPU sample. `quarantine_age` is the seconds since `quarantine_gpu`; None
    without a quarantine, and if workers have put the device there, which ends by itself.
    """

    uuid: str
    index: int
    name: str
    host: str
    total_gb: float
    free_gb: float
    reserved_gb: float
    other_processes_gb: float
    utilization: float | None
    temperature: float | None
    health: str
    age: float
    tasks: tuple[GpuTask, ...] = ()
    room_gb: float = 0
    quarantine_age: float | None = None

    @property
    def healthy(self) -> bool:
        """Whether tasks may start here, or only tasks that the device is held for."""
        return self.health.partition(",")[0] == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return the device as JSON-able values."""
        return attrs.asdict(self)
