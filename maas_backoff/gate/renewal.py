"""The heartbeat renews the reservations of a worker; some may have lapsed before."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from maas_backoff.gate.grant import Grant
from maas_backoff.store.connect import Client
from maas_backoff.store.ledger import Ledgers, Reservation


class Renewal:
    """Renews reservations, and knows which have lapsed. Only `by_device` and `renew` are for other threads."""

    def __init__(self, held: Mapping[str, Grant], ledgers: Ledgers, changed: asyncio.Event) -> None:
        """`held` are the worker's grants, by id. `changed` is set when a reservation has lapsed."""
        self._held = held
        self._ledgers = ledgers
        self._changed = changed
        self._missing: set[str] = set()

    def by_device(self) -> dict[str, list[Reservation]]:
        """Return all reservations of this worker, by the UUID of their device."""
        found: dict[str, list[Reservation]] = {}
        for grant in list(self._held.values()):
            found.setdefault(grant.uuid, []).append(grant.reservation)
        return found

    async def renew(self, uuid: str, reservations: Sequence[Reservation], client: Client) -> list[str]:
        """Renew reservations on one device by the heartbeat's client. Return the ids of those that are not there."""
        return await self._ledgers.renew(uuid, reservations, client)

    def note_missing(self, ids: Iterable[str]) -> None:
        """Note reservations that are not in the ledger: this worker stood still for longer than a lease."""
        found = {name for name in ids if name in self._held}
        self._missing = (self._missing & self._held.keys()) | found
        if found:
            self._changed.set()

    def has_lapsed(self, grant: Grant) -> bool:
        """Whether the reservation of a grant is not in the ledger any more: others may have its memory."""
        return grant.id in self._missing

    @property
    def lapsed_children(self) -> list[Grant]:
        """The grants of child processes whose reservation has lapsed."""
        return [grant for grant in self._held.values() if self.has_lapsed(grant) and grant.owner != "-"]

    def is_lapsed_thread(self, grant: Grant) -> bool:
        """Whether a thread's reservation has lapsed. A thread cannot be stopped: its reservation is entered again."""
        return self.has_lapsed(grant) and grant.owner == "-"

    def entered(self, grants: Iterable[Grant]) -> None:
        """Note that the ledger has the reservations again."""
        self._missing.difference_update(grant.id for grant in grants)

    def reclaimed(self, grant: Grant) -> None:
        """Note that the memory of a grant was reserved again, or was given up."""
        self.entered([grant])
        grant.write_again()
