"""One connection to the server. Each fault on it closes it, and raises a StorageError."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, cast
from weakref import WeakValueDictionary

from hiredis import pack_command  # pyright: ignore[reportUnknownVariableType] - its return type is not declared
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterDownError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from maas_backoff.common import forks
from maas_backoff.common.guard import Log, log_for
from maas_backoff.errors import StorageDeniedError, StorageError, StorageFullError, StorageUnavailableError

log: Log = log_for("storage")

# These errors pass by themselves: nothing was run, or the server is changing its role (blocked clients get them, too).
_PASSING = (BusyLoadingError, ReadOnlyError, AskError, TryAgainError, ClusterDownError, MaxConnectionsError)
_PASSING_TEXTS = ("BUSY", "NOREPLICAS", "UNBLOCKED", "MISCONF")
# The first two: a key moves to another node, or the slot has no owner. Scripts read all keys before they write any:
# nothing is half done. The others: Redis 6.2 wraps the error of a refused command in a script.
_PASSING_IN_SCRIPTS = (
    "ttempted to access a non local key",
    "while the cluster is down",
    "-READONLY ",
    "-NOREPLICAS ",
    "-MISCONF ",
)
_FULL_DISK = "the server's disk is full: free some space, and it goes on by itself"
# Errors of a script that may not use a command, a key or a channel: Redis until 7.0; later releases, and Valkey.
_DENIED_IN_SCRIPTS = ("The user executing the script can't ", "ACL failure in script: ")
_DENIED = (AuthenticationError, AuthenticationWrongNumberOfArgsError, NoPermissionError)

AT_ONCE = 65_536
"""Bytes that asyncio's empty buffer takes without waiting for the socket."""

_links: "WeakValueDictionary[int, Link]" = WeakValueDictionary()
_reported: set[str] = set()


class Link:
    """A connection that is made on use, and again after a loss. For one event loop, one user at a time."""

    def __init__(self, make: Callable[[], Any], timeout: float, name: str = "") -> None:
        """Take the factory of an unconnected connection of redis-py. `timeout`: seconds that an answer may take.

        `name` names the server in errors that do not name it otherwise.
        """
        self._make = make
        self._name = name
        self._timeout = timeout
        self._connection: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def ask(self, packed: bytes, answers: int = 1) -> list[Any]:
        """Send commands and return their answers, or raise the first error among them. Raises StorageError."""
        found: list[Any] = []
        refused: ResponseError | None = None
        try:
            # To set the timer takes 10 us: the server works meanwhile, if the send needs no timer. (redis-py's own
            # timer makes a task.)
            connection = await self._sent_at_once(packed)
            async with asyncio.timeout(self._timeout):
                if connection is None:
                    connection = await self._connected()
                    await connection.send_packed_command(packed, check_health=False)
                for _ in range(answers):
                    try:
                        found.append(await connection.read_response())
                    except ResponseError as error:
                        refused = refused or error
        except BaseException as error:  # noqa: BLE001 - it is raised
            self._fail(error)
        if refused is not None:
            raise translated(refused, name=self._name) from refused
        return found

    async def send(self, packed: bytes) -> None:
        """Send commands whose answers `push` returns. Raises StorageError."""
        try:
            async with asyncio.timeout(self._timeout):
                await (await self._connected()).send_packed_command(packed, check_health=False)
        except BaseException as error:  # noqa: BLE001 - it is raised
            self._fail(error)

    async def push(self, within: float) -> list[Any] | None:
        """Return what the server sends next, or None after `within` seconds. Raises StorageError."""
        connection = self._connection
        if connection is None:
            raise StorageUnavailableError("the connection was lost")
        try:
            async with asyncio.timeout(within):
                came: list[Any] = await connection.read_response(push_request=True, disconnect_on_error=False)
                return came
        except TimeoutError:
            return None
        except BaseException as error:  # noqa: BLE001 - it is raised
            self._fail(error)

    def _fail(self, error: BaseException) -> NoReturn:
        """Close the connection and raise the error. After a cancel, too: the next user must not read a late answer."""
        self.drop()
        if isinstance(error, StorageError) or not isinstance(error, Exception):
            raise error
        raise translated(error, self._timeout, self._name) from error

    async def _connected(self) -> Any:
        """Return the connection, made first if there is none."""
        if self._connection is not None:
            return self._connection
        connection = self._connection = self._make()
        self._loop = asyncio.get_running_loop()
        _links[id(self)] = self
        forks.on_fork(self, Link._forked)
        try:
            await connection.connect()
        except BaseException:
            _abort(_writer_of(connection))
            raise
        if self._connection is not connection:
            _abort(_writer_of(connection))
            raise RedisConnectionError("it was closed while it was being made")
        return connection

    async def _sent_at_once(self, packed: bytes) -> Any:
        """Send without waiting if the transport's buffer has room. Return None if that was not possible."""
        connection = self._connection
        if connection is None:
            return None
        # The server may have closed the connection since its last use, or the network may have reset it. After a
        # reset, StreamWriter.writelines raises AttributeError in Python 3.12 and 3.13 (gh-136234).
        if connection._writer.is_closing() or await connection.can_read():  # noqa: SLF001 - redis-py has no name for it
            self.drop()
            return None
        if len(packed) > AT_ONCE:
            return None
        await connection.send_packed_command(packed, check_health=False)
        return connection

    def drop(self) -> None:
        """Close the connection at once. A call that waits for an answer raises StorageUnavailableError."""
        _abort(self._forget())

    async def aclose(self) -> None:
        """Close the connection in order, and wait for its end: both sides of TLS send a close_notify."""
        writer = self._forget()
        if writer is None:
            return
        try:
            with contextlib.suppress(Exception):  # a lost connection raises the error of its loss
                writer.close()
                async with asyncio.timeout(self._timeout):
                    await writer.wait_closed()
        finally:
            _abort(writer)

    def _forked(self) -> None:
        """Replace the socket by /dev/null in a child process, and close the transport.

        The close then reaches neither the parent's connection nor the parent's epoll.
        """
        writer = self._forget()
        if writer is not None:
            forks.inherited.append(writer)
            with contextlib.suppress(OSError, ValueError):  # it was closed before the fork
                null = os.open(os.devnull, os.O_RDWR)
                os.dup2(null, writer.get_extra_info("socket").fileno(), inheritable=False)
                os.close(null)
                _close_without_loop(writer)

    def abandon(self) -> None:
        """Close a connection after its event loop was closed."""
        writer = self._forget()
        if writer is not None:
            _close_without_loop(writer)

    @property
    def is_left_over(self) -> bool:
        """Whether the event loop of the connection is closed."""
        return self._connection is not None and self._loop is not None and self._loop.is_closed()

    def _forget(self) -> asyncio.StreamWriter | None:
        connection, self._connection = self._connection, None
        return None if connection is None else _writer_of(connection)


