"""A GPU sample, and the interface of a probe."""

from collections.abc import Callable, Mapping
from typing import Protocol

import attrs

NO_DRIVER, NO_DEVICE = "no driver: ", "there is no device"
"""The trouble of a probe on a machine without GPUs is the second, or begins with the first."""


@attrs.frozen
class GpuSample:
    """The state of one device at one moment, by NVML; amounts are MiB, `at` is time.monotonic() when NVML was asked.

    `used` is what NVML attributes to processes, by owner: "<pid namespace>:<session id>", as a child process leads a
    session with all it starts. `utilization` is in percent, averaged over the last samples; None: not supported.
    `trouble` says why the device is not to be used; "" if it may be. An `exclusive` one takes one process at a time.
    """

    uuid: str
    index: int
    name: str
    total: int
    free: int
    at: float
    used: Mapping[str, int] = attrs.field(factory=dict[str, int])
    utilization: float | None = None
    temperature: float | None = None
    trouble: str = ""
    exclusive: bool = False

    @property
    def cuda_name(self) -> str:
        """The device's name in CUDA_VISIBLE_DEVICES. CUDA takes a UUID that begins otherwise (Jetson) for a number."""
        return self.uuid if self.uuid.startswith(("GPU-", "MIG-")) else f"{self.index}"


class Probe(Protocol):
    """A source of samples. `start` and `stop` never block; samples are taken in another thread."""

    def start(self, changed: Callable[[], None]) -> None:
        """Begin; `changed` is called, from any thread, after each round of samples."""
        ...

    def stop(self) -> None:
        """End, without waiting."""
        ...

    def poke(self) -> None:
        """Take samples soon."""
        ...

    def samples(self) -> list[GpuSample]:
        """Return the newest sample of each device, healthy or not."""
        ...

    @property
    def patience(self) -> float:
        """How old, in seconds, a sample may be."""
        ...

    @property
    def has_answered(self) -> bool:
        """Whether the probe knows the devices, also if there are none."""
        ...

    @property
    def trouble(self) -> str:
        """Why there are no samples, or none that are new; "" if all is well."""
        ...
