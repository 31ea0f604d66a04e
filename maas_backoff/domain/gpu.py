"""GPUs as users see them: the one that a task was given, and all of a queue's workers."""

from collections.abc import Mapping
from typing import Any, Self

import attrs

from maas_backoff.domain.demand import MIB_PER_GIB


@attrs.frozen
class GpuAssignment:
    """The device an attempt runs on, as `task.gpu`.

    `index` is what CUDA calls it in the handler's process: 0 in a child process, which sees no other device; in
    thread mode its place among the worker's visible devices, in the order of their PCI addresses.
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
        """Return what `attrs.asdict` made of one."""
        return None if data is None else cls(**data)


@attrs.frozen
class GpuTask:
    """A task that a device's memory is reserved for."""

    task_id: str
    queue: str
    worker: str
    memory_gb: float


@attrs.frozen
class GpuStatus:
    """A device of a live worker. Amounts are GiB.

    `strangers_gb` is what programs use that are none of ours; `reserved_gb` what is promised to our tasks and idle
    children, whether they use it yet or not; `free_gb` what NVML calls free; `room_gb` what a new task could be given
    now. `health` is "ok", or what is wrong.
    `age` is how many seconds ago it was read.
    """

    uuid: str
    index: int
    name: str
    host: str
    total_gb: float
    free_gb: float
    reserved_gb: float
    strangers_gb: float
    utilization: float | None
    temperature: float | None
    health: str
    age: float
    tasks: tuple[GpuTask, ...] = ()
    room_gb: float = 0

    @property
    def healthy(self) -> bool:
        """Whether tasks may start here, be it only one that the device is held for."""
        return self.health.partition(",")[0] == "ok"

    def to_dict(self) -> dict[str, Any]:
        """Return the device as JSON-able values."""
        return attrs.asdict(self)
