"""The numbers of a queue in the text format of Prometheus."""

from weakref import WeakKeyDictionary

import anyio
from prometheus_client import CollectorRegistry, generate_latest

from maas_backoff.common.guard import Log, log_for
from maas_backoff.errors import StorageError
from maas_backoff.prometheus.collector import Collector
from maas_backoff.prometheus.snapshot import Snapshot
from maas_backoff.scheduler import TaskBackoffScheduler

log: Log = log_for("prometheus")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of `metrics`."""

PATIENCE = 5.0
"""The most seconds of a scrape. Prometheus gives up after 10, and would then not get the reason."""

_failures: WeakKeyDictionary[TaskBackoffScheduler, int] = WeakKeyDictionary()
"""The number of failed scrapes in a row: only the first failure and its end are logged."""


async def metrics(scheduler: TaskBackoffScheduler) -> bytes:
    """Return the numbers of the scheduler's queue in the text format of Prometheus, CONTENT_TYPE.

    The numbers come from the server, so all processes return the same, with a started scheduler or not. If the server
    does not answer within 5 seconds, or `storage.timeout`, the text is only `maas_backoff_up 0`, and a warning is
    logged with the reason.
    """
    collector = Collector(scheduler.config.task.biz_prefix, await _read(scheduler))
    # In a thread: a thousand workers and GPUs take 90 ms. The default limiter may have no thread left.
    return await anyio.to_thread.run_sync(_rendered, collector, limiter=anyio.CapacityLimiter(1))


def _rendered(collector: Collector) -> bytes:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry)


async def _read(scheduler: TaskBackoffScheduler) -> Snapshot | None:
    try:
        with anyio.fail_after(PATIENCE):
            snapshot = await Snapshot.of(scheduler)
    except (StorageError, TimeoutError) as error:
        why = str(error) or f"no answer within {PATIENCE:g} s"
        failures = _failures[scheduler] = _failures.get(scheduler, 0) + 1
        if failures == 1:
            log.warning("queue %r could not be read for Prometheus: %s", scheduler.config.task.biz_prefix, why)
        return None
    failures = _failures.pop(scheduler, 0)
    if failures:
        queue = scheduler.config.task.biz_prefix
        log.warning("queue %r was read for Prometheus again, after %d failed scrapes", queue, failures)
    return snapshot
