"""The loop that sends the progress notes of running attempts together."""

import anyio

from maas_backoff.errors import StorageError
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.notes import Notes

PAUSE = 0.1

MOST_NOTES = 500
"""Notes in one call, which must not delay the server: a worker may have thousands of attempts."""


async def run(notes: Notes, store: QueueStore) -> None:
    """Send the newest note of each attempt, at most ten times a second."""
    patience = Patience("a worker's progress loop", store.connection.server.outage)
    while True:
        await notes.waiting.wait()
        noted = notes.newest()
        try:
            for start in range(0, len(noted), MOST_NOTES):
                await store.writer.report_progress(noted[start : start + MOST_NOTES])
                patience.restored()
        except StorageError as error:  # the settlement carries the last note
            patience.failed(error)
        await anyio.sleep(PAUSE)
