"""Clients of the server: one command at a time, on whichever connection is free."""

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
    """One kind of connections to the master, at most `connections` of them; more callers than that wait.

    It follows the master: a command goes to where the location says it is when the command is sent.
    """

    def __init__(self, location: Location, *, connections: int = 32, timeout: float = 5.0) -> None:
        """`timeout` is how long an answer may take, in seconds."""
        self._location = location
        self._timeout = timeout
        self._address: Address | None = None
        self._links: set[Link] = set()
        self._idle: list[Link] = []
        self._free = asyncio.Semaphore(connections)

    async def execute(self, *command: str | bytes | float) -> Any:
        """Send one command, once, and return the answer. Raises StorageError and its kinds."""
        return (await self._ask(command))[0]

    async def execute_together(self, *commands: tuple[str | bytes | float, ...]) -> list[Any]:
        """Send commands in one message, once, and return the answers. Errors as `execute`."""
        return await self._ask(*commands)

    async def run(self, script: Script[_R], keys: Sequence[str], args: Sequence[Any]) -> _R:
        """Run a script, once: by digest, and with its text where the server does not know it. Errors as `execute`."""
        return script.reply((await self._ask(("EVALSHA", script.digest, len(keys), *keys, *args), text=script.text))[0])

    async def run_after(
        self, command: tuple[str, ...], script: Script[_R], keys: Sequence[str], args: Sequence[Any]
    ) -> tuple[Any, _R]:
        """Send a blocking command and a script that the server runs when that has ended. Errors as `execute`."""
        call = ("EVALSHA", script.digest, len(keys), *keys, *args)
        answers = await self._ask(command, call, text=script.text)
        # Without its text the script was not known, and was sent alone a second time.
        return answers[0] if len(answers) > 1 else None, script.reply(answers[-1])

    async def subscribe(self, channel: str) -> Subscription:
        """Return a subscription at the master, which the caller closes. Raises StorageError and its kinds."""
        address = await self._at_master()
        subscription = Subscription(self._location.link(address, self._timeout), channel)
        try:
            await subscription.start()
        except StorageError as error:
            self._learn(error, address)
            raise
        return subscription

    async def stayed(self) -> bool:
        """Whether the master is still where the last command went. Raises StorageUnavailableError if nobody knows."""
        return await self._location.get() == self._address

    def deposed(self) -> bool:
        """Have the master asked for anew, as this server is none; False where no other could be named."""
        if self._address is not None:
            self._location.doubt(self._address)
        return not self._location.fixed

    async def aclose(self) -> None:
        """Close all connections."""
        links, self._links, self._address = self._links, set(), None
        self._idle.clear()
        await asyncio.gather(*(link.aclose() for link in links))

    async def _ask(self, *commands: tuple[Any, ...], text: str | None = None) -> list[Any]:
        """Send commands, and the last with a script's text in place of its digest when the server does not know it."""
        together = packed(commands)  # what cannot be packed is the caller's error, and no outage
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
            # Callers that wait for the old master's answer are told that the connection is lost, and ask again.
            self._address = address
            self._drop(self._links)
        return address

    def _learn(self, error: StorageError, address: Address) -> None:
        """Note what an error tells of the master, and of the other connections."""
        if isinstance(error.__cause__, MovedError):
            host, port = str(error.__cause__).rsplit(" ", 1)[-1].rsplit(":", 1)
            self._location.moved(host or address.host, int(port))
        elif isinstance(error, StorageUnavailableError):
            self._location.doubt(address)
        if isinstance(error.__cause__, TimeoutError):
            # A network that has forgotten one connection has forgotten the others: each would cost as long again.
            self._drop(set(self._idle))

    def _drop(self, links: set[Link]) -> None:
        for link in links:
            link.drop()
        self._links -= links
        self._idle = [link for link in self._idle if link in self._links]
