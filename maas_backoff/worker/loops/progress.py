"""Progress notes of running attempts, sent together."""

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.store.redis import RedisStore
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.running import Running

PAUSE = 0.1


async def run(running: Running, store: RedisStore) -> None:
    """Send the newest note of each attempt, at most ten times a second."""
    patience = Patience("a worker's progress loop", store.server.outage)
    while True:
        await running.noting.wait()
        running.noting.clear()
        attempts, running.noted = running.noted, {}
        notes = [(a.task.task_id, a.token, *a.progress) for a in attempts.values() if a.progress and not a.over]
        try:
            await store.report_progress(notes)
            patience.restored()
        except StorageError as error:  # the settlement carries the last note
            patience.failed(error)
        await anyio.sleep(PAUSE)
