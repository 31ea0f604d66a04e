"""Orphans: tasks that are in no index, after a script that was cut in half or a change by a person."""

from typing import NamedTuple

from maas_backoff.store import scripts
from maas_backoff.store.connection import QueueConnection

MOST_KEYS = 1_000_000
"""Keys of the server that one search reads by default."""

_AT_ONCE = 500
"""Tasks per call of orphans.lua: 2 to 3 ms of the server's time."""


class Search(NamedTuple):
    """The result of a search: the tasks read, the tasks in no index, and whether all tasks were read."""

    tasks: int
    orphans: int
    complete: bool


async def find_orphans(queue: QueueConnection, *, repair: bool, keys: int = MOST_KEYS) -> Search:
    """Count tasks in no index, among about `keys` keys of the server; put them back if `repair`.

    Running tasks get the configured lease. Finished tasks are kept for their configured time. Raises
    StorageDeniedError if the user may not SCAN.
    """
    config = queue.config
    lease_ms = f"{config.scheduler.lease * 1000:.0f}"
    ttls = (f"{ttl:.0f}" for ttl in (config.task.result_ttl, config.task.failed_ttl))
    head = [queue.clock, queue.keys.prefix, int(repair), lease_ms, *ttls]
    prefix = queue.keys.task("")
    cursor, looked, tasks, orphans = "0", 0, 0, 0
    while True:
        position, names = await queue.server.execute("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", str(_AT_ONCE))
        cursor, looked = position.decode(), looked + _AT_ONCE
        ids = [name.decode().removeprefix(prefix) for name in names]
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            found = await queue.run(scripts.ORPHANS, [*head, *some])
            tasks, orphans = tasks + len(some), orphans + len(found)
        if cursor == "0" or looked >= keys:
            return Search(tasks, orphans, cursor == "0")
