"""Orphans: processes that handlers of a worker started, and that are left on this machine after the worker was killed.

The kernel ends a child process when its worker dies, but not the processes that the child has started. On systems other
than Linux nothing identifies these processes for certain, and none is ended. executors/cleaner.py also runs this file
as a script: it imports the standard library only.
"""

import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

MARK = "_MAAS_BACKOFF_WORKER"
"""The environment variable with the worker's origin, which child processes and their own children inherit.

A program that must outlive the worker must be started without the variable. No option can have this name: the variables
of options begin with MAAS_BACKOFF_.
"""

CHILD_MARK = "_MAAS_BACKOFF_CHILD"
"""The same with the child process's origin, for processes that its handlers start. Ignored without MARK."""

_PROC = Path("/proc")


class Origin(NamedTuple):
    """The identity of a process, which no other process with the same number has, even before a restart."""

    boot: str
    namespace: str
    pid: int
    started: int
    """Clock ticks from the machine's start to the process's."""

    def __str__(self) -> str:
        return f"{self.boot}/{self.namespace}/{self.pid}/{self.started}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the origin in a text of `str`; None for any other text."""
        try:
            boot, namespace, pid, started = text.split("/")
            return cls(boot, namespace, int(pid), int(started))
        except ValueError:
            return None

    def is_gone(self, boot: str, namespace: str) -> bool:
        """Return whether the process has certainly ended; False for a process of another container or machine."""
        if (self.boot, self.namespace) != (boot, namespace):
            return False
        try:
            state, started = _status(self.pid)
        except (OSError, ValueError):
            return not exists(self.pid)  # /proc may be hidden from this user
        # A process whose first thread has ended is a zombie, too, but its other threads still run.
        return started != self.started or (state in "ZX" and _threads(self.pid) <= 1)

    def has_ended(self) -> bool:
        """Return whether this is a process of this machine and container that has certainly ended. Reads files."""
        return _is_able() and self.is_gone(*_machine())


def this_process() -> Origin | None:
    """Return this process's origin; None on systems without one. The first call reads files."""
    return _origin(os.getpid())  # a forked process has another origin


@cache
def _origin(pid: int) -> Origin | None:
    return Origin(*_machine(), pid, _status(pid)[1]) if _is_able() else None


def marked(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a child process of this worker."""
    origin = this_process()
    return {**environment} if origin is None else {**environment, MARK: str(origin)}


def unmarked(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a program that may outlive the worker."""
    return {name: value for name, value in environment.items() if name not in {MARK, CHILD_MARK}}


def mark_what_starts_here() -> None:
    """Mark this child process's environment: every process that starts from now on inherits the mark."""
    origin = this_process()
    if origin is not None:
        os.environ[CHILD_MARK] = str(origin)


def user_of(pid: int) -> int | None:
    """Return whom a process works for, in any session: a child process, or this process; None if there is none.

    A process works for what has started it, or has started one that did.
    """
    seen: set[int] = set()  # numbers are given anew, so a chain that is read one by one may be a circle
    while _is_able() and pid > 1 and pid not in seen:
        seen.add(pid)
        marks = _marks_of(pid)
        origin = marks.get(CHILD_MARK)
        if origin is not None and (origin.boot, origin.namespace) == _machine():
            return origin.pid
        if MARK in marks or pid == os.getpid():
            return pid
        try:
            pid = _parent(pid)
        except (OSError, ValueError):  # it has ended
            return None
    return None


def end_orphans() -> dict[int, list[int]]:
    """Kill the orphans of ended workers and children; return their process ids by that of the worker or child.

    A process is killed only if it has a mark, belongs to this user, and the worker or child has certainly ended. Blocks
    for some ms.
    """
    ended: dict[int, list[int]] = {}
    if not _is_able():
        return ended
    for _ in range(3):  # orphans may start further processes meanwhile
        found = [(pid, origin) for pid in _own_processes() if (origin := _ended_origin_of(pid)) is not None]
        for pid, origin in found:
            if _kill(pid):
                ended.setdefault(origin.pid, []).append(pid)
        if not found:
            break
    return ended


def _kill(pid: int) -> bool:
    """Kill a process if it is still an orphan: another process may have its number by now."""
    if sys.platform != "linux":
        return False
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if _ended_origin_of(pid) is None:
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(pidfd)


def _ended_origin_of(pid: int) -> Origin | None:
    """Return the ended worker or child whose mark a process has; None if there is none."""
    machine, marks = _machine(), _marks_of(pid)
    if MARK not in marks:  # it was started to outlive the worker
        return None
    return next((origin for origin in marks.values() if origin.is_gone(*machine)), None)


def _marks_of(pid: int) -> dict[str, Origin]:
    """Return the marks that a process was started with."""
    try:
        environment = Path(_PROC, str(pid), "environ").read_bytes()
    except OSError:  # it has ended, or this user may not read it
        return {}
    found: dict[str, Origin] = {}
    for entry in environment.split(b"\0"):
        name, _, value = entry.decode(errors="replace").partition("=")
        if name in {MARK, CHILD_MARK} and (origin := Origin.parse(value)) is not None:
            found[name] = origin
    return found


def _own_processes() -> list[int]:
    """Return the ids of this user's processes, without this process."""
    found: list[int] = []
    with suppress(OSError):
        for path in _PROC.iterdir():
            if path.name.isdecimal() and int(path.name) != os.getpid():
                with suppress(OSError):
                    if path.stat().st_uid == os.geteuid():
                        found.append(int(path.name))
    return found


@cache
def _machine() -> tuple[str, str]:
    """Return the id of this boot, and the namespace of process ids. Raises OSError."""
    boot = Path(_PROC, "sys/kernel/random/boot_id").read_text("ascii").strip()
    return boot, str(Path(_PROC, "self/ns/pid").readlink()).strip("pid:[]")


@cache
def _is_able() -> bool:
    if sys.platform != "linux":
        return False
    try:
        _machine()
        _status(os.getpid())
        os.close(os.pidfd_open(os.getpid()))
    except (OSError, ValueError):  # no /proc, an old kernel, a strict sandbox
        return False
    return True


def _status(pid: int) -> tuple[str, int]:
    """Return a process's state and its start in clock ticks. Raises OSError or ValueError."""
    fields = _stat(pid)
    return fields[0], int(fields[19])


def _parent(pid: int) -> int:
    """Return the id of the process that started a process. Raises OSError or ValueError."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """Return what the kernel says of a process, from its state on. Raises OSError."""
    return Path(_PROC, str(pid), "stat").read_text("ascii", errors="replace").rpartition(")")[2].split()


def _threads(pid: int) -> int:
    try:
        return sum(1 for _ in Path(_PROC, str(pid), "task").iterdir())
    except OSError:
        return 0


def runs(pid: int) -> bool:
    """Return whether a process with this id runs here. A process that has only to be waited for does not."""
    try:
        return _status(pid)[0] not in "ZX"
    except (OSError, ValueError):
        return exists(pid)


def exists(pid: int) -> bool:
    """Return whether a process with this id exists here, of any user."""
    if not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _main(worker: str) -> None:
    """Wait until the worker at the other end of stdin has ended, and kill its orphans.

    A byte on stdin means that the worker stops in order: nothing is killed.
    """
    origin = Origin.parse(worker)
    if os.read(0, 1) or origin is None:
        return
    for _ in range(100):  # the kernel closes files before the process has ended
        if origin.is_gone(*_machine()):
            break
        time.sleep(0.05)
    end_orphans()
    time.sleep(0.5)  # for processes that were just being started
    end_orphans()


if __name__ == "__main__":
    _main(sys.argv[1])
