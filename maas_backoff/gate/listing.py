"""The devices of this machine: listed anew from time to time, and followed when one of them goes."""

import math

from maas_backoff.gate import library
from maas_backoff.gate.device import NvmlDevice
from maas_backoff.gate.driver import Driver
from maas_backoff.gate.faultlog import FaultLog
from maas_backoff.gate.library import NvmlError, NvmlHandle
from maas_backoff.gate.optional import optional
from maas_backoff.gate.sample import NO_DEVICE
from maas_backoff.gate.xids import Xids

LISTED_FOR = 30.0
"""Seconds after which the devices are listed anew: MIG slices come and go."""

MISSED_FOR = 3.0
"""Likewise while a device is missing or broken, as it may be back."""

_PROHIBITED = "its compute mode lets no process in: nvidia-smi --compute-mode=0 changes that"
_NO_SLICE = "MIG mode is on and there is no slice: nothing can run on it"


class Listing:
    """The devices of the last listing, and those that were there before."""

    def __init__(self, driver: Driver, faults: FaultLog, xids: Xids) -> None:
        self.devices: list[NvmlDevice] = []
        self.gone: dict[str, float] = {}
        """When the devices were missed that were there once. Each is kept for some time, so that it is seen."""
        self.trouble: str = "it has not answered yet"
        """Why there are no devices; "" if there are some."""
        self._driver = driver
        self._faults = faults
        self._xids = xids
        self._indices: dict[str, int] = {}
        self._listed_at = -math.inf
        self._unlisted = 0
        """How many devices could not be asked when they were listed."""

    def refresh(self, now: float, *, is_troubled: bool) -> None:
        """List the devices anew when it is time to: earlier while one is missing, or if a sample has a trouble."""
        missed = not self.devices or self._unlisted or is_troubled
        if now - self._listed_at > (MISSED_FOR if missed else LISTED_FOR):
            self._listed_at = now
            works = not self.devices or any(device.failing_since == math.inf for device in self.devices)
            if works or self._restart():
                self._list_all(now)
        self.gone = {uuid: since for uuid, since in self.gone.items() if now - since < 4 * LISTED_FOR}

    def _restart(self) -> bool:
        self._xids.forget()
        return self._driver.restart()

    def _list_all(self, now: float) -> None:
        try:
            self._replace(self._found(), now)
        except NvmlError as error:
            self.trouble = f"NVML cannot list the devices: {error}"
            self._faults.begins("devices", self.trouble)
            self._restart()
        else:
            self._faults.is_over("devices")
            self.trouble = "" if self.devices else NO_DEVICE

    def _found(self) -> list[NvmlDevice]:
        """Return the devices that can be asked."""
        found: list[NvmlDevice] = []
        self._unlisted = 0
        for index in range(self._driver.library.count()):
            what = f"GPU {index}"
            try:
                found += self._listed(index)
            except NvmlError as error:
                self._unlisted += 1
                self._faults.begins(what, f"{what} cannot be asked: {error}")
            else:
                self._faults.is_over(what)
        return found

    def _replace(self, found: list[NvmlDevice], now: float) -> None:
        """Take over what is known of devices that are still there, and note which are not."""
        known = {device.uuid: device for device in self.devices}
        for device in found:
            if before := known.pop(device.uuid, None):
                device.loads, device.failing_since = before.loads, before.failing_since
            self.gone.pop(device.uuid, None)
        # A device has fallen off the bus, or its slice was taken away.
        self.gone |= dict.fromkeys(known, now)
        self.devices = found
        self._xids.listen(self._driver.library, {device.uuid: device.handle for device in found})

    def _listed(self, index: int) -> list[NvmlDevice]:
        handle = self._driver.library.device(index)
        slices = handle.slices()
        if slices:
            return [self._device(each, index) for each in slices]
        device = self._device(handle, index)
        if slices is not None:
            device.trouble = _NO_SLICE
        return [device]

    def _device(self, handle: NvmlHandle, index: int) -> NvmlDevice:
        uuid = handle.uuid()
        name = optional(self._faults, uuid, "name", handle.name) or "a GPU without a name"
        mode = optional(self._faults, uuid, "compute mode", handle.compute_mode)
        return NvmlDevice(
            handle,
            uuid,
            # A device that falls off the bus must not give its number to another one.
            self._indices.setdefault(uuid, index),
            name,
            exclusive=mode == library.EXCLUSIVE_PROCESS,
            trouble=_PROHIBITED if mode == library.PROHIBITED else "",
        )
