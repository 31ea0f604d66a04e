"""The devices that one worker may use, as last read, and what is wrong with them."""

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.demand import Waiting
from maas_backoff.gate.sample import GpuSample, Probe
from maas_backoff.gate.visible import chosen, unknown, visible_to_cuda

log: Log = log_for("gpu")

QUIETEST = 0.05
"""Seconds between two samples out of turn."""


class Devices:
    """The probe's devices that CUDA would see, and that the configuration names."""

    def __init__(
        self,
        probe: Probe,
        gpus: Literal["all"] | Sequence[int | str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` is that of the samples."""
        self._probe = probe
        self._gpus = gpus
        self._clock = clock
        self._visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._poked_at = -math.inf
        self._named = False
        self._without_load = False

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to read devices, unless none are wanted; `changed` is called from any thread."""
        if self._gpus:
            self._probe.start(changed)

    def stop(self) -> None:
        """Read no more."""
        self._probe.stop()

    def soon(self) -> None:
        """Have the devices read again soon."""
        now = self._clock()
        if now - self._poked_at >= QUIETEST:
            self._poked_at = now
            self._probe.poke()

    @property
    def all(self) -> list[GpuSample]:
        """The newest samples, well or not, as CUDA numbers them."""
        if not self._gpus:
            return []
        samples = self._seen_by_cuda
        if samples and not self._named:
            self._named = True
            if missing := unknown(samples, self._gpus):
                log.warning("gpu.gpus names what is not to be seen here: %s", ", ".join(map(str, missing)))
        return chosen(samples, self._gpus)

    @property
    def usable(self) -> list[GpuSample]:
        """Fresh samples of devices that are well."""
        return [one for one in self.all if not one.trouble and not self.is_old(one)]

    def usable_one(self, uuid: str) -> GpuSample | None:
        """Return the fresh GPU sample of a device; None if the device cannot be used now."""
        return next((one for one in self.usable if one.uuid == uuid), None)

    @property
    def awaited(self) -> bool:
        """Whether it is not known yet what devices there are."""
        return bool(self._gpus) and not self._probe.samples() and not self._probe.has_answered

    def is_old(self, sample: GpuSample) -> bool:
        """Whether a sample is too old to admit a task by."""
        return self.age(sample) > self._probe.patience

    def age(self, sample: GpuSample) -> float:
        """Return how old a sample is, in seconds."""
        return self._clock() - sample.at

    def index(self, sample: GpuSample) -> int:
        """Return the number that CUDA gives a device in this process."""
        return next((n for n, one in enumerate(self._seen_by_cuda) if one.uuid == sample.uuid), sample.index)

    @property
    def trouble(self) -> str | None:
        """The reason why no device can be used, if all of them fail. `gpus()` tells of a single one."""
        devices = self.all
        if not devices or self.usable:
            return None
        why = self._probe.trouble or devices[0].trouble or "the GPU samples are too old"
        return f"none of {len(devices)} GPUs can be used: {why}"

    def trouble_of(self, uuid: str) -> str:
        """Why a device is not to be used now; "" if it may be."""
        return next((one.trouble for one in self.all if one.uuid == uuid), "it is gone")

    def warn_without_load(self, waiting: Iterable[Waiting]) -> None:
        """Say, once, where a ceiling of utilisation does not count."""
        if self._without_load or not any(one.demand.ceiling for one in waiting):
            return
        for sample in self.usable:
            if sample.utilization is None:
                self._without_load = True
                log.warning("GPU %s reports no utilisation; max_gpu_utilization has no effect there", sample.uuid)

    @property
    def _seen_by_cuda(self) -> list[GpuSample]:
        return visible_to_cuda(self._probe.samples(), self._visible)
