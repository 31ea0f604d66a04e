"""The name under which a process's GPU memory is found, also by workers in other containers of the same machine."""

import os
from contextlib import suppress
from pathlib import Path

from maas_backoff.common.orphans import exists, runs, user_of


def _namespace() -> str:
    """Process ids mean something within one namespace only."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:  # not Linux
        return "0"


_NAMESPACE = _namespace()

_FIRST = "4026531836"
"""The machine's own namespace, on Linux: a constant of the kernel, PROC_PID_INIT_INO."""


def is_contained() -> bool:
    """Whether this process runs in a container: others may not see its children."""
    return _NAMESPACE not in {_FIRST, "0"}


def is_elsewhere(owner: str) -> bool:
    """Whether an owner is a process of another container, or of the machine outside of this one."""
    return owner != "-" and owner.partition(":")[0] != _NAMESPACE


def still_runs(owner: str) -> bool:
    """Return whether an owner is a process of this container that runs. Reads files."""
    namespace, _, pid = owner.partition(":")
    return namespace == _NAMESPACE and pid.isdecimal() and runs(int(pid))


def owner_of(pid: int) -> str:
    """Return the owner's name of a process that is an owner: a child, or a worker that runs tasks itself."""
    return f"{_NAMESPACE}:{pid}"


def owner_using(pid: int) -> str:
    """Return the owner's name of any process: what a child or this process starts counts as its own, in any session.

    Reads files.
    """
    user = user_of(pid)
    return owner_in_session(pid) if user is None else owner_of(user)


def owner_in_session(pid: int) -> str:
    """Return the owner's name of a process: its own if it is this process, else that of its session.

    Workers that one shell or one server has started are of one session, but each uses memory of its own.
    """
    if pid == os.getpid() or not exists(pid):  # it has just ended, or is not to be seen here; 0 would be this process
        return owner_of(pid)
    with suppress(OSError):
        return owner_of(os.getsid(pid))
    return owner_of(pid)
