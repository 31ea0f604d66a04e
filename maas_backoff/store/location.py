"""The address of a queue's server: fixed, or asked from Sentinels or from a Cluster's nodes."""

import asyncio
import contextlib
import time
from typing import Any

from redis.crc import key_slot

from maas_backoff.common.guard import Log, log_for
from maas_backoff.config.endpoint import Endpoint, Node
from maas_backoff.config.storage import StorageConfig
from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.store.address import Address, tls_options
from maas_backoff.store.credentials import Credentialed
from maas_backoff.store.link import Link, packed

log: Log = log_for("storage")

ASK_TIMEOUT = 1.0
"""Seconds that one Sentinel or node may take to name the master."""

FRESH = 1.0
"""Seconds for which a Sentinel's answer is used."""


class Location:
    """The address of the master of `key`, shared by all clients of a store in all threads."""

    def __init__(self, storage: StorageConfig, key: str, *, socket: str | None = None, name: str = "") -> None:
        """Take the `socket` of an embedded server. Raises ConfigError for fields that exclude each other.

        `name` names the server in errors that do not name it otherwise.
        """
        self.name = name
        self._endpoint = Endpoint(path=socket) if socket is not None else storage.endpoint
        self._slot = key_slot(key.encode())
        self._nodes = self._endpoint.nodes
        self._tls = tls_options(storage) if self._endpoint.tls else None
        self.fixed: bool = self._endpoint.type == "redis"
        self.clustered: bool = self._endpoint.type == "cluster"
        self._address: Address | None = None
        self._looked_at = -FRESH
        if self.fixed:
            self._address = Address(path=self._endpoint.path) if self._endpoint.path else Address(*self._nodes[0])

    async def get(self) -> Address:
        """Return the known address of the master, else ask. Raises StorageUnavailableError if no node knows it."""
        if self._endpoint.type == "sentinel" and time.monotonic() - self._looked_at > FRESH:
            # A deposed master answers for ten seconds more, and all writes to it are lost. One caller asks.
            self._looked_at = time.monotonic()
            if self._address is not None:
                with contextlib.suppress(StorageUnavailableError):
                    await self.look()
        return self._address or await self.look()

    async def look(self) -> Address:
        """Ask for the master's address and return it. Raises StorageUnavailableError if no node knows it."""
        if not self.fixed:
            self._moved(await self._asked())
        assert self._address is not None
        return self._address

    def doubt(self, address: Address) -> None:
        """Note a failure of this address: the next use asks again."""
        if not self.fixed and self._address == address:
            self._address = None

    def moved(self, host: str, port: int) -> None:
        """Take the slot's new master, which a node of the Cluster has named."""
        if not self.fixed:
            self._moved(Address(host, port))

    def link(self, address: Address, timeout: float) -> Link:
        """Return a link to the server at `address`; `timeout`: seconds that an answer may take."""
        login = {"db": self._endpoint.database, **self._login()}
        return Link(lambda: address.connection(self._tls, **login), timeout, self.name)

    def _login(self) -> dict[str, Any]:
        end = self._endpoint
        if end.credential_provider is not None:
            return {"credential_provider": Credentialed(end.credential_provider)}
        return {"username": end.username or None, "password": end.password or None}

    def _moved(self, address: Address) -> None:
        before, self._address = self._address, address
        if before is not None and before != address:
            log.warning("the master has moved from %s to %s", before, address)

    async def _asked(self) -> Address:
        why = "no node was asked"
        for node in self._nodes:
            try:
                # The connection's own limits add up to more.
                async with asyncio.timeout(2 * ASK_TIMEOUT):
                    found = await self._ask(node)
            except (StorageError, TimeoutError) as error:
                why = f"{node[0]}:{node[1]}: {str(error) or 'no answer in time'}"
            else:
                if found is not None:
                    if self._endpoint.type == "sentinel":
                        # The next question goes first to the node that answered.
                        self._nodes = (node, *(other for other in self._nodes if other != node))
                    return found
                why = f"{node[0]}:{node[1]} does not know it"
        what = f"master {self._endpoint.master!r}" if self._endpoint.type == "sentinel" else f"slot {self._slot}"
        raise StorageUnavailableError(f"no node knows where {what} is; the last one asked: {why}")

    async def _ask(self, node: Node) -> Address | None:
        end = self._endpoint
        sentinel = end.type == "sentinel"
        login = {"username": end.sentinel_username or None, "password": end.sentinel_password or None}
        options = {"socket_connect_timeout": ASK_TIMEOUT, **(login if sentinel else self._login())}
        link = Link(lambda: Address(*node).connection(self._tls, **options), ASK_TIMEOUT)
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", end.master) if sentinel else ("CLUSTER", "SLOTS")
        try:
            (answer,) = await link.ask(packed([command]))
        finally:
            await link.aclose()
        return _master_in(answer) if sentinel else self._owner_in(answer, node)

    def _owner_in(self, ranges: Any, asked: Node) -> Address | None:
        # The other masters are asked next time, too: a configured node may be gone then.
        known = [(_host(row[2][0]) or asked[0], int(row[2][1])) for row in ranges]
        self._nodes = tuple(dict.fromkeys([*known, *self._endpoint.nodes]))
        return next(
            (Address(*at) for row, at in zip(ranges, known, strict=True) if row[0] <= self._slot <= row[1]), None
        )


def _master_in(answer: Any) -> Address | None:
    return None if answer is None else Address(_host(answer[0]), int(answer[1]))


def _host(given: bytes | None) -> str:
    """Return the host in a node's answer; "" if the node does not know its own host, which it reports as '' or '?'."""
    text = (given or b"").decode()
    return "" if text == "?" else text
