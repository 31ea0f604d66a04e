"""The name under which a process's GPU memory is found, also by workers in other containers of the same machine."""

import os
from pathlib import Path

from maas_backoff.orphans import starter_of


def _namespace() -> str:
    """Process ids mean something within one namespace only."""
    try:
        return str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]")
    except OSError:  # not Linux
        return "0"


_NAMESPACE = _namespace()


def owner_of(pid: int) -> str:
    """Return the owner's name of a process that leads its session, as children do."""
    return f"{_NAMESPACE}:{pid}"


def owner_using(pid: int) -> str:
    """Return the owner's name of any process: what a child starts counts as its own, also in a session of its own.

    Reads files.
    """
    starter = starter_of(pid)
    return owner_in_session(pid) if starter is None else owner_of(starter)


def owner_in_session(pid: int) -> str:
    """Return the owner's name of a process by its session."""
    try:
        return owner_of(os.getsid(pid))
    except OSError:  # it has just ended, or is not to be seen here
        return owner_of(pid)
