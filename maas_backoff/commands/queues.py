"""`maas-backoff queues`: the queues of a server that have been used, with their numbers of tasks."""

from collections.abc import Sequence

import attrs

from maas_backoff.commands.command import OK, Options
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.text import span, table
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.stats import QueueStats
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.queues import find_queues

_SCRATCH = "queues"
"""The name for the connection. In a Cluster, it decides which node is looked at."""


@attrs.frozen
class _Row:
    name: str
    stats: QueueStats
    workers: int


async def run(config: TaskBackoffConfig, options: Options) -> int:
    """Print the queues."""
    config.task.biz_prefix = config.task.biz_prefix or _SCRATCH
    store = QueueStore.of(config)
    try:
        found = await find_queues(store.connection.server, options.keys)
    finally:
        await store.aclose()
    rows = [await _read(config, name) for name in found.names]
    if options.json:
        views = [{"queue": row.name, **attrs.asdict(row.stats), "workers": row.workers} for row in rows]
        print_json({"queues": views, "complete": found.complete})
        return OK
    head = ("queue", "due", "scheduled", "processing", "completed", "failed", "cancelled", "oldest", "workers", "state")
    print(table(head, map(_cells, rows)))
    if not found.complete:
        print("There may be more: the server has more keys (--keys), or more nodes.")
    return OK


async def _read(config: TaskBackoffConfig, name: str) -> _Row:
    copy = config.copy()
    copy.task.biz_prefix = name
    store = QueueStore.of(copy)
    try:
        return _Row(name, await store.reader.stats(), len(await store.registry.fleet()))
    finally:
        await store.aclose()


def _cells(row: _Row) -> Sequence[object]:
    stats = row.stats
    counts = (stats.pending_count - stats.scheduled_count, stats.scheduled_count, stats.processing_count)
    ended = (stats.completed_count, stats.failed_count, stats.cancelled_count)
    oldest = span(stats.oldest_pending_age) if stats.oldest_pending_age else "-"
    state = "paused" if stats.paused else "runs" if row.workers else "no worker"
    return row.name, *(f"{number:,}" for number in (*counts, *ended)), oldest, row.workers, state
