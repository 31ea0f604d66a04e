"""A worker's entry in the registry, and conclusions from it."""

from collections.abc import Mapping
from typing import Any, Self

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.demand import Demand


@attrs.frozen
class Device:
    """A GPU as its worker has read it; amounts are MiB.

    `room` is what a task could be given now, `most` what it could be given if none of ours ran there. `strangers` is
    what other programs are seen to use (None: an older worker does not tell). `closed` is what keeps tasks away
    although the device is well. `age` is in seconds.
    """

    uuid: str
    index: int
    name: str
    total: int
    free: int
    room: int
    most: int
    utilization: float | None
    temperature: float | None
    health: str
    age: float
    closed: str = ""
    strangers: int | None = None

    @property
    def healthy(self) -> bool:
        """Whether tasks may start here."""
        return self.health == "ok"


_PLAIN = {
    "host": str,
    "pid": int,
    "slots": int,
    "running": int,
    "version": str,
    "lag": int | float,
    "trouble": str,
    "in_children": bool,
}


@attrs.frozen
class Worker:
    """A live worker, as it said with its last heartbeat: where it is, its slots and GPUs.

    `lag` is for how many seconds its event loop kept a call waiting. `trouble` is what keeps it from running tasks as
    it should: it is starting, or the reasons of its `health()`; "" if nothing does. `in_children`: its tasks run in
    child processes.
    """

    name: str
    host: str = ""
    devices: tuple[Device, ...] = ()
    pid: int = 0
    slots: int = 0
    running: int = 0
    version: str = ""
    lag: float = 0
    trouble: str = ""
    in_children: bool = False

    @property
    def ready(self) -> bool:
        """Whether nothing keeps it from running tasks."""
        return not self.trouble

    @classmethod
    def of(cls, name: str, text: bytes) -> Self:
        """Return what a stored text says; it may have expired, be of another release, or be written over by hand."""
        try:
            return cls._told(name, jsontext.parse(text)) if text else cls(name)
        except (ValueError, TypeError, AttributeError):
            return cls(name)

    @classmethod
    def _told(cls, name: str, told: Mapping[str, Any]) -> Self:
        fields = attrs.fields(Device)
        needed = {field.name for field in fields if field.default is attrs.NOTHING}
        devices = (
            Device(**{field.name: one[field.name] for field in fields if field.name in one})
            for one in told.get("gpus", ())
            if needed <= one.keys()
        )
        plain = {field: told[field] for field, kind in _PLAIN.items() if isinstance(told.get(field), kind)}
        return cls(name, devices=tuple(devices), **plain)

    def could_fit(self, demand: Demand) -> bool:
        """Whether a device here is large enough, whatever runs on it now."""
        return any(device.total >= demand.memory for device in self.devices)