def _writer_of(connection: Any) -> asyncio.StreamWriter | None:
    """Return the writer, removed from its connection of redis-py: the finalizer would warn of an open writer."""
    writer, connection._writer, connection._reader = connection._writer, None, None  # noqa: SLF001 - as above
    return cast("asyncio.StreamWriter | None", writer)


def _abort(writer: asyncio.StreamWriter | None) -> None:
    if writer is not None:
        with contextlib.suppress(Exception):  # it is lost, or its loop is closed
            writer.transport.abort()


def _close_without_loop(writer: asyncio.StreamWriter) -> None:
    """Close a transport whose event loop no longer runs, or runs in the parent only.

    A public close needs a call of the loop. Without a close, Python warns of an unclosed transport.
    """
    hidden: Any = writer
    transport = hidden._transport  # noqa: SLF001 - there is no public way
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", transport)
    with contextlib.suppress(Exception):
        below.pause_reading()
    with contextlib.suppress(Exception):
        below._closing = True  # noqa: SLF001 - as above
        below._call_connection_lost(None)  # noqa: SLF001 - as above
        hidden._transport = below  # noqa: SLF001 - the transport of TLS would report itself as open


def abandon_left_over() -> None:
    """Close the open connections of closed event loops."""
    for reference in _links.valuerefs():
        link = reference()
        if link is not None and link.is_left_over:
            link.abandon()


def packed(commands: Iterable[tuple[Any, ...]]) -> bytes:
    """Return commands packed by hiredis: redis-py's own packing takes 6 us more for each task."""
    return b"".join(map(cast("Callable[[Any], bytes]", pack_command), commands))


def translated(error: Exception, timeout: float | None = None, name: str = "") -> StorageError:
    """Return the StorageError for an error of a connection. `timeout`: seconds that an answer was waited for.

    `name`, if not empty, is the server's name for the error's text.
    """
    if isinstance(error, TimeoutError) and timeout is not None:
        what = f"the server does not answer: nothing came within {timeout:g} s"
        return StorageUnavailableError(f"{name}: {what}" if name else what)
    text = str(error)
    kind, what = _kind(error, text)
    if not isinstance(error, RedisError):
        text = f"{type(error).__name__}: {text}"
        _report(error)
    return kind(": ".join(part for part in (name, what, text) if part))


def _kind(error: Exception, text: str) -> tuple[type[StorageError], str]:
    if isinstance(error, _DENIED) or any(denied in text for denied in _DENIED_IN_SCRIPTS):
        return StorageDeniedError, "the server refused the credentials or a right"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return StorageDeniedError, "the server's certificate is not trusted"
    if isinstance(error, RedisError):
        return _kind_of_answer(error, text)
    return StorageUnavailableError, "the connection was lost"


def _kind_of_answer(error: RedisError, text: str) -> tuple[type[StorageError], str]:
    in_script = any(passing in text for passing in _PASSING_IN_SCRIPTS)
    if isinstance(error, _PASSING) or text.startswith(_PASSING_TEXTS) or in_script:
        return (
            StorageUnavailableError,
            _FULL_DISK if "No space left on device" in text else "the server cannot answer now",
        )
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        return StorageUnavailableError, "the server does not answer"
    # The text is the error of a script on Redis 6.2.
    if isinstance(error, OutOfMemoryError) or "OOM command not allowed" in text:
        return StorageFullError, "the server's memory is full"
    return StorageError, ""


def _report(error: Exception) -> None:
    """Log an error that no network causes, once for each type: an outage must not hide a bug."""
    name = type(error).__name__
    if not isinstance(error, OSError | EOFError) and name not in _reported:
        _reported.add(name)
        log.warning("a connection to the server failed with %s; it will be made again", name, exc_info=error)
