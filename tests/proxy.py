"""A TCP proxy before a server, on a loopback port, that loses, delays and breaks what passes through it."""

import asyncio
import contextlib
import socket
import struct
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from maas_backoff import StorageConfig
from maas_backoff.store import scripts

Command = list[bytes]

_NAMES = {script.digest.encode(): script.name for script in scripts.ALL}
_TEXTS = {script.text.encode(): script.name for script in scripts.ALL}


def kind(command: Command) -> str:
    """Return the name of the script a command runs, or the command's own name."""
    if len(command) > 1 and command[0] in {b"EVALSHA", b"EVAL"}:
        return _NAMES.get(command[1]) or _TEXTS.get(command[1], "another script")
    return command[0].decode()


class Proxy:
    """Passes everything on, until one of its attributes says otherwise; `async with` opens and closes it."""

    def __init__(self, port: int) -> None:
        """`port` is that of the server."""
        self._target = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.passed: Counter[str] = Counter()
        """Commands, by their kind."""
        self.dropped: Counter[str] = Counter()
        """Replies that were thrown away, together with their connection, after the server had run the command."""
        self.connected = 0
        self._forgotten = 0
        self.drops: Callable[[Command], bool] = lambda _: False
        """Whether to throw away the reply to a command."""
        self.delay = 0.0
        """Seconds that each reply takes longer."""
        self.bytewise = False
        """Pass one byte at a time, both ways."""
        self.blackhole = False
        """Swallow everything, both ways; connections stay open, and new ones are accepted."""

    @property
    def storage(self) -> StorageConfig:
        return StorageConfig(host="127.0.0.1", port=self.port)

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._writers)

    async def __aenter__(self) -> Self:
        await self.open_door()
        return self

    async def open_door(self) -> None:
        """Take connections, on the same port as before."""
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close_door(self) -> None:
        """Reset all connections, and refuse new ones."""
        self._server.close()
        self.reset_all()
        while self._writers:
            await asyncio.sleep(0.001)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        while self._writers:
            await asyncio.sleep(0.001)

    def forget_all(self) -> None:
        """Swallow all that passes through the connections that are open now, for ever; they stay open."""
        self._forgotten = self.connected

    def reset_all(self) -> None:
        """End each connection as a crashed host would: by RST."""
        for writer in list(self._writers):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected += 1
        number = self.connected
        self._writers.add(writer)
        doomed: list[str] = []
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
            ways = [self._commands(reader, server, doomed, number), self._replies(answers, writer, doomed, number)]
            tasks = [asyncio.create_task(way) for way in ways]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.close()
        except OSError:
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _commands(
        self, reader: asyncio.StreamReader, server: asyncio.StreamWriter, doomed: list[str], number: int
    ) -> None:
        while line := await reader.readuntil(b"\n"):
            raw, command = line, []
            for _ in range(int(line[1:])):
                size = await reader.readuntil(b"\n")
                word = await reader.readexactly(int(size[1:]) + 2)
                command.append(word[:-2])
                raw += size + word
            if self.blackhole or number <= self._forgotten:
                continue
            self.passed[kind(command)] += 1
            if self.drops(command):
                doomed.append(kind(command))
            await self._pass(raw, server)

    async def _replies(
        self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: list[str], number: int
    ) -> None:
        while data := await answers.read(65536):
            if doomed:
                self.dropped.update(doomed)
                return
            await asyncio.sleep(self.delay)
            if not self.blackhole and number > self._forgotten:
                await self._pass(data, writer)

    async def _pass(self, data: bytes, to: asyncio.StreamWriter) -> None:
        # The first bytes of a large message are enough: on a busy machine all of them take longer than an answer may.
        cut = min(len(data), 2000) if self.bytewise else 0
        for piece in [*(data[n : n + 1] for n in range(cut)), data[cut:]]:
            to.write(piece)
            with contextlib.suppress(ConnectionError):
                await to.drain()
            if self.bytewise:
                await asyncio.sleep(0)
