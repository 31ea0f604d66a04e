"""A worker's entry in the registry."""

from collections.abc import Mapping
from typing import Any, Self

import attrs

from maas_backoff.domain import jsontext
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.kind import NAMELESS


@attrs.frozen
class Device:
    """A GPU in its worker's last GPU sample; amounts are MiB.

    `room` is the most that a task could reserve now, `most` the same without any other reservation. `other_processes`
    is the memory that other processes use (None: an older worker does not report it). `closed` is the reason that keeps
    tasks away from a healthy device. `age` is in seconds.
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
    other_processes: int | None = None

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> Self | None:
        """Return the device in the entry of a worker; None if a field is missing that has no default."""
        fields = {field.name: entry[_stored(field.name)] for field in attrs.fields(cls) if _stored(field.name) in entry}
        return cls(**fields) if fields.keys() >= _NEEDED else None

    def to_entry(self) -> dict[str, object]:
        """Return the device for the entry of its worker."""
        return {_stored(name): value for name, value in attrs.asdict(self).items()}

    @property
    def healthy(self) -> bool:
        """Whether tasks may start here."""
        return self.health == "ok"


_NEEDED = {field.name for field in attrs.fields(Device) if field.default is attrs.NOTHING}


def _stored(name: str) -> str:
    """Return the name in the registry of a field of `Device`."""
    # Release 0.2.0 reads and writes `strangers`: with this name, each release shows what the other has written.
    return "strangers" if name == "other_processes" else name


_PLAIN = {
    "host": str,
    "pid": int,
    "slots": int,
    "running": int,
    "version": str,
    "lag": int | float,
    "trouble": str,
    "in_children": bool,
    "quiet": bool,
    "oldest": int | float,
}


@attrs.frozen
class Worker:
    """A live worker at its last heartbeat: host, process, slots and GPUs.

    `running` is the number of slots that are taken: a batch takes one. `lag` is the seconds for which its event
    loop delayed a call. `trouble` is the reason why it is not ready: the worker is starting, or the reasons of its
    `health()`; "" if it is ready. `in_children`: its tasks run in child processes. `oldest` is the seconds since
    the worker claimed the oldest of its running tasks; 0 if none runs. `kinds` are the kinds of tasks that it runs;
    "" is that of `set_custom_task_handler`. `quiet`: it claims no tasks until `quiet_workers(…, on=False)`.
    `batches` has, for each kind whose tasks run in batches, the most tasks of a batch, and the seconds that a task
    waits at most.
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
    oldest: float = 0
    kinds: tuple[str, ...] = (NAMELESS,)
    quiet: bool = False
    batches: Mapping[str, tuple[int, float]] = attrs.field(factory=dict[str, tuple[int, float]])

    @property
    def ready(self) -> bool:
        """Whether the worker has no trouble."""
        return not self.trouble

    @classmethod
    def of(cls, name: str, text: bytes) -> Self:
        """Return the worker of a stored text, which may be expired, overwritten, or of another release."""
        try:
            return cls._of_entry(name, jsontext.parse(text)) if text else cls(name)
        except (ValueError, TypeError, AttributeError):
            return cls(name)

    @classmethod
    def _of_entry(cls, name: str, entry: Mapping[str, Any]) -> Self:
        devices = [device for one in entry.get("gpus", ()) if (device := Device.of_entry(one)) is not None]
        plain = {field: entry[field] for field, kind in _PLAIN.items() if isinstance(entry.get(field), kind)}
        kinds = tuple(kind for kind in entry.get("kinds", (NAMELESS,)) if isinstance(kind, str))
        batches = {kind: (int(size), float(wait)) for kind, (size, wait) in entry.get("batches", {}).items()}
        return cls(name, devices=tuple(devices), kinds=kinds, batches=batches, **plain)

    def is_named(self, name: str) -> bool:
        """Return whether a person means this worker: by its name, the name's beginning up to a `-`, or its host."""
        return name in {self.name, self.host} or self.name.startswith(f"{name}-")

    def could_fit(self, demand: Demand) -> bool:
        """Return whether a device of the worker is large enough, regardless of running tasks."""
        return any(device.total >= demand.memory for device in self.devices)
