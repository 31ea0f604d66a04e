"""A client of the server: sends each command on a free connection."""

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from redis.exceptions import MovedError, NoScriptError

from maas_backoff.errors import StorageError, StorageUnavailableError
from maas_backoff.store.address import Address
from maas_backoff.store.link import Link, packed
from maas_backoff.store.location import Location
from maas_backoff.store.scripts import Script
from maas_backoff.store.subscription import Subscription

_R = TypeVar("_R")


class Client:
    """At most `connections` connections to the master; further callers wait for a free one.

    Each command goes to the address that the location has for the master at that moment.
    """

    def __init__(self, location: Location, *, connections: int = 32, timeout: float = 5.0) -> None:
        """Take the location; `timeout`: seconds that an answer may take."""
        self._location = location
        self._timeout = timeout
        self._address: Address | None = None
        self._links: set[Link] = set()
        self._idle: list[Link] = []
        self._free = asyncio.Semaphore(connections)

    async def execute(self, *command: str | bytes | float) -> Any:
        """Send one command, once, and return the answer. Raises StorageError and its subclasses."""
        return (await self._ask(command))[0]

    async def execute_together(self, *commands: tuple[str | bytes | float, ...]) -> list[Any]:
        """Send commands in one message, once, and return the answers. Errors as `execute`."""
        return await self._ask(*commands)

    async def run(self, script: Script[_R], keys: Sequence[str], args: Sequence[Any]) -> _R:
        """Run a script once: by digest, or by its text if the server does not know it. Errors as `execute`."""
        return script.reply((await self._ask(("EVALSHA", script.digest, len(keys), *keys, *args), text=script.text))[0])

    async def run_after(
        self, command: tuple[str, ...], script: Script[_R], keys: Sequence[str], args: Sequence[Any]
    ) -> tuple[Any, _R]:
        """Send a blocking command, and a script that the server runs after the command. Errors as `execute`."""
        call = ("EVALSHA", script.digest, len(keys), *keys, *args)
        answers = await self._ask(command, call, text=script.text)
        # One answer: the server did not know the digest, and the script was sent alone with its text.
        return answers[0] if len(answers) > 1 else None, script.reply(answers[-1])

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription at the master, which the caller closes. Raises StorageError and its subclasses."""
        address = await self._at_master()
        subscription = Subscription(self._location.link(address, self._timeout), channel)
        try:
            await subscription.start()
        except StorageError as error:
            self._learn(error, address)
            raise
        return subscription

    async def stayed(self) -> bool:
        """Return whether the master still has the last command's address. Raises StorageUnavailableError."""
        return await self._location.get() == self._address

    def deposed(self) -> bool:
        """Note that this server is no master. Return False if the location is fixed, so that no other can be found."""
        if self._address is not None:
            self._location.doubt(self._address)
        return not self._location.fixed

    async def aclose(self) -> None:
        """Close all connections."""
        links, self._links, self._address = self._links, set(), None
        self._idle.clear()
        await asyncio.gather(*(link.aclose() for link in links))

    async def _ask(self, *commands: tuple[Any, ...], text: str | None = None) -> list[Any]:
        """Send commands; repeat the last with a script's `text` if the server does not know its digest."""
        together = packed(commands)  # outside of the try: commands that cannot be packed are the caller's error
        async with self._free:
            try:
                return await self._exchange(together, len(commands))
            except StorageError as error:
                if text is None or not isinstance(error.__cause__, NoScriptError):
                    raise
            return await self._exchange(packed([("EVAL", text, *commands[-1][2:])]), 1)

    async def _exchange(self, together: bytes, answers: int) -> list[Any]:
        address = await self._at_master()
        link = self._idle.pop() if self._idle else self._new_link(address)
        try:
            return await link.ask(together, answers)
        except StorageError as error:
            self._learn(error, address)
            raise
        finally:
            if link in self._links:
                self._idle.append(link)

    def _new_link(self, address: Address) -> Link:
        link = self._location.link(address, self._timeout)
        self._links.add(link)
        return link

    async def _at_master(self) -> Address:
        address = await self._location.get()
        if address != self._address:
            # Callers that wait for the old master get StorageUnavailableError, and try again.
            self._address = address
            self._drop(self._links)
        return address

    def _learn(self, error: StorageError, address: Address) -> None:
        """Note a new or doubtful master, and drop idle connections after a timeout."""
        if isinstance(error.__cause__, MovedError):
            host, port = str(error.__cause__).rsplit(" ", 1)[-1].rsplit(":", 1)
            self._location.moved(host or address.host, int(port))
        elif isinstance(error, StorageUnavailableError):
            self._location.doubt(address)
        if isinstance(error.__cause__, TimeoutError):
            # A network that dropped one connection has dropped the others, too: each would cost one more timeout.
            self._drop(set(self._idle))

    def _drop(self, links: set[Link]) -> None:
        for link in links:
            link.drop()
        self._links -= links
        self._idle = [link for link in self._idle if link in self._links]
