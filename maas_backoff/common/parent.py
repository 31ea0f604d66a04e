"""The drain of a worker whose parent has ended, however the parent ended."""

import os
import signal
import threading
from collections.abc import MutableMapping

PARENT = "_MAAS_BACKOFF_PARENT"
"""The environment variable with the number of a file that is at its end when the parent has ended."""


def drain_with_parent(environment: MutableMapping[str, str]) -> None:
    """Send SIGTERM to this process, once, when the parent ends that the environment names.

    The kernel can send a signal, too, but on Linux only, and one for each thread of the parent: the second would cancel
    what runs.
    """
    number = environment.pop(PARENT, "")  # what this worker starts has no such parent
    if number.isdecimal():
        os.set_inheritable(int(number), False)
        threading.Thread(target=_wait, args=(int(number),), name="maas-backoff-parent", daemon=True).start()


def _wait(number: int) -> None:
    os.read(number, 1)
    os.kill(os.getpid(), signal.SIGTERM)
