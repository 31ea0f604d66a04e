"""The prints and log records of a child process, written to its parent's log."""

import asyncio
import os
import socket
from contextlib import suppress

from maas_backoff.common.guard import log_for
from maas_backoff.worker.executors.records import log_here

LINE_LIMIT = 8192
"""Bytes of a line that are logged as one; a longer one is logged in pieces."""

_LARGEST_BUFFER = 262_144
_AT_ONCE = 50
"""Records that the loop takes in one go."""

_MOST_DRAINED = 10_000
"""Records that are taken at most before an outcome; a process that was left behind may log for ever."""

_CHUNK = 65_536  # what a pipe holds, as a rule; a buffer of 128 KiB and more costs a system call of its own
_logger = log_for("output")


class ChildLog:
    """All that a child prints and logs."""

    def __init__(self, output: int, records: socket.socket, child_pid: int) -> None:
        """Read the pipe `output` of what the child prints, and the socket `records` of its log records."""
        self._output = Output(output, child_pid)
        self._records = Records(records, child_pid)

    def belongs_to(self, task_id: str) -> None:
        """Log what the child prints from now on under this task, and what it has printed under the one before."""
        self._output.belongs_to(task_id)

    def drain(self) -> None:
        """Log the records that have come."""
        self._records.drain()

    def close(self) -> None:
        """Log what is left."""
        self._records.close()
        self._output.close()


class Output:
    """The reading end of a child's stdout and stderr."""

    def __init__(self, fd: int, child_pid: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._child_pid = child_pid
        self._task_id = ""
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read, LINE_LIMIT)  # little at a time: each line costs the loop a log record

    def belongs_to(self, task_id: str) -> None:
        """Log what comes from now on under this task; what has come, under the one before."""
        while self._read(_CHUNK):
            pass
        if self._rest:
            self._log(self._rest)
            self._rest = b""
        self._task_id = task_id

    def close(self) -> None:
        """Log what is left."""
        self.belongs_to("")
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _read(self, size: int) -> bool:
        """Take what has come, up to `size` bytes; returns whether there may be more."""
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._fd)
            return False
        # A progress bar writes \r and may not write \n for hours.
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) >= LINE_LIMIT:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            self._log(line)
        return len(data) == size

    def _log(self, line: bytes) -> None:
        for start in range(0, len(line), LINE_LIMIT):  # an empty line is not logged
            text = line[start : start + LINE_LIMIT].decode(errors="backslashreplace")
            with suppress(Exception):  # a log handler of the user's must not fail the attempt whose line this is
                _logger.info("%s", text, extra={"child_pid": self._child_pid, "task_id": self._task_id})


class Records:
    """The parent's end of the socket on which a child sends its log records."""

    def __init__(self, end: socket.socket, child_pid: int) -> None:
        end.setblocking(False)
        self._end = end
        self._child_pid = child_pid
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(end, self._read)

    def drain(self) -> None:
        """Log what has come."""
        for _ in range(_MOST_DRAINED // _AT_ONCE):
            if not self._read():
                return

    def close(self) -> None:
        """Log what is left."""
        self.drain()
        self._loop.remove_reader(self._end)
        self._end.close()

    def _read(self) -> bool:
        """Take some records; returns whether there may be more."""
        for _ in range(_AT_ONCE):
            try:
                message = self._end.recv(_LARGEST_BUFFER)
            except BlockingIOError:
                return False
            except OSError:
                message = b""
            if not message:
                self._loop.remove_reader(self._end)
                return False
            log_here(message, self._child_pid)
        return True
