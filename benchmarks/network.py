"""A network for a benchmark: a TCP proxy before a server, in a process of its own, that delivers each byte later.

The proxy delays and does not limit: whatever has come waits side by side, so that the rate stays that of the proxy.
With a delay of 0 the bytes take the same way through the same program: that is the other side of a comparison.
"""

import asyncio
import contextlib
import selectors
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit


class End(asyncio.Protocol):
    """One end of a connection through the proxy. It writes what it receives to the other end, `delay` seconds later."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.other: End | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        # Timers with one delay end in the order in which they began; asyncio keeps that order.
        if self._delay:
            self._loop.call_later(self._delay, self._deliver, data)
        else:
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def connection_lost(self, _: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class Door(End):
    """The end of a client, which connects to the server and receives nothing before that."""

    def __init__(self, delay: float, port: int) -> None:
        super().__init__(delay)
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self._connecting = self._loop.create_task(self._connect(self.transport))

    async def _connect(self, transport: asyncio.Transport) -> None:
        try:
            _, self.other = await self._loop.create_connection(lambda: End(self._delay), "127.0.0.1", self._port)
        except OSError:
            transport.close()
            return
        self.other.other = self
        if transport.is_closing():
            assert self.other.transport is not None
            self.other.transport.close()
        else:
            transport.resume_reading()


async def serve(port: int, delay: float) -> None:
    """Pass on what comes to a free port, until the process is ended. Print the port first."""
    server = await asyncio.get_running_loop().create_server(lambda: Door(delay, port), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def precise_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose timers are exact to some microseconds: epoll counts in whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@contextlib.contextmanager
def through(url: str, delay: float) -> Iterator[str]:
    """Give the URL of the server behind a proxy that delays each way by `delay` seconds."""
    address = urlsplit(url)
    words = [sys.executable, str(Path(__file__)), str(address.port or 6379), str(delay)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield address._replace(netloc=f"127.0.0.1:{int(process.stdout.readline())}").geturl()
        finally:
            process.terminate()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(serve(int(sys.argv[1]), float(sys.argv[2])))
