"""NVML, asked by one thread. The only module that knows pynvml."""

import importlib
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from maas_backoff.gate.owner import owner_using
from maas_backoff.gate.reading import Reading
from maas_backoff.guard import log_for

log = log_for("gpu")

PERIOD = 1.0
"""Seconds between two rounds of readings."""

DEADLINE = 10.0
"""Seconds that one call of NVML may take; the driver can hang, and nothing can stop the call then."""

LISTED_FOR = 30.0
"""Seconds after which the devices are listed anew: MIG slices come and go, a lost device may be back."""

WINDOW = 5
"""Readings that a utilisation is the average of; NVML's own covers the last sixth of a second to a second."""

_MIB = 1_048_576
_QUIETEST = 0.05

# Xid events that a program brings about itself, as NVIDIA's own device plugin for Kubernetes has them.
_OF_PROGRAMS = frozenset({13, 31, 43, 45, 68, 109})


@attrs.define(eq=False)
class _Device:
    handle: Any
    uuid: str
    index: int
    name: str
    loads: deque[float] = attrs.field(factory=lambda: deque[float](maxlen=WINDOW))
    xid: str = ""
    xid_at: float = -math.inf


class NvmlProbe:
    """Reads all devices every second, in a thread of its own, for as long as the worker lives.

    NVML is initialised once, in that thread, which also keeps the GPUs initialised. A call that hangs leaves the last
    readings to grow too old: nothing is admitted then, and nothing else waits for it.
    """

    def __init__(self) -> None:
        self._nvml: Any = None
        self._readings: dict[str, Reading] = {}
        self._devices: list[_Device] = []
        self._listed_at = 0.0
        self._events: Any = None
        self._trouble = "it has not answered yet"
        self._warned: dict[str, str] = {}
        self._calling_since: float | None = None
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
        """Take readings soon."""
        self._poked.set()

    def readings(self) -> list[Reading]:
        """Return the newest reading of each device, in NVML's order."""
        return list(self._readings.values())

    @property
    def patience(self) -> float:
        """Three rounds: three seconds, unless NVML itself is slow."""
        return min(3 * self._round, 3 * DEADLINE)

    @property
    def trouble(self) -> str:
        """Why there are no readings, or no new ones."""
        since = self._calling_since
        if since is not None and time.monotonic() - since > DEADLINE:
            return f"NVML has not answered for {time.monotonic() - since:.0f} s"
        return self._trouble

    @property
    def hopeless(self) -> bool:
        """Whether there is no driver, so that there will be no readings."""
        return self._trouble.startswith("no driver")

    # In the thread

    def _run(self) -> None:
        try:
            self._nvml = importlib.import_module("pynvml")
            while not self._stop.is_set() and not self._initialised():
                if self.hopeless:
                    return
                self._stop.wait(LISTED_FOR)
            while not self._stop.is_set():
                begin = time.monotonic()
                self._read_all()
                self._round = max(PERIOD, time.monotonic() - begin)
                self._changed()
                self._poked.wait(max(_QUIETEST, begin + PERIOD - time.monotonic()))
                self._poked.clear()
                if time.monotonic() - begin < _QUIETEST:
                    self._stop.wait(_QUIETEST)
        except Exception as error:
            self._trouble = f"the probe has died: {error}"
            self._readings = {}
            log.exception("the probe of the GPUs has died; no task that needs one will start")

    def _initialised(self) -> bool:
        try:
            self._call(self._nvml.nvmlInit)
        except self._nvml.NVMLError as error:
            missing = error.value in {self._nvml.NVML_ERROR_LIBRARY_NOT_FOUND, self._nvml.NVML_ERROR_FUNCTION_NOT_FOUND}
            self._trouble = f"no driver: {error}" if missing else f"NVML cannot be initialised: {error}"
            self._warn("driver", self._trouble, logging.DEBUG if missing else logging.WARNING)
            return False
        return True

    def _warn(self, what: str, text: str, level: int = logging.WARNING) -> None:
        """Log a fault when it comes, and not each time that it is met again."""
        if self._warned.get(what) != text:
            self._warned[what] = text
            log.log(level, "%s", text)

    def _call(self, function: Callable[..., Any], *args: Any) -> Any:
        self._calling_since = time.monotonic()
        try:
            return function(*args)
        finally:
            self._calling_since = None

    def _read_all(self) -> None:
        now = time.monotonic()
        if not self._devices or now - self._listed_at > LISTED_FOR or any(r.trouble for r in self._readings.values()):
            try:
                self._list_devices()
            except self._nvml.NVMLError as error:
                self._trouble = f"NVML cannot list the devices: {error}"
                return
            self._listed_at = now
        self._trouble = "" if self._devices else "there is no device"
        self._note_xids()
        readings = {device.uuid: self._read(device) for device in self._devices}
        for uuid, before in self._readings.items():
            if uuid not in readings:
                # It has fallen off the bus, or its slice was taken away. Not forgotten, so that it is seen.
                readings[uuid] = attrs.evolve(before, free=0, at=now, used={}, trouble="it is gone")
        self._readings = readings

    def _list_devices(self) -> None:
        nvml, known = self._nvml, {device.uuid: device for device in self._devices}
        found: list[_Device] = []
        for index in range(self._call(nvml.nvmlDeviceGetCount)):
            try:
                handle = self._call(nvml.nvmlDeviceGetHandleByIndex, index)
                slices = self._slices(handle)
                found += [self._device(each, index) for each in slices or [handle]]
            except nvml.NVMLError as error:
                self._warn(f"GPU {index}", f"GPU {index} cannot be asked: {error}")
            else:
                self._warned.pop(f"GPU {index}", None)
        for device in found:
            if device.uuid in known:
                before = known[device.uuid]
                device.loads, device.xid, device.xid_at = before.loads, before.xid, before.xid_at
        if {device.uuid for device in found} != set(known):
            self._listen_for_xids(found)
        self._devices = found

    def _device(self, handle: Any, index: int) -> _Device:
        nvml = self._nvml
        return _Device(
            handle, self._call(nvml.nvmlDeviceGetUUID, handle), index, self._call(nvml.nvmlDeviceGetName, handle)
        )

    def _slices(self, handle: Any) -> list[Any]:
        """Return the handles of a device's MIG slices, if it is cut into such."""
        nvml = self._nvml
        found: list[Any] = []
        try:
            enabled, _ = self._call(nvml.nvmlDeviceGetMigMode, handle)
            count = self._call(nvml.nvmlDeviceGetMaxMigDeviceCount, handle) if enabled else 0
        except nvml.NVMLError:  # most devices cannot be
            return []
        for number in range(count):
            try:
                found.append(self._call(nvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, number))
            except nvml.NVMLError_NotFound:
                continue
        return found

    def _read(self, device: _Device) -> Reading:
        nvml, at = self._nvml, time.monotonic()
        empty = Reading(device.uuid, device.index, device.name, 0, 0, at)
        try:
            total, free = self._memory(device)
            used = self._processes(device)
            # What was allocated or freed between the two is seen by one of them, and the smaller one is right.
            free = min(free, self._memory(device)[1])
            load = self._optional(nvml.nvmlDeviceGetUtilizationRates, device.handle)
            temperature = self._optional(nvml.nvmlDeviceGetTemperature, device.handle, nvml.NVML_TEMPERATURE_GPU)
        except nvml.NVMLError as error:
            # Lost, to be reset, unknown: whatever it is, it is not free.
            before = self._readings.get(device.uuid, empty)
            return attrs.evolve(before, free=0, at=at, used={}, trouble=str(error))
        if load is not None:
            device.loads.append(float(load.gpu))
        average = sum(device.loads) / len(device.loads) if load is not None else None
        reading = attrs.evolve(empty, total=total // _MIB, free=free // _MIB, used=used, utilization=average)
        trouble = device.xid if at - device.xid_at < LISTED_FOR else ""
        return attrs.evolve(reading, temperature=None if temperature is None else float(temperature), trouble=trouble)

    def _memory(self, device: _Device) -> tuple[int, int]:
        """Return total and free bytes. One that shares the machine's memory has what the machine has available."""
        try:
            memory = self._call(self._nvml.nvmlDeviceGetMemoryInfo, device.handle)
        except self._nvml.NVMLError_NotSupported:
            return _machine_memory()
        return (memory.total, memory.free) if memory.total else _machine_memory()

    def _processes(self, device: _Device) -> dict[str, int]:
        processes: list[Any] = self._optional(self._nvml.nvmlDeviceGetComputeRunningProcesses, device.handle) or []
        used: dict[str, int] = {}
        for process in processes:
            if process.usedGpuMemory is not None:
                owner = owner_using(process.pid)
                used[owner] = used.get(owner, 0) + process.usedGpuMemory // _MIB
        return used

    def _optional(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return what some devices do not tell, or None."""
        try:
            return self._call(function, *args)
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_FunctionNotFound):
            return None

    def _listen_for_xids(self, devices: list[_Device]) -> None:
        nvml = self._nvml
        try:
            self._events = self._call(nvml.nvmlEventSetCreate)
            for device in devices:
                self._call(
                    nvml.nvmlDeviceRegisterEvents, device.handle, nvml.nvmlEventTypeXidCriticalError, self._events
                )
        except nvml.NVMLError:  # not on all devices, nor in slices
            self._events = None

    def _note_xids(self) -> None:
        """Remember which devices had a critical error that is not a program's own doing."""
        nvml = self._nvml
        for _ in itertools.repeat(None, 100) if self._events is not None else ():
            try:
                event = self._call(nvml.nvmlEventSetWait, self._events, 0)
            except nvml.NVMLError:  # a timeout: there is none
                return
            if event.eventData not in _OF_PROGRAMS:
                try:
                    uuid = self._call(nvml.nvmlDeviceGetUUID, event.device)
                except nvml.NVMLError:  # it is lost as well, as its reading will tell
                    continue
                for device in self._devices:
                    if device.uuid == uuid:
                        device.xid, device.xid_at = f"Xid {event.eventData}", time.monotonic()
                        log.error("GPU %s reports Xid %d", uuid, event.eventData)


def _machine_memory() -> tuple[int, int]:
    """Return the machine's total and available bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    amounts = {words[0]: int(words[1]) * 1024 for words in lines}
    return amounts["MemTotal:"], amounts["MemAvailable:"]


def _nothing() -> None:
    pass
