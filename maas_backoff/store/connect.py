"""Connections to the server: the only place that builds clients, and that turns redis-py's errors into ours."""

import asyncio
from typing import Any, cast

from redis.asyncio import Connection, ConnectionPool, Redis, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    MaxConnectionsError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from maas_backoff.config import StorageConfig
from maas_backoff.errors import StorageError, StorageFullError, StorageUnavailableError
from maas_backoff.store.scripts import Script

CONNECT_TIMEOUT = 3.0
ANSWER_TIMEOUT = 5.0

# Errors that pass: nothing was run, or the server is changing its role.
_TRANSIENT = (
    "BUSY",
    "LOADING",
    "READONLY",
    "NOREPLICAS",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "UNBLOCKED",
    "MISCONF",
)


class Client:
    """One kind of connections to one server, at most `connections` of them; more callers than that wait."""

    def __init__(
        self,
        config: StorageConfig,
        *,
        socket: str | None = None,
        connections: int = 32,
        timeout: float = ANSWER_TIMEOUT,
    ) -> None:
        """`socket` is the path of an embedded server; `timeout` is how long an answer may take, in seconds."""
        self.redis = Redis(connection_pool=_pool(config, socket, connections, timeout))
        self._free = asyncio.Semaphore(connections)

    async def execute(self, *command: str | bytes | float) -> Any:
        """Send one command, once, and return the answer. Raises StorageError and its kinds."""
        async with self._free:
            try:
                return await cast(Any, self.redis).execute_command(*command)
            except RedisError as error:
                raise translated(error) from error

    async def run(self, script: Script, keys: list[str], args: list[Any]) -> Any:
        """Run a script, once: by digest, and with its text where the server does not know it. Errors as `execute`."""
        async with self._free:
            redis = cast(Any, self.redis)
            try:
                try:
                    return await redis.execute_command("EVALSHA", script.digest, len(keys), *keys, *args)
                except NoScriptError:
                    return await redis.execute_command("EVAL", script.text, len(keys), *keys, *args)
            except RedisError as error:
                raise translated(error) from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self.redis.aclose(close_connection_pool=True)


def _pool(config: StorageConfig, socket: str | None, connections: int, timeout: float) -> ConnectionPool:
    options: dict[str, Any] = {
        "max_connections": connections,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "socket_timeout": timeout,
        # redis-py would send a script again whose reply was lost; we do, where it may be.
        "retry": Retry(NoBackoff(), 0),
        "protocol": 3,
        # With maintenance notifications on, the pool does not notice that an idle connection was closed.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
        "decode_responses": False,
        "client_name": "maas-backoff",
        # Its default reads the package's metadata from disk, on the event loop, for each connection.
        "driver_info": None,
    }
    if socket is not None:
        return ConnectionPool(connection_class=UnixDomainSocketConnection, path=socket, **options)
    if config.url is not None:
        url = config.url.replace("valkey", "redis", 1) if config.url.startswith("valkey") else config.url
        return cast(ConnectionPool, cast(Any, ConnectionPool).from_url(url, **options))
    return ConnectionPool(
        connection_class=Connection,
        host=config.host,
        port=config.port,
        db=config.database,
        username=config.username or None,
        password=config.password or None,
        **options,
    )


def translated(error: RedisError) -> StorageError:
    """Return our error for one of redis-py's."""
    text = str(error)
    match error:
        case AuthenticationError():
            return StorageError(f"the server refused the credentials: {text}")
        case (
            MaxConnectionsError() | RedisConnectionError() | RedisTimeoutError() | BusyLoadingError() | ReadOnlyError()
        ):
            return StorageUnavailableError(f"the server does not answer: {text}")
        case OutOfMemoryError():
            return StorageFullError(f"the server's memory is full: {text}")
        case _ if text.startswith(_TRANSIENT):
            return StorageUnavailableError(f"the server cannot answer now: {text}")
        case _ if "OOM command not allowed" in text:  # how Redis 6.2 says it from within a script
            return StorageFullError(f"the server's memory is full: {text}")
        case _:
            return StorageError(text)
