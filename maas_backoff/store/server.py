"""The server of a queue: an embedded one is started; calls are repeated until `storage.timeout` is over."""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from maas_backoff.config.storage import StorageConfig
from maas_backoff.errors import StorageDeniedError, StorageError, StorageUnavailableError
from maas_backoff.store.connect import Client
from maas_backoff.store.embedded import EmbeddedServer
from maas_backoff.store.location import Location
from maas_backoff.store.outage import Outage
from maas_backoff.store.scripts import Script

_T = TypeVar("_T")


class Server:
    """The server of one queue. It connects on first use. Raises ConfigError for options that exclude each other."""

    def __init__(self, storage: StorageConfig, key: str, shared: EmbeddedServer | None = None) -> None:
        """Take any key of the queue: all of them are on one server.

        `shared` is an embedded server that others use, too. Its owner stops it.
        """
        self._storage = storage
        self._key = key
        self._client: Client | None = None
        self.embedded: bool = storage.type == "embedded" and storage.url is None
        self._shared = shared
        self._process: EmbeddedServer | None = None
        self._connecting = asyncio.Lock()
        self.location: Location = Location(storage, key)
        self.outage: Outage = Outage()

    @property
    def clustered(self) -> bool:
        """Whether other keys may be on other servers."""
        return self.location.clustered

    async def connect(self) -> Client:
        """Return the client for commands. The first call starts the embedded server if the type is embedded."""
        if self._client is None:
            async with self._connecting:
                if self._client is None:
                    if self.embedded:
                        process = self._shared or EmbeddedServer(self._storage.path)
                        socket = await process.start()
                        self.location = Location(self._storage, self._key, socket=socket, name=process.name)
                        self._process = process
                    self._client = self.new_client()
        return self._client

    async def revive(self) -> None:
        """Start the embedded server again if it died. Every user may do so."""
        if self._process is not None:
            with contextlib.suppress(StorageError, OSError):  # the caller tries again anyway
                await self._process.start()

    def over(self, client: Client) -> "Server":
        """Return this server over another client, for example of another event loop. The caller closes the client."""
        other = Server(self._storage, self._key)
        other.location, other.outage, other._client = self.location, self.outage, client
        return other

    def new_client(self, *, connections: int = 32, timeout: float | None = None) -> Client:
        """Return a new client; call `connect` before. `timeout`: seconds that an answer may take."""
        if timeout is None:
            # `storage.timeout` must leave time for a second call, on another connection.
            timeout = min(5.0, max(0.5, self._storage.timeout / 2))
        return Client(self.location, connections=connections, timeout=timeout)

    async def aclose(self) -> None:
        """Close the connections, and leave the embedded server. The next call connects again."""
        client, self._client = self._client, None
        process, self._process = self._process, None
        if client is not None:
            await client.aclose()
        if process is not None and self._shared is None:
            await process.stop()

    async def run(
        self, script: Script[_T], keys: Sequence[str], args: Sequence[Any], deadline: float | None = None
    ) -> _T:
        """Run a script until the server answers, or a deadline, as `patiently`."""
        return await self.patiently(lambda client: client.run(script, keys, args), deadline)

    async def execute(self, *command: str | bytes) -> Any:
        """Send a command that may be repeated, until the server answers or `storage.timeout` is over."""
        return await self.patiently(lambda client: client.execute(*command))

    async def patiently(self, send: Callable[[Client], Awaitable[_T]], deadline: float | None = None) -> _T:
        """Call `send` until it returns. Raises StorageUnavailableError after the deadline.

        The deadline is a moment by time.monotonic(); by default it comes after `storage.timeout`.
        """
        if deadline is None:
            deadline = time.monotonic() + self._storage.timeout
        refused = False
        for attempt in range(1_000_000):
            try:
                return await send(await self.connect())
            except StorageDeniedError:
                # One refusal is no error: the credentials may have changed after the provider gave them.
                if refused or self._storage.credential_provider is None:
                    raise
                refused = True
            except StorageUnavailableError:
                pause = random.uniform(0, min(0.05 * 2 ** min(attempt, 5), 1))  # noqa: S311 - spreads reconnects
                if time.monotonic() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
                await self.revive()
        raise AssertionError
