"""The predecessor of a worker with a name: a systemd instance or the pod of a StatefulSet that was started anew.

Only one worker has the name at a time, so the predecessor has ended, on whatever host it ran.
"""

from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.threads import in_thread
from maas_backoff.errors import ConfigError
from maas_backoff.worker.context import WorkerContext

log: Log = log_for("worker")


async def take_over(context: WorkerContext) -> None:
    """Take the worker's name, and let the leases of its predecessor run out. Do nothing without a name.

    Raises ConfigError if the predecessor is a running process of this host, and StorageError.
    """
    registry, name = context.store.registry, context.store.connection.config.scheduler.worker_name
    if not name:
        return
    predecessor, process = await registry.named(name)
    if process is not None and not await in_thread(process.has_ended):
        expected = f"a name that no running worker has: process {process.pid} has it"
        raise ConfigError("scheduler.worker_name", expected, name)
    if predecessor:
        count = await registry.expire(predecessor)
        if count:
            log.warning("worker %s takes over from %s: its %d tasks come back", context.name, predecessor, count)
    await registry.take_name(name, context.name)
