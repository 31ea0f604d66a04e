"""The queues of a server, with their numbers of tasks."""

import attrs

from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.stats import QueueStats
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.queues import find_queues

_SCRATCH = "queues"
"""The name for the connection. In a Cluster, it decides which node is looked at."""


@attrs.frozen
class QueueSummary:
    """The numbers of a queue, and of its live workers."""

    name: str
    stats: QueueStats
    workers: int


@attrs.frozen
class ServerQueues:
    """The queues that were found, and whether there may be more."""

    queues: list[QueueSummary]
    complete: bool


async def read_queues(config: TaskBackoffConfig, keys: int) -> ServerQueues:
    """Read the numbers of the queues that have been used, among about `keys` keys of the server of `config`."""
    store = _store(config, config.task.biz_prefix or _SCRATCH)
    try:
        found = await find_queues(store.connection.server, keys)
    finally:
        await store.aclose()
    return ServerQueues([await _read(config, name) for name in found.names], found.complete)


async def _read(config: TaskBackoffConfig, name: str) -> QueueSummary:
    store = _store(config, name)
    try:
        return QueueSummary(name, await store.reader.stats(), len(await store.registry.fleet()))
    finally:
        await store.aclose()


def _store(config: TaskBackoffConfig, name: str) -> QueueStore:
    copy = config.copy()
    copy.task.biz_prefix = name
    return QueueStore.of(copy)
