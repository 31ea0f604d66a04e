"""The probe: one thread that asks NVML for the devices of this machine."""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import attrs

from maas_backoff.common.guard import log_for
from maas_backoff.gate import library
from maas_backoff.gate.device import MIB, NvmlDevice, by_owner, memory_of
from maas_backoff.gate.faultlog import FaultLog
from maas_backoff.gate.library import Library, NvmlError
from maas_backoff.gate.sample import GpuSample
from maas_backoff.gate.xids import Xids

T = TypeVar("T")
log = log_for("gpu")

PERIOD = 1.0
"""Seconds between two rounds of samples."""

DEADLINE = 10.0
"""Seconds that one call of NVML may take; the driver can hang, and nothing can stop the call then."""

LISTED_FOR = 30.0
"""Seconds after which the devices are listed anew: MIG slices come and go."""

MISSED_FOR = 3.0
"""Likewise while a device is missing or broken, as it may be back."""

FAILING_FOR = 10.0
"""Seconds after which a device whose memory cannot be read is broken. Until then its last sample grows old: nothing
new starts there, and warm children stay."""

NO_DRIVER, NO_DEVICE = "no driver", "there is no device"
"""The trouble of a probe on a machine without GPUs is the second, or begins with the first."""

_BROKEN_AT_ONCE = frozenset({library.GPU_IS_LOST, library.RESET_REQUIRED})
_QUIETEST = 0.05


