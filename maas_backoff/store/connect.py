"""Clients of the server: one command at a time, with redis-py's errors turned into ours."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, cast

from hiredis import pack_command  # pyright: ignore[reportUnknownVariableType] - its return type is not declared
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from maas_backoff.errors import StorageDeniedError, StorageError, StorageFullError, StorageUnavailableError
from maas_backoff.store.address import Address
from maas_backoff.store.location import Location
from maas_backoff.store.scripts import Script

# What passes by itself: nothing was run, or the server is changing its role. A blocked client is told so too.
_PASSING = (BusyLoadingError, ReadOnlyError, AskError, TryAgainError, ClusterDownError, MaxConnectionsError)
_PASSING_TEXTS = ("BUSY", "NOREPLICAS", "UNBLOCKED", "MISCONF")
# A key that a script found at run time is on its way to another node, or the slot has no owner. Scripts read all keys
# before they write any, so nothing is half done.
# Redis 6.2 wraps what a command in a script is refused for.
_PASSING_IN_SCRIPTS = (
    "ttempted to access a non local key",
    "while the cluster is down",
    "-READONLY ",
    "-NOREPLICAS ",
    "-MISCONF ",
)
_FULL_DISK = "the server's disk is full: free some space, and it goes on by itself"
# How servers refuse a script a command, a key or a channel: Redis until 7.0; later ones, and Valkey.
_DENIED_IN_SCRIPTS = ("The user executing the script can't ", "ACL failure in script: ")
_DENIED = (AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError)


AT_ONCE = 65_536
"""Bytes that asyncio takes without waiting for the socket, where nothing else is on its way."""


class Client:
    """One kind of connections to the master, at most `connections` of them; more callers than that wait.

    It follows the master: a command goes to where the location says it is when the command is sent.
    """

    def __init__(self, location: Location, *, connections: int = 32, timeout: float = 5.0) -> None:
        """`timeout` is how long an answer may take, in seconds."""
        self._location = location
        self._connections = connections
        self._timeout = timeout
        self._pool: ConnectionPool | None = None
        self._address: Address | None = None
        self._idle: list[Any] = []
        self._free = asyncio.Semaphore(connections)

    async def execute(self, *command: str | bytes | float) -> Any:
        """Send one command, once, and return the answer. Raises StorageError and its kinds."""
        return (await self._ask(command))[0]

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run a script, once: by digest, and with its text where the server does not know it. Errors as `execute`."""
        return (await self._ask(("EVALSHA", script.digest, len(keys), *keys, *args), text=script.text))[0]

    async def run_after(
        self, command: tuple[str, ...], script: Script, keys: Sequence[str], args: Sequence[Any]
    ) -> tuple[Any, Any]:
        """Send a blocking command and a script that the server runs when that has ended. Errors as `execute`."""
        call = ("EVALSHA", script.digest, len(keys), *keys, *args)
        answers = await self._ask(command, call, text=script.text)
        # Without its text the script was not known, and was sent alone a second time.
        return answers[0] if len(answers) > 1 else None, answers[-1]

    async def subscription(self) -> Any:
        """Return redis-py's PubSub of a connection to where the master is now."""
        pool, _ = await self._at_master()
        return cast(Any, Redis(connection_pool=pool)).pubsub(ignore_subscribe_messages=False)

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
        pool, self._pool, self._address = self._pool, None, None
        self._idle.clear()
        if pool is not None:
            await pool.aclose()

    async def _ask(self, *commands: tuple[Any, ...], text: str | None = None) -> list[Any]:
        """Send commands, and the last with a script's text in place of its digest when the server does not know it."""
        async with self._free:
            pool, address = await self._at_master()
            deadline = asyncio.get_running_loop().time() + self._timeout
            try:
                try:
                    return await self._exchange(pool, commands, deadline)
                except NoScriptError:
                    if text is None:
                        raise
                    pool, address = await self._at_master()
                    return await self._exchange(pool, [("EVAL", text, *commands[-1][2:])], deadline)
            except TimeoutError as error:
                self._location.doubt(address)
                what = f"the server does not answer: nothing came within {self._timeout:g} s"
                name = self._location.name
                raise StorageUnavailableError(f"{name}: {what}" if name else what) from error
            except RedisError as error:
                ours = translated(error, self._location.name)
                if isinstance(error, MovedError):
                    host, port = str(error).rsplit(" ", 1)[-1].rsplit(":", 1)
                    self._location.moved(host or address.host, int(port))
                elif isinstance(ours, StorageUnavailableError):
                    self._location.doubt(address)
                raise ours from error

    async def _at_master(self) -> tuple[ConnectionPool, Address]:
        address = await self._location.get()
        if self._pool is None or address != self._address:
            old = self._pool
            self._pool = self._location.pool(address, connections=self._connections + 1)  # one for a subscription
            self._address = address
            if old is not None:
                # Callers that wait for the old master's answer are told that the connection is lost, and ask again.
                self._idle.clear()
                await old.aclose()
        return self._pool, address

    async def _exchange(self, pool: ConnectionPool, commands: Sequence[tuple[Any, ...]], deadline: float) -> list[Any]:
        """Send commands together and return their answers, or raise the first error among them.

        A connection stays taken from the pool, and hiredis packs: redis-py's own way takes 60 us more for a command,
        and 6 us for each task in it.
        """
        pack = cast("Callable[[Any], bytes]", pack_command)
        packed = pack(commands[0]) if len(commands) == 1 else b"".join(map(pack, commands))
        connection = cast(Any, self._idle.pop() if self._idle else None)
        answers: list[Any] = []
        refused: ResponseError | None = None
        try:
            # The timer takes 10 us to set: while the server works, if it can be. (redis-py's own makes a task.)
            sent = await _sent_at_once(connection, packed)
            async with asyncio.timeout_at(deadline):
                if not sent:
                    if connection is None:
                        connection = await cast(Any, pool).get_connection()
                    else:
                        await pool.ensure_connection(connection)
                    await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    try:
                        answers.append(await connection.read_response())
                    except ResponseError as error:
                        refused = refused or error
        finally:
            if connection is not None and pool is self._pool:
                self._idle.append(connection)
        if refused is not None:
            raise refused
        return answers


async def _sent_at_once(connection: Any, packed: bytes) -> bool:
    """Send what fits into the transport's buffer, which takes no waiting, if there is a connection that is open."""
    if connection is None or len(packed) > AT_ONCE or not connection.is_connected:
        return False
    if await connection.can_read():  # the server has closed it since it was used
        return False
    await connection.send_packed_command(packed, check_health=False)
    return True


def translated(error: RedisError, name: str = "") -> StorageError:
    """Return our error for one of redis-py's; `name` is that of the server, where the error is to tell it."""
    text = str(error)
    kind, what = _kind(error, text)
    return kind(": ".join(part for part in (name, what, text) if part))


def _kind(error: RedisError, text: str) -> tuple[type[StorageError], str]:
    if isinstance(error, _DENIED) or any(denied in text for denied in _DENIED_IN_SCRIPTS):
        return StorageDeniedError, "the server refused the credentials or a right"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return StorageDeniedError, "the server's certificate is not trusted"
    in_script = any(passing in text for passing in _PASSING_IN_SCRIPTS)
    if isinstance(error, _PASSING) or text.startswith(_PASSING_TEXTS) or in_script:
        disk_is_full = "No space left on device" in text
        return StorageUnavailableError, _FULL_DISK if disk_is_full else "the server cannot answer now"
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return StorageUnavailableError, "the server does not answer"
    # The second is how Redis 6.2 says it from within a script.
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return StorageFullError, "the server's memory is full"
    return StorageError, ""
