"""Clients of the server: one command at a time, with redis-py's errors turned into ours."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from hiredis import pack_command  # pyright: ignore[reportUnknownVariableType] - its return type is not declared
from redis.asyncio import Redis
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
_DENIED = (AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError)


class Client:
    """One kind of connections to the master, at most `connections` of them; more callers than that wait.

    It follows the master: a command goes to where the location says it is when the command is sent.
    """

    def __init__(self, location: Location, *, connections: int = 32, timeout: float = 5.0) -> None:
        """`timeout` is how long an answer may take, in seconds."""
        self._location = location
        self._connections = connections
        self._timeout = timeout
        self._redis: Redis | None = None
        self._address: Address | None = None
        self._free = asyncio.Semaphore(connections)

    async def execute(self, *command: str | bytes | float) -> Any:
        """Send one command, once, and return the answer. Raises StorageError and its kinds."""
        return await self._ask(lambda redis: redis.execute_command(*command))

    async def run(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        """Run a script, once: by digest, and with its text where the server does not know it. Errors as `execute`."""
        rest = (len(keys), *keys, *args)

        async def send(redis: Redis) -> Any:
            try:
                return await _exchange(redis, ("EVALSHA", script.digest, *rest))
            except NoScriptError:
                return await _exchange(redis, ("EVAL", script.text, *rest))

        return await self._ask(send)

    async def subscription(self) -> Any:
        """Return redis-py's PubSub of a connection to where the master is now."""
        redis, _ = await self._at_master()
        return cast(Any, redis).pubsub(ignore_subscribe_messages=False)

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
        redis, self._redis, self._address = self._redis, None, None
        if redis is not None:
            await redis.aclose(close_connection_pool=True)

    async def _ask(self, send: Callable[[Any], Awaitable[Any]]) -> Any:
        async with self._free:
            redis, address = await self._at_master()
            try:
                return await send(redis)
            except RedisError as error:
                ours = translated(error)
                if isinstance(error, MovedError):
                    host, port = str(error).rsplit(" ", 1)[-1].rsplit(":", 1)
                    self._location.moved(host or address.host, int(port))
                elif isinstance(ours, StorageUnavailableError):
                    self._location.doubt(address)
                raise ours from error

    async def _at_master(self) -> tuple[Redis, Address]:
        address = await self._location.get()
        if self._redis is None or address != self._address:
            old = self._redis
            pool = self._location.pool(address, connections=self._connections, timeout=self._timeout)
            self._redis, self._address = Redis(connection_pool=pool), address
            if old is not None:
                # Callers that wait for the old master's answer are told that the connection is lost, and ask again.
                await old.aclose(close_connection_pool=True)
        return self._redis, address


async def _exchange(redis: Redis, command: tuple[Any, ...]) -> Any:
    """Send a command and return its answer. redis-py's own way spends 6 us more on a task, packing it in Python."""
    pool = cast(Any, redis).connection_pool
    packed = cast(bytes, pack_command(command))
    connection = await pool.get_connection()
    try:
        await connection.send_packed_command(packed)
        return await connection.read_response()
    finally:
        await pool.release(connection)


def translated(error: RedisError) -> StorageError:
    """Return our error for one of redis-py's."""
    text = str(error)
    kind, what = _kind(error, text)
    return kind(f"{what}: {text}" if what else text)


def _kind(error: RedisError, text: str) -> tuple[type[StorageError], str]:
    if isinstance(error, _DENIED):
        return StorageDeniedError, "the server refused the credentials or a right"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return StorageDeniedError, "the server's certificate is not trusted"
    in_script = any(passing in text for passing in _PASSING_IN_SCRIPTS)
    if isinstance(error, _PASSING) or text.startswith(_PASSING_TEXTS) or in_script:
        return StorageUnavailableError, "the server cannot answer now"
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return StorageUnavailableError, "the server does not answer"
    # The second is how Redis 6.2 says it from within a script.
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return StorageFullError, "the server's memory is full"
    return StorageError, ""