class NvmlProbe:
    """Reads all devices every second, in a thread of its own, for as long as the worker lives.

    NVML is initialised in that thread, which also keeps the GPUs initialised. A call that hangs leaves the last
    samples to grow too old: nothing is admitted then, and nothing else waits for it.
    """

    def __init__(self) -> None:
        self._library: Library | None = None
        self._samples: dict[str, GpuSample] = {}
        self._devices: list[NvmlDevice] = []
        self._gone: dict[str, float] = {}
        """When the devices were missed that were there once."""
        self._indices: dict[str, int] = {}
        self._listed_at = -math.inf
        self._unlisted = 0
        """How many devices could not be asked when they were listed."""
        self._xids = Xids()
        self._trouble = "it has not answered yet"
        self._has_answered = False
        self._faults = FaultLog(log)
        self._round = PERIOD
        self._stop = threading.Event()
        self._poked = threading.Event()
        self._changed: Callable[[], None] = _nothing

    def start(self, changed: Callable[[], None]) -> None:
        """Start the thread; it ends with the process, or after `stop`."""
        self._changed = changed
        threading.Thread(target=self._run, name="maas-backoff-nvml", daemon=True).start()

    def stop(self) -> None:
        """Let the thread end: it may hang in the driver, so nobody waits for it."""
        self._stop.set()
        self._poked.set()

    def poke(self) -> None:
        """Take samples soon."""
        self._poked.set()

    def samples(self) -> list[GpuSample]:
        """Return the newest sample of each device, in NVML's order."""
        return list(self._samples.values())

    @property
    def patience(self) -> float:
        """Three rounds: three seconds, unless NVML itself is slow."""
        return min(3 * self._round, 3 * DEADLINE)

    @property
    def trouble(self) -> str:
        """Why there are no samples, or no new ones."""
        since = None if self._library is None else self._library.calling_since
        if since is not None and time.monotonic() - since > DEADLINE:
            return f"NVML has not answered for {time.monotonic() - since:.0f} s"
        return self._trouble

    @property
    def has_answered(self) -> bool:
        """Whether NVML has told what is there, be it that nothing is."""
        return self._has_answered

    # In the thread

    def _run(self) -> None:
        try:
            self._library = Library()
            self._read_for_ever(self._library)
        except Exception as error:
            self._trouble = f"the probe has died: {error}"
            self._samples = {}
            self._answered()
            log.exception("the probe of the GPUs has died; no task that needs one will start")
        finally:
            if self._library is not None:
                self._library.shut_down()

    def _read_for_ever(self, nvml: Library) -> None:
        while not self._stop.is_set() and not self._initialised(nvml):
            if self._trouble.startswith(NO_DRIVER):
                return
            self._stop.wait(LISTED_FOR)
        while not self._stop.is_set():
            begin = time.monotonic()
            self._read_all(nvml)
            self._round = max(PERIOD, time.monotonic() - begin)
            self._has_answered = True
            self._changed()
            self._poked.wait(max(_QUIETEST, begin + PERIOD - time.monotonic()))
            self._poked.clear()
            if time.monotonic() - begin < _QUIETEST:
                self._stop.wait(_QUIETEST)

    def _initialised(self, nvml: Library) -> bool:
        try:
            nvml.initialise()
        except NvmlError as error:
            missing = error.code in {library.LIBRARY_NOT_FOUND, library.FUNCTION_NOT_FOUND}
            what = f"no driver: {error}" if missing else f"NVML cannot be initialised: {error}"
            self._trouble = f"{what}; {error.remedy}" if error.remedy else what
            self._faults.begins("driver", self._trouble, logging.DEBUG if missing else logging.WARNING)
            self._answered()
            return False
        self._faults.is_over("driver")
        return True

    def _answered(self) -> None:
        if not self._has_answered:
            self._has_answered = True
            self._changed()

    def _read_all(self, nvml: Library) -> None:
        now = time.monotonic()
        missed = not self._devices or self._unlisted or any(one.trouble for one in self._samples.values())
        if now - self._listed_at > (MISSED_FOR if missed else LISTED_FOR):
            self._listed_at = now
            works = not self._devices or any(device.failing_since == math.inf for device in self._devices)
            if works or self._begin_anew(nvml):
                self._list_all(nvml, now)
        self._xids.note(nvml, {device.uuid for device in self._devices})
        samples = {device.uuid: self._read(nvml, device) for device in self._devices}
        for uuid, since in list(self._gone.items()):
            # It has fallen off the bus, or its slice was taken away. For some time it is kept, so that it is seen.
            if now - since < 4 * LISTED_FOR:
                samples[uuid] = attrs.evolve(self._samples[uuid], free=0, at=now, used={}, trouble="it is gone")
            else:
                del self._gone[uuid]
        self._samples = dict(sorted(samples.items(), key=lambda item: item[1].index))

    def _begin_anew(self, nvml: Library) -> bool:
        """Initialise NVML again, and return whether it was: after a reload of the driver, nothing old is answered."""
        nvml.shut_down()
        self._xids.forget()
        return self._initialised(nvml)

    # Devices

    def _list_all(self, nvml: Library, now: float) -> None:
        try:
            self._list_devices(nvml, now)
        except NvmlError as error:
            self._trouble = f"NVML cannot list the devices: {error}"
            self._faults.begins("devices", self._trouble)
            self._begin_anew(nvml)
        else:
            self._faults.is_over("devices")
            self._trouble = "" if self._devices else NO_DEVICE

    def _list_devices(self, nvml: Library, now: float) -> None:
        found: list[NvmlDevice] = []
        self._unlisted = 0
        for index in range(nvml.count()):
            what = f"GPU {index}"
            try:
                found += self._listed(nvml, index)
            except NvmlError as error:
                self._unlisted += 1
                self._faults.begins(what, f"{what} cannot be asked: {error}")
            else:
                self._faults.is_over(what)
        known = {device.uuid: device for device in self._devices}
        for device in found:
            if before := known.get(device.uuid):
                device.loads, device.failing_since = before.loads, before.failing_since
            self._gone.pop(device.uuid, None)
        there = {device.uuid for device in found}
        self._gone |= {uuid: now for uuid in self._samples if uuid not in there and uuid not in self._gone}
        self._devices = found
        self._xids.listen(nvml, {device.uuid: device.handle for device in found})

    def _listed(self, nvml: Library, index: int) -> list[NvmlDevice]:
        handle = nvml.device(index)
        slices = nvml.slices(handle)
        if slices:
            return [self._device(nvml, each, index) for each in slices]
        device = self._device(nvml, handle, index)
        if slices is not None:
            device.trouble = "MIG mode is on and there is no slice: nothing can run on it"
        return [device]

    def _device(self, nvml: Library, handle: Any, index: int) -> NvmlDevice:
        uuid = nvml.uuid(handle)
        name = self._optional(uuid, "name", nvml.name, handle) or "a GPU without a name"
        mode = self._optional(uuid, "compute mode", nvml.compute_mode, handle)
        prohibited = "its compute mode lets no process in: nvidia-smi --compute-mode=0 changes that"
        return NvmlDevice(
            handle,
            uuid,
            # A device that falls off the bus must not give its number to another one.
            self._indices.setdefault(uuid, index),
            name,
            exclusive=mode == library.EXCLUSIVE_PROCESS,
            trouble=prohibited if mode == library.PROHIBITED else "",
        )

    # Readings

    def _read(self, nvml: Library, device: NvmlDevice) -> GpuSample:
        at, handle = time.monotonic(), device.handle
        try:
            total, free = memory_of(nvml, handle)
            processes = self._optional(device.uuid, "process list", nvml.processes, handle) or []
            # What was allocated or freed between the two is seen by one of them, and the smaller one is right.
            free = min(free, memory_of(nvml, handle)[1])
        except NvmlError as error:
            return self._unread(device, error, at)
        if device.failing_since < math.inf:
            device.failing_since = math.inf
            self._faults.is_over(device.uuid)
        load = self._optional(device.uuid, "utilisation", nvml.utilization, handle)
        if load is None:
            device.loads.clear()
        else:
            device.loads.append((at, load))
        return GpuSample(
            device.uuid,
            device.index,
            device.name,
            total // MIB,
            free // MIB,
            at,
            used=by_owner(processes, total - free),
            utilization=device.average_load(at),
            temperature=self._optional(device.uuid, "temperature", nvml.temperature, handle),
            trouble=device.trouble or self._xids.trouble_of(device.uuid, LISTED_FOR),
            exclusive=device.exclusive,
        )

    def _unread(self, device: NvmlDevice, error: NvmlError, at: float) -> GpuSample:
        """Return the last sample, which is not free for anything new; after some time the device is broken."""
        device.failing_since = min(device.failing_since, at)
        before = self._samples.get(device.uuid)
        is_broken = error.code in _BROKEN_AT_ONCE or at - device.failing_since >= FAILING_FOR
        if before is not None and not before.trouble and not is_broken:
            return before
        self._faults.begins(device.uuid, f"GPU {device.uuid} cannot be read: {error}")
        before = before or GpuSample(device.uuid, device.index, device.name, 0, 0, at)
        return attrs.evolve(before, free=0, at=at, used={}, trouble=str(error))

    def _optional(self, uuid: str, what: str, read: Callable[[Any], T], handle: Any) -> T | None:
        """Return a sample that is not necessary, or None. That it fails is said once."""
        try:
            return read(handle)
        except NvmlError as error:
            if error.code not in {library.NOT_SUPPORTED, library.FUNCTION_NOT_FOUND, library.GPU_IS_LOST}:
                self._faults.begins(f"{uuid} {what}", f"GPU {uuid} is used without its {what}: {error}")
            return None


def _nothing() -> None:
    pass
