"""The wake-up: sleeps on the server until a task becomes ready, on a connection of its own."""

from maas_backoff.errors import StorageDeniedError, StorageUnavailableError
from maas_backoff.loops.patience import Patience
from maas_backoff.running import Running
from maas_backoff.store.connect import Client
from maas_backoff.store.keys import Keys

LONGEST_BLOCK = 5
"""Seconds. A marker can be lost with a connection; nobody sleeps on longer than this."""


async def run(running: Running, client: Client, keys: Keys) -> None:
    """Take the marker when it is set. It is a hint: after every return, time-out or error, look for tasks.

    The blocking call is never cancelled to time something: its own timeout is late by up to 100 ms, and a cancelled
    one may take the marker with it.
    """
    marker = keys("marker")
    patience = Patience("a worker waits for wake-ups in vain")
    while True:
        await running.sated.wait()
        try:
            taken = await client.execute("BZPOPMIN", marker, LONGEST_BLOCK)
            if taken is not None and not running.free:
                # No slot here: let another worker have it.
                await client.execute("ZADD", marker, 0, "0")
            patience.restored()
        except (StorageUnavailableError, StorageDeniedError) as error:
            await patience.after(error)
        running.wake()
