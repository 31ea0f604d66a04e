"""NVML's library, with plain values whatever pynvml is installed. The only module that knows pynvml.

Other packages install a module `pynvml`, too: an old one gives bytes and has fewer functions. A name may be no UTF-8.
Every exception of a call therefore becomes `NvmlError`, as NVML's own answers do.
"""

import importlib
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from maas_backoff.common.shown import type_name

NOT_SUPPORTED, NOT_FOUND, DRIVER_NOT_LOADED = 3, 6, 9
LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND, GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH = 12, 13, 15, 16, 18
UNKNOWN = 999

EXCLUSIVE_PROCESS, PROHIBITED = 3, 2
"""Compute modes."""

_REMEDIES = {
    DRIVER_NOT_LOADED: "load the kernel module (modprobe nvidia), or reboot",
    VERSION_MISMATCH: "the library is newer than the loaded kernel module: reboot, or load the module anew",
}
_RECOVERY_ACTION = "NVML_FI_DEV_GET_GPU_RECOVERY_ACTION"


class NvmlError(Exception):
    """NVML, or pynvml, has refused a call. `code` is NVML's; UNKNOWN where the module itself has failed."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def remedy(self) -> str:
        """The remedy, for a person; "" if none is known."""
        return _REMEDIES.get(self.code, "")


class Library:
    """NVML in this process. For one thread; `calling_since` may be read by others."""

    def __init__(self) -> None:
        """Import pynvml. Raises ImportError."""
        self._pynvml: Any = importlib.import_module("pynvml")
        self._error: Any = getattr(self._pynvml, "NVMLError", ())
        self.calling_since: float | None = None
        """When the call that runs now began, by time.monotonic()."""
        self._is_initialised = False

    def constant(self, name: str) -> Any:
        """Return a constant of pynvml. Raises NvmlError where this release has none."""
        value = getattr(self._pynvml, name, None)
        if value is None:
            raise NvmlError(FUNCTION_NOT_FOUND, f"no {name}")
        return value

    def call(self, name: str, *args: Any) -> Any:
        """Call a function. Raises NvmlError."""
        function = getattr(self._pynvml, name, None)
        if function is None:
            file = getattr(self._pynvml, "__file__", "?")
            raise NvmlError(FUNCTION_NOT_FOUND, f"the module pynvml of {file} is not nvidia-ml-py: it has no {name}")
        self.calling_since = time.monotonic()
        try:
            return function(*args)
        except self._error as error:
            raise NvmlError(int(getattr(error, "value", UNKNOWN)), str(error)) from None
        except Exception as error:
            raise NvmlError(UNKNOWN, f"{name}: {type_name(error)}: {error}") from error
        finally:
            self.calling_since = None

    def initialise(self) -> None:
        """Initialise NVML, or raise NvmlError."""
        self.call("nvmlInit")
        self._is_initialised = True

    def shut_down(self) -> None:
        """End what `initialise` has begun: after a reload of the driver nothing else makes NVML answer.

        NVML counts both calls in a process: one too many would end it for PyTorch, say.
        """
        if self._is_initialised:
            self._is_initialised = False
            with suppress(NvmlError):
                self.call("nvmlShutdown")

    def count(self) -> int:
        """Return the number of devices."""
        return int(self.call("nvmlDeviceGetCount"))

    def device(self, index: int) -> "NvmlHandle":
        """Return the handle of a device."""
        return NvmlHandle(self, self.call("nvmlDeviceGetHandleByIndex", index))

    def event_set(self) -> Any:
        """Return a set that devices can be listened to with."""
        return self.call("nvmlEventSetCreate")

    def next_xid(self, events: Any) -> "tuple[NvmlHandle, int] | None":
        """Return the device and the number of the next critical error; None if there is none."""
        try:
            event = self.call("nvmlEventSetWait", events, 0)
        except NvmlError:  # a timeout
            return None
        return NvmlHandle(self, event.device), int(event.eventData)


class NvmlHandle:
    """A device, or a slice of one (MIG), by NVML's handle. All methods raise NvmlError."""

    def __init__(self, nvml: Library, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def uuid(self) -> str:
        """Return the UUID."""
        return _text(self._call("nvmlDeviceGetUUID"))

    def name(self) -> str:
        """Return the name."""
        return _text(self._call("nvmlDeviceGetName"))

    def compute_mode(self) -> int:
        """Return how many processes may use the device: EXCLUSIVE_PROCESS, PROHIBITED, or as many as will (0)."""
        return int(self._call("nvmlDeviceGetComputeMode"))

    def slices(self) -> "list[NvmlHandle] | None":
        """Return the handles of the device's MIG slices; None where it is not cut into such."""
        try:
            enabled, _ = self._call("nvmlDeviceGetMigMode")
            count = int(self._call("nvmlDeviceGetMaxMigDeviceCount")) if enabled else 0
        except NvmlError:  # most devices cannot be
            return None
        return list(self._slices(count)) if enabled else None

    def memory(self) -> tuple[int, int]:
        """Return total and free bytes; 0 and 0 where the device shares the machine's memory."""
        try:
            memory = self._call("nvmlDeviceGetMemoryInfo")
        except NvmlError as error:
            if error.code == NOT_SUPPORTED:
                return 0, 0
            raise
        return int(memory.total), int(memory.free)

    def processes(self) -> list[tuple[int, int]]:
        """Return the process ids that use the device, and the bytes that each uses, if NVML reports them."""
        found = self._call("nvmlDeviceGetComputeRunningProcesses")
        return [(int(one.pid), int(one.usedGpuMemory)) for one in found if one.usedGpuMemory is not None]

    def utilization(self) -> float:
        """Return the utilisation in percent."""
        return float(self._call("nvmlDeviceGetUtilizationRates").gpu)

    def temperature(self) -> float:
        """Return the temperature in degrees Celsius."""
        return float(self._call("nvmlDeviceGetTemperature", 0))

    def listen(self, events: Any) -> None:
        """Send the device's critical errors to an event set."""
        self._call("nvmlDeviceRegisterEvents", self._nvml.constant("nvmlEventTypeXidCriticalError"), events)

    def recovery_action(self) -> int:
        """Return what is to be done about the device, 0: nothing. Raises NvmlError if the driver names no action."""
        (value,) = self._call("nvmlDeviceGetFieldValues", [self._nvml.constant(_RECOVERY_ACTION)])
        if value.nvmlReturn:
            raise NvmlError(int(value.nvmlReturn), f"no {_RECOVERY_ACTION}")
        return int(value.value.uiVal)

    def _call(self, name: str, *args: Any) -> Any:
        return self._nvml.call(name, self._handle, *args)

    def _slices(self, count: int) -> "Iterator[NvmlHandle]":
        for number in range(count):
            try:
                yield NvmlHandle(self._nvml, self._call("nvmlDeviceGetMigDeviceHandleByIndex", number))
            except NvmlError as error:
                if error.code != NOT_FOUND:
                    raise


def _text(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return "".join(one if one.isprintable() else "?" for one in text)
