"""What a child process prints, as lines in the log."""

import asyncio
import os

from maas_backoff.guard import log_for

LINE_LIMIT = 8192
"""Bytes of a line that are logged as one; a longer one is logged in pieces."""

_CHUNK = 65_536  # what a pipe holds, as a rule; a buffer of 128 KiB and more costs a system call of its own
_logger = log_for("output")


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
            _logger.info("%s", text, extra={"child_pid": self._child_pid, "task_id": self._task_id})
