"""Rounds of GPU samples: of each device that is listed, and of those that are gone."""

import math
import time

import attrs

from maas_backoff.common.guard import Log, log_for
from maas_backoff.gate import library, listing
from maas_backoff.gate.device import MIB, NvmlDevice, by_owner, memory_of
from maas_backoff.gate.driver import Driver
from maas_backoff.gate.faultlog import FaultLog
from maas_backoff.gate.library import Library, NvmlError
from maas_backoff.gate.listing import Listing
from maas_backoff.gate.optional import optional
from maas_backoff.gate.sample import GpuSample
from maas_backoff.gate.xids import Xids

log: Log = log_for("gpu")

FAILING_FOR = 10.0
"""Seconds after which a device whose memory cannot be read is broken. Until then its last sample grows old: nothing
new starts there, and warm children stay."""

_BROKEN_AT_ONCE = frozenset({library.GPU_IS_LOST, library.RESET_REQUIRED})


class Sampling:
    """The samples of the last round. For one thread; `samples` and `trouble` may be read by others."""

    def __init__(self, nvml: Library) -> None:
        self._faults = FaultLog(log)
        self._xids = Xids()
        self.driver: Driver = Driver(nvml, self._faults)
        self._listing = Listing(self.driver, self._faults, self._xids)
        self.samples: dict[str, GpuSample] = {}
        """By UUID, in NVML's order."""

    @property
    def trouble(self) -> str:
        """Why there are no samples; "" if all is well."""
        return self.driver.trouble or self._listing.trouble

    def take_round(self) -> None:
        """Take a sample of each device."""
        now = time.monotonic()
        self._listing.refresh(now, is_troubled=any(one.trouble for one in self.samples.values()))
        devices = self._listing.devices
        self._xids.note(self.driver.library, {device.uuid for device in devices})
        samples = {device.uuid: self._sample(device) for device in devices}
        for uuid in self._listing.gone:
            samples[uuid] = attrs.evolve(self.samples[uuid], free=0, at=now, used={}, trouble="it is gone")
        self.samples = dict(sorted(samples.items(), key=lambda item: item[1].index))

    def _sample(self, device: NvmlDevice) -> GpuSample:
        at, handle = time.monotonic(), device.handle
        try:
            total, free = memory_of(handle)
            processes = optional(self._faults, device.uuid, "process list", handle.processes) or []
            # Memory may change between the two calls. The smaller number is safe.
            free = min(free, memory_of(handle)[1])
        except NvmlError as error:
            return self._unread(device, error, at)
        if device.failing_since < math.inf:
            device.failing_since = math.inf
            self._faults.is_over(device.uuid)
        device.note_load(at, optional(self._faults, device.uuid, "utilisation", handle.utilization))
        return GpuSample(
            device.uuid,
            device.index,
            device.name,
            total // MIB,
            free // MIB,
            at,
            used=by_owner(processes, total - free),
            utilization=device.average_load(at),
            temperature=optional(self._faults, device.uuid, "temperature", handle.temperature),
            trouble=device.trouble or self._xids.trouble_of(device.uuid, listing.LISTED_FOR),
            exclusive=device.exclusive,
        )

    def _unread(self, device: NvmlDevice, error: NvmlError, at: float) -> GpuSample:
        """Return the last sample, which is not free for anything new; after some time the device is broken."""
        device.failing_since = min(device.failing_since, at)
        before = self.samples.get(device.uuid)
        is_broken = error.code in _BROKEN_AT_ONCE or at - device.failing_since >= FAILING_FOR
        if before is not None and not before.trouble and not is_broken:
            return before
        self._faults.begins(device.uuid, f"GPU {device.uuid} cannot be read: {error}")
        before = before or GpuSample(device.uuid, device.index, device.name, 0, 0, at)
        return attrs.evolve(before, free=0, at=at, used={}, trouble=str(error))
