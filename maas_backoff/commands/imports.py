"""Commands that are over soon spend no time in the garbage collector: it took a fourth of theirs."""

import atexit
import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def without_collections() -> Generator[None]:
    """Pause the garbage collector during imports: it would find nothing, and take a seventh of their time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def without_last_collection() -> None:
    """Let the process end without a last collection, which would look at the objects of all modules."""
    atexit.register(gc.freeze)
