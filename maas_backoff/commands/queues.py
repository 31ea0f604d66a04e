"""`maas-backoff queues`: the queues of a server that have been used, with their numbers of tasks."""

from collections.abc import Sequence

import attrs

from maas_backoff.commands.command import OK, Options
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.text import span, table
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.language import t
from maas_backoff.store.server_queues import QueueSummary, read_queues


async def run(config: TaskBackoffConfig, options: Options) -> int:
    """Print the queues."""
    found = await read_queues(config, options.keys)
    if options.json:
        views = [{"queue": row.name, **attrs.asdict(row.stats), "workers": row.workers} for row in found.queues]
        print_json({"queues": views, "complete": found.complete})
        return OK
    head = ("queue", "due", "scheduled", "processing", "completed", "failed", "cancelled", "oldest", "workers", "state")
    print(table(head, map(_cells, found.queues)))
    if not found.complete:
        print(t("There may be more: the server has more keys (--keys), or more nodes."))
    return OK


def _cells(row: QueueSummary) -> Sequence[object]:
    stats = row.stats
    counts = (stats.pending_count - stats.scheduled_count, stats.scheduled_count, stats.processing_count)
    ended = (stats.completed_count, stats.failed_count, stats.cancelled_count)
    oldest = span(stats.oldest_pending_age) if stats.oldest_pending_age else "-"
    state = t("paused") if stats.paused else t("runs") if row.workers else t("no worker")
    if stats.paused and stats.paused_by:
        state = t("paused by {name}", name=stats.paused_by)
    return row.name, *(f"{number:,}" for number in (*counts, *ended)), oldest, row.workers, state
