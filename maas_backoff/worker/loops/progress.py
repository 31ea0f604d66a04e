"""Progress notes of running attempts, sent together."""

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.store.redis import RedisStore
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.notes import Notes

PAUSE = 0.1


async def run(notes: Notes, store: RedisStore) -> None:
    """Send the newest note of each attempt, at most ten times a second."""
    patience = Patience("a worker's progress loop", store.server.outage)
    while True:
        await notes.waiting.wait()
        try:
            await store.report_progress(notes.newest())
            patience.restored()
        except StorageError as error:  # the settlement carries the last note
            patience.failed(error)
        await anyio.sleep(PAUSE)
