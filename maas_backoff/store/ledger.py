"""The ledgers of GPUs: the reservations on each device, of all tasks of all queues."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from maas_backoff.config.storage import StorageConfig
from maas_backoff.domain.demand import Demand
from maas_backoff.store import scripts
from maas_backoff.store.connect import Client
from maas_backoff.store.keys import ledger
from maas_backoff.store.scripts import Script
from maas_backoff.store.server import Server

ONE_PROCESS, ONE_WORKER = -1, -2
"""Limits of a device that takes one process at a time: a child, or the worker itself."""

KEPT = 86_400
"""Seconds for which the ledger of an unused device is kept: see _ledger.lua."""

SEEN_FOR = 3.0
"""Seconds for which other workers use the memory that a worker reported of its children, after each GPU sample."""


class Reservation(NamedTuple):
    """GPU memory that was promised to one task; amounts are MiB."""

    id: str
    mib: int
    state: str
    owner: str
    worker: str
    queue: str
    task_id: str
    starting: bool = False
    seen: int = 0
    """MiB that its worker saw the owner process use, for workers that cannot see that process."""

    @classmethod
    def of(cls, name: str, value: str, use: str, now_ms: float) -> Self | None:
        """Return the reservation in a stored field, or None if it has expired; `use` is its field u."""
        expiry, mib, state, start_until, owner, worker, queue, task_id = value.split(" ", 7)
        if float(expiry) < now_ms:
            return None
        starting = float(start_until) > now_ms
        until, seen = map(int, use.split() or (0, 0))
        seen = seen if until >= now_ms else 0
        return cls(name, int(mib), state, owner, worker, queue, task_id, starting, seen)


FOR_EVER = 315_360_000.0
"""Seconds of a quarantine by a person: ten years."""

BY_HAND = "by hand"
"""The beginning of the reason of a quarantine by a person."""


class DeviceLedger(NamedTuple):
    """A device's ledger as it was read: reservations by id, the holder, and the MiB that a waiting task needs.

    `quarantine` is the reason of a quarantine, "" without one. `quarantine_for` is the seconds until its end: at 0 one
    task may try the device.
    """

    reservations: Mapping[str, Reservation] = MappingProxyType({})
    held_for: str = ""
    needed: int = 0
    quarantine: str = ""
    quarantine_for: float = 0
    tried: bool = False
    """Whether a task tries the device now."""
    doubted: bool = False

    @property
    def running(self) -> int:
        """How many tasks run on the device."""
        return sum(one.state == "running" for one in self.reservations.values())

    @property
    def quarantine_age(self) -> float | None:
        """The seconds since a person put the device into quarantine; None: no person did."""
        return max(0.0, FOR_EVER - self.quarantine_for) if self.quarantine.startswith(BY_HAND) else None

    @classmethod
    def of(cls, now_ms: float, flat: Sequence[bytes], queue: str = "") -> Self:
        """Return the ledger in a stored hash, with the quarantine of one queue; without `queue`, of any."""
        fields = dict(zip(map(bytes.decode, flat[::2]), map(bytes.decode, flat[1::2]), strict=True))
        found = (
            Reservation.of(name[2:], value, fields.get(f"u{name[1:]}", ""), now_ms)
            for name, value in fields.items()
            if name.startswith("r:")
        )
        reservations = {one.id: one for one in found if one is not None}
        hold, need = _current(fields.get("hold"), now_ms), _current(fields.get("need"), now_ms)
        parts, until, reason = _quarantine(fields, queue)
        trials = [reservations.get(fields.get(f"trial{part}", "")) for part in parts]
        return cls(
            reservations=reservations,
            tried=any(one is not None and one.state == "running" for one in trials),
            held_for=hold.partition(" ")[2],
            needed=int(need or 0),
            quarantine=reason,
            quarantine_for=max(0.0, (until - now_ms) / 1000),
            doubted=f"faults:{queue}" in fields,
        )


def holder(held_for: str) -> str:
    """Return in words for which tasks a device is held."""
    queue, _, name = held_for.partition(" ")
    size = name.rpartition("/")[2].removeprefix("~")  # the name of a GPU set may begin with a kind
    try:
        return f"tasks of {queue} that need {Demand.parse(size)}"
    except ValueError:  # written by a person, or by another release
        return held_for


class Ledgers:
    """The ledgers of all devices, for one process."""

    def __init__(self, storage: StorageConfig, server: Server, *, lease: float, queue: str = "") -> None:
        """Take the server of `queue`. In a Cluster, a ledger may be on another server."""
        self._queue = queue
        self._storage = storage
        self._server = server
        self._lease_ms = f"{lease * 1000:.0f}"
        self._servers: dict[str, Server] = {}
        self.clock = ""
        """The time for scripts, in ms; empty for the servers' own. Only tests and simulations set it."""

    async def aclose(self) -> None:
        """Close the connections to servers other than the queue's."""
        servers, self._servers = self._servers, {}
        for server in servers.values():
            await server.aclose()

    def server(self, uuid: str) -> Server:
        """Return the server that has a device's ledger."""
        if not self._server.clustered:
            return self._server
        if uuid not in self._servers:
            self._servers[uuid] = Server(self._storage, ledger(uuid))
        return self._servers[uuid]

    async def _run(self, script: Script[Any], uuid: str, args: list[Any]) -> Any:
        return await self.server(uuid).run(script, [ledger(uuid)], [self.clock, *args])

    async def read(self, uuid: str) -> DeviceLedger:
        """Return a device's ledger."""
        now, flat = await self._run(scripts.LEDGER, uuid, [])
        return DeviceLedger.of(float(now), flat, self._queue)

    async def reserve(
        self,
        uuid: str,
        reservation: Reservation,
        *,
        free: int,
        used: Mapping[str, int],
        limit: int,
        start_grace: float,
        holder: str,
    ) -> str:
        """Reserve memory. Return "ok", or what stands against the reservation: see reserve.lua.

        `free` and `used` are those of one GPU sample, in MiB. `limit` is how many tasks may run on the device at once:
        0 for any number, ONE_PROCESS or ONE_WORKER. Nothing else starts there for `start_grace` seconds, unless the
        memory is seen in use before.
        """
        rest = f"{reservation.worker} {reservation.queue} {reservation.task_id}"
        grace_ms = f"{start_grace * 1000:.0f}"
        args: list[Any] = [reservation.id, reservation.mib, free, limit, self._lease_ms, grace_ms, holder]
        args += [reservation.owner, rest]
        for owner, mib in used.items():
            args += owner, mib
        answer: bytes = await self._run(scripts.RESERVE, uuid, args)
        return answer.decode()

    async def keep(self, uuid: str, reservations: Iterable[Reservation], *, again: bool = False) -> None:
        """Change reservations. Missing ones are entered anew if `again`, else ignored."""
        await self.server(uuid).run(
            scripts.KEEP, [ledger(uuid)], self._kept(reservations, "enter" if again else "change")
        )

    async def renew(self, uuid: str, reservations: Iterable[Reservation], client: Client) -> list[str]:
        """Renew reservations from another thread, by its own `client`. Return the ids of missing ones."""
        if self._server.clustered:
            client = self.server(uuid).new_client(connections=1)
        try:
            missing = await client.run(scripts.KEEP, [ledger(uuid)], self._kept(reservations, "renew"))
        finally:
            if self._server.clustered:
                await client.aclose()
        return [name.decode() for name in missing]

    def _kept(self, reservations: Iterable[Reservation], how: str) -> list[Any]:
        args: list[Any] = [self.clock, self._lease_ms, f"{SEEN_FOR * 1000:.0f}", how]
        for one in reservations:
            args += one.id, one.mib, one.state, one.owner, f"{one.worker} {one.queue} {one.task_id}", one.seen
        return args

    async def release(self, uuid: str, ids: Sequence[str]) -> None:
        """Delete reservations."""
        await self.server(uuid).execute("HDEL", ledger(uuid), *(f"{kind}:{name}" for name in ids for kind in "ru"))

    async def hold(self, uuid: str, holder: str, mib: int, seconds: float) -> bool:
        """Hold the device for a holder. Return False if it is held for another one."""
        return bool(await self._run(scripts.POST, uuid, ["hold", f"{seconds * 1000:.0f}", f"{mib} {holder}"]))

    async def need(self, uuid: str, mib: int, seconds: float) -> None:
        """Note that a task needs this much room, so that workers end idle children."""
        await self._run(scripts.POST, uuid, ["need", f"{seconds * 1000:.0f}", mib])

    async def doubt(self, uuid: str, task_id: str, reason: str, *, limit: int, seconds: float) -> bool:
        """Note a GPU fault of a task of this queue; an empty `task_id`: of the device itself, for all queues.

        Return whether the device is in quarantine now.
        """
        line = task_id.replace("\n", " ")
        args = [line, limit, f"{seconds * 1000:.0f}", reason.replace("\n", " ")[:200], self._queue]
        return bool(await self._run(scripts.DOUBT, uuid, args))

    async def open(self, uuid: str) -> bool:
        """End all quarantines of a device, and forget its noted faults. Return False if it was in none."""
        server, key = self.server(uuid), ledger(uuid)
        names = [name.decode() for name in await server.execute("HKEYS", key)]
        gone = [name for name in names if name.partition(":")[0] in {"shut", "trial", "faults"}]
        if gone:
            client = await server.connect()
            await client.execute_together(("HDEL", key, *gone), ("EXPIRE", key, KEPT))
        return any(name.startswith("shut") for name in gone)

    async def trust(self, uuid: str) -> None:
        """Note that a task has succeeded on a device with noted faults."""
        await self._run(scripts.DOUBT, uuid, ["", 1, "0", "", self._queue])


def _quarantine(fields: Mapping[str, str], queue: str) -> tuple[list[str], float, str]:
    """Return the quarantines that count for a queue ("": the device's own), the end of the last, and the reason.

    The reason is that of the device's own quarantine, if there is one. Without a queue, all quarantines count. The
    fields are "shut" and "shut:<queue>".
    """
    parts = [name[4:] for name in sorted(fields) if name.startswith("shut")]
    parts = [one for one in parts if one in {"", f":{queue}"} or not queue]
    if not parts:
        return [], 0.0, ""
    reason = fields[f"shut{parts[0]}"].partition(" ")[2]
    if parts[0] and not queue:
        reason = f"for queue {parts[0][1:]}: {reason}"
    return parts, max(float(fields[f"shut{one}"].partition(" ")[0]) for one in parts), reason


def _current(value: str | None, now_ms: float) -> str:
    until, _, rest = (value or "0").partition(" ")
    return rest if float(until) > now_ms else ""
