"""Tasks that are in no index: what a script that was cut in half, or somebody by hand, has left behind."""

import attrs

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.store import scripts
from maas_backoff.store.redis import RedisStore

MOST_KEYS = 1_000_000
"""Keys of the server that one search looks at, unless it is told otherwise."""

_AT_ONCE = 500
"""Tasks per call of orphans.lua: 2 to 3 ms of the server's time."""


@attrs.frozen
class Search:
    """How many tasks were looked at, how many of them are in no index, and whether these were all tasks."""

    tasks: int
    orphans: int
    complete: bool


async def find_orphans(store: RedisStore, config: TaskBackoffConfig, *, repair: bool, keys: int = MOST_KEYS) -> Search:
    """Look for tasks in no index, among about `keys` keys of the server; put them back if `repair`.

    `config` has the lease of those that run, and for how long finished ones are kept. Raises StorageDeniedError where
    the user may not SCAN.
    """
    lease_ms = f"{config.scheduler.lease * 1000:.0f}"
    ttls = (f"{ttl:.0f}" for ttl in (config.task.result_ttl, config.task.failed_ttl))
    head = [store.clock, store.keys.prefix, int(repair), lease_ms, *ttls]
    prefix = store.keys.task("")
    cursor, looked, tasks, orphans = "0", 0, 0, 0
    while True:
        position, names = await store.server.execute("SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", str(_AT_ONCE))
        cursor, looked = position.decode(), looked + _AT_ONCE
        ids = [name.decode().removeprefix(prefix) for name in names]
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            found = await store.server.run(scripts.ORPHANS, store.keys.all(scripts.ORPHANS.keys), [*head, *some])
            tasks, orphans = tasks + len(some), orphans + len(found)
        if cursor == "0" or looked >= keys:
            return Search(tasks, orphans, cursor == "0")
