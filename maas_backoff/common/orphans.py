"""Processes that the handlers of a worker started, and that are left on this machine after the worker was killed.

The kernel ends a child process when its worker dies, but not what the child has started. Linux only: elsewhere nothing
tells for certain that a process is such a one, and none is ended. This file also runs as a script, started by
executors/cleaner.py, so that it imports nothing but the standard library.
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
"""The environment variable that names the worker to its children, and to all that they start.

A program that is to outlive the worker must be started without the variable. No option of a configuration can have this
name: those begin with MAAS_BACKOFF_.
"""

CHILD_MARK = "_MAAS_BACKOFF_CHILD"
"""Likewise for all that the handlers of a child process start. Without the other it means nothing."""

_PROC = Path("/proc")


class Origin(NamedTuple):
    """A process, told apart from all others that had or will have its number, also before a restart of the machine."""

    boot: str
    namespace: str
    pid: int
    started: int
    """Clock ticks from the machine's start to the process's."""

    def __str__(self) -> str:
        return f"{self.boot}/{self.namespace}/{self.pid}/{self.started}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return what a text names; None for any other text."""
        try:
            boot, namespace, pid, started = text.split("/")
            return cls(boot, namespace, int(pid), int(started))
        except ValueError:
            return None

    def is_gone(self, boot: str, namespace: str) -> bool:
        """Return whether the process has ended for certain. Of another container or machine nothing is certain."""
        if (self.boot, self.namespace) != (boot, namespace):
            return False
        try:
            state, started = _status(self.pid)
        except (OSError, ValueError):
            return not exists(self.pid)  # /proc may be hidden from this user
        # A zombie may be a process whose first thread has ended, and no other.
        return started != self.started or (state in "ZX" and _threads(self.pid) <= 1)


def this_process() -> Origin | None:
    """Return this process; None where it cannot be told apart from others. The first call reads files."""
    return _origin(os.getpid())  # a forked process is another one


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
    """In a child process: have all that is started from now on carry this process's mark."""
    origin = this_process()
    if origin is not None:
        os.environ[CHILD_MARK] = str(origin)


def starter_of(pid: int) -> int | None:
    """Return the child process whose handler has started a process, in whatever session; None where none has."""
    if not _is_able():
        return None
    origin = _marks_of(pid).get(CHILD_MARK)
    return origin.pid if origin is not None and (origin.boot, origin.namespace) == _machine() else None


def end_orphans() -> dict[int, list[int]]:
    """Kill what handlers of ended workers and children have left; return the process ids, by that of who has ended.

    A process is killed only if it carries such a mark, belongs to this user, and the worker or child has ended for
    certain. Blocks for some ms.
    """
    ended: dict[int, list[int]] = {}
    if not _is_able():
        return ended
    for _ in range(3):  # what they start meanwhile
        found = [(pid, origin) for pid in _own_processes() if (origin := _ended_origin_of(pid)) is not None]
        for pid, origin in found:
            if _kill(pid):
                ended.setdefault(origin.pid, []).append(pid)
        if not found:
            break
    return ended


def _kill(pid: int) -> bool:
    """Kill a process if it is what was found. Its number may have gone to another one meanwhile."""
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
    """Return the worker or the child whose mark a process carries, if it has ended."""
    machine, marks = _machine(), _marks_of(pid)
    if MARK not in marks:  # it is to outlive the worker
        return None
    return next((origin for origin in marks.values() if origin.is_gone(*machine)), None)


def _marks_of(pid: int) -> dict[str, Origin]:
    """Return the marks that a process was started with."""
    try:
        environment = Path(_PROC, str(pid), "environ").read_bytes()
    except OSError:  # it has ended, or is not ours to look at
        return {}
    found: dict[str, Origin] = {}
    for entry in environment.split(b"\0"):
        name, _, value = entry.decode(errors="replace").partition("=")
        if name in {MARK, CHILD_MARK} and (origin := Origin.parse(value)) is not None:
            found[name] = origin
    return found


def _own_processes() -> list[int]:
    """Return the ids of this user's processes, but for this one."""
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
    """Return this start of the machine, and the namespace in which process ids mean something. Raises OSError."""
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
    """Return a process's state and when it was started. Raises OSError or ValueError."""
    fields = Path(_PROC, str(pid), "stat").read_text("ascii", errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _threads(pid: int) -> int:
    try:
        return sum(1 for _ in Path(_PROC, str(pid), "task").iterdir())
    except OSError:
        return 0


def exists(pid: int) -> bool:
    """Return whether there is a process of this id here, of whatever user."""
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
    """Wait until the worker at the other end of stdin is gone, and end what its handlers have left.

    A byte on stdin says that the worker stops in order.
    """
    origin = Origin.parse(worker)
    if os.read(0, 1) or origin is None:
        return
    for _ in range(100):  # the system closes files before the process is gone
        if origin.is_gone(*_machine()):
            break
        time.sleep(0.05)
    end_orphans()
    time.sleep(0.5)  # what was being started just then
    end_orphans()


if __name__ == "__main__":
    _main(sys.argv[1])
