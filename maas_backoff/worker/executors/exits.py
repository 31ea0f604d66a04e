"""How a child process ends, and how its parent comes to know."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress

Process = subprocess.Popen[bytes]

_POLL = 0.02  # seconds; where no file descriptor tells that a process has ended


class ExitWatch:
    """Calls `ended` once, from the loop, when the process has ended and is not reaped yet (on Linux)."""

    def __init__(self, process: Process, ended: Callable[[], None]) -> None:
        self._process = process
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._pidfd = _pidfd(process.pid)
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._end)
        else:
            self._poll()

    def _poll(self) -> None:
        if has_ended(self._process):
            self._ended()
        else:
            self._loop.call_later(_POLL, self._poll)

    def _end(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._ended()


def _pidfd(pid: int) -> int | None:
    if sys.platform == "linux":
        with suppress(OSError):  # an old kernel, a strict seccomp filter, no descriptor left
            return os.pidfd_open(pid)
    return None


def has_ended(process: Process) -> bool:
    """Whether the process has ended. It is not reaped: until it is, nobody else can get its number, or its group's."""
    if process.returncode is not None:
        return True
    if sys.platform != "linux":
        return process.poll() is not None  # macOS has os.waitid since Python 3.13 only
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # somebody else has reaped it
        return True


def kill_group(process: Process) -> None:
    """Kill a process that leads its group, and the group."""
    with suppress(ProcessLookupError, PermissionError):  # macOS: not permitted for a group of zombies
        os.killpg(process.pid, signal.SIGKILL)


def description(returncode: int) -> str:
    """Return how a child process ended that nobody here has killed."""
    if returncode >= 0:
        return f"child process exited with code {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:  # a real-time signal
        name = f"signal {-returncode}"
    suspect = ", probably by the out-of-memory killer" if name == "SIGKILL" else ""
    return f"child process was killed by {name}{suspect}"
