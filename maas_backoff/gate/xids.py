"""Xids: the critical errors that devices report by events."""

import math
import time
from collections.abc import Collection, Mapping
from typing import Any

from maas_backoff.common.guard import Log, log_for
from maas_backoff.gate.library import Library, NvmlError, NvmlHandle

log: Log = log_for("gpu")

MOST = 100
"""Events that are taken in one round."""

# Used if the driver names no action. Programs cause the first six events themselves (the list of NVIDIA's device plugin
# for Kubernetes). The others only inform, or end one program (ECC errors that were repaired, or contained).
_HARMLESS = frozenset({13, 31, 43, 45, 68, 109, 63, 92, 94})


class Xids:
    """The last critical error of each device that is not a program's own doing."""

    def __init__(self) -> None:
        self._events: Any = None
        self._heard: set[str] = set()
        self._found: dict[str, tuple[float, str]] = {}

    def forget(self) -> None:
        """Listen to no device: NVML is initialised anew."""
        self._events = None
        self._heard.clear()

    def listen(self, nvml: Library, handles: Mapping[str, NvmlHandle]) -> None:
        """Listen to devices, by their UUIDs. One that has no events keeps none of the others from being heard."""
        if self._heard - handles.keys():
            self.forget()
        new = handles.keys() - self._heard
        try:
            self._events = self._events or (nvml.event_set() if new else None)
        except NvmlError:
            return
        for uuid in new:
            self._heard.add(uuid)
            try:
                handles[uuid].listen(self._events)
            except NvmlError:  # a slice, or an old device
                continue

    def note(self, nvml: Library, uuids: Collection[str]) -> None:
        """Note the events since the last call."""
        for _ in range(MOST if self._events is not None else 0):
            event = nvml.next_xid(self._events)
            if event is None:
                return
            device, number = event
            try:
                uuid = device.uuid()
            except NvmlError:  # it is lost as well, as its sample will show
                continue
            if uuid in uuids and _is_serious(device, number):
                self._found[uuid] = time.monotonic(), f"Xid {number}"
                log.error("GPU %s reports Xid %d", uuid, number)

    def trouble_of(self, uuid: str, seconds: float) -> str:
        """Return the error that a device has reported within the last seconds; "" if it has not."""
        at, text = self._found.get(uuid, (-math.inf, ""))
        return text if time.monotonic() - at < seconds else ""


def _is_serious(device: NvmlHandle, number: int) -> bool:
    """Return whether something is to be done about the device: as the driver says, or as the number is known."""
    try:
        return device.recovery_action() != 0 and number not in _HARMLESS
    except NvmlError:
        return number not in _HARMLESS
