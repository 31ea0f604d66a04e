"""A child's end of the socket."""

import os
import socket
import threading
from collections.abc import Sequence

from maas_backoff.worker.executors import frames
from maas_backoff.worker.executors.frames import FrameBuffer, Record


class Connection:
    """Sends records to the parent and receives its requests; closed in the processes that a handler starts."""

    def __init__(self, end: socket.socket) -> None:
        end.set_inheritable(False)
        os.register_at_fork(after_in_child=end.close)
        self._socket = end
        self._frames = FrameBuffer()
        self._lock = threading.Lock()  # progress comes from threads, too

    def fileno(self) -> int:
        """Return the socket's file descriptor, for a loop that waits for the next request."""
        return self._socket.fileno()

    def send(self, record: Record, texts: Sequence[str] = ()) -> None:
        """Send a record, and texts with it, or end this process."""
        frame = frames.encode(record, texts)
        with self._lock:
            try:
                self._socket.sendall(frame)
            except OSError:  # the parent is gone, or the handler has closed the socket
                os._exit(1)

    def receive(self) -> Record | None:
        """Return the next request, or None when there will be none."""
        while data := self._socket.recv(65_536):
            for record in self._frames.feed(data):  # one at most: the parent waits for the answer
                return record
        return None
