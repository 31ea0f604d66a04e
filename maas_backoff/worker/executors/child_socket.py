"""The connection to a child, at its parent's end."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress

from maas_backoff.worker.executors.frames import FrameBuffer, Record


class ChildSocket:
    """Sends requests to a child, and takes the records that the child sends."""

    def __init__(self, end: socket.socket, limit: int) -> None:
        """Take frames of `limit` bytes at most."""
        self.left_unread: bool = False
        """Whether the child has not read all that was sent to it."""
        self._end = end
        self._frames = FrameBuffer(limit)
        self._loop = asyncio.get_running_loop()
        end.setblocking(False)

    def listen(self, arrived: Callable[[], object]) -> None:
        """Call `arrived` whenever there is something to `read`."""
        self._loop.add_reader(self._end, arrived)

    async def send(self, request: bytes) -> None:
        """Send a request. If the child has ended, only note that the request was left unread.

        Raises OSError when the kernel has no memory: a part at most was sent, so nothing of the request can begin.
        """
        try:
            sent = self._send_at_once(request)
            if sent < len(request):
                await self._loop.sock_sendall(self._end, memoryview(request)[sent:])
        except ConnectionError:
            self.left_unread = True
        except OSError:
            self.left_unread = True
            raise

    def _send_at_once(self, request: bytes) -> int:
        """Send what fits at once: nearly always all, and in half the time that the loop would take."""
        try:
            return self._end.send(request)
        except BlockingIOError:
            return 0

    def read(self) -> bytes | None:
        """Return what has arrived: None if nothing has, b"" at the end, after which `arrived` is not called again."""
        try:
            data = self._end.recv(65_536)
        except BlockingIOError:
            return None
        except ConnectionError:
            # Linux reports so the end of a connection with data that the child did not read.
            self.left_unread = True
            data = b""
        if not data:
            self._loop.remove_reader(self._end)
        return data

    def records(self, data: bytes) -> Iterator[Record]:
        """Yield the records that `data` completes. Raises ValueError for data that no child should send."""
        return self._frames.feed(data)

    def end_requests(self) -> None:
        """Tell the child that there are no more requests."""
        with suppress(OSError):  # it may have closed its side
            self._end.shutdown(socket.SHUT_WR)

    def shut(self) -> None:
        """Send and read nothing more: a request that is still being sent ends here."""
        self._loop.remove_reader(self._end)
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, after `shut`."""
        self._loop.remove_writer(self._end)
        self._end.close()
