"""The queues of a server."""

import re

import attrs

from maas_backoff.store.server import Server

MOST_QUEUES = 1000
_AT_ONCE = 1000
"""Keys that the server reads in one call: well below 1 ms of its time."""

_META = re.compile(r"maas:\{([A-Za-z0-9_.-]{1,64})\}:meta")


@attrs.frozen
class QueueNames:
    """The names of the queues that were found, and whether there may be more."""

    names: list[str]
    complete: bool


async def find_queues(server: Server, keys: int) -> QueueNames:
    """Find the queues that have been used, among about `keys` keys of the server, in a Cluster of one of its nodes.

    Each queue has a key `meta` from its first task, or its first worker, on. Raises StorageDeniedError if the user may
    not SCAN.
    """
    found: set[str] = set()
    cursor, looked = "0", 0
    while True:
        position, names = await server.execute("SCAN", cursor, "MATCH", "maas:{*}:meta", "COUNT", str(_AT_ONCE))
        cursor, looked = position.decode(), looked + _AT_ONCE
        found.update(match[1] for name in names if (match := _META.fullmatch(name.decode(errors="replace"))))
        if cursor == "0" or looked >= keys or len(found) >= MOST_QUEUES:
            return QueueNames(sorted(found)[:MOST_QUEUES], cursor == "0" and not server.clustered)
