"""The loop that sends the progress notes of running attempts together."""

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.notes import Notes

PAUSE = 0.1


async def run(notes: Notes, store: QueueStore) -> None:
    """Send the newest note of each attempt, at most ten times a second."""
    patience = Patience("a worker's progress loop", store.connection.server.outage)
    while True:
        await notes.waiting.wait()
        try:
            await store.writer.report_progress(notes.newest())
            patience.restored()
        except StorageError as error:  # the settlement carries the last note
            patience.failed(error)
        await anyio.sleep(PAUSE)
