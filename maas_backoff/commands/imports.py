"""Commands that are over soon import no more than they need, and spend no time in the garbage collector."""

import atexit
import gc
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def without_collections() -> Generator[None]:
    """Pause the garbage collector during imports: a collection would free little, and take a seventh of their time.

    At the end, freeze all objects. Most are modules, which stay until the process ends: the first collection would
    look at all of them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()
            gc.enable()


@contextmanager
def quick_imports() -> Generator[None]:
    """Import redis-py and the client without collections, and without OpenTelemetry."""
    with without_collections(), _without_telemetry():
        yield


@contextmanager
def _without_telemetry() -> Generator[None]:
    """Let redis-py be imported as if OpenTelemetry were not installed: its metrics take a sixth of a command's time.

    redis-py imports the SDK of OpenTelemetry wherever it is installed, and uses it only if a program asks for metrics.
    A command that reads or changes a queue does not.
    """
    if any(name.partition(".")[0] == "opentelemetry" for name in sys.modules):
        yield
        return
    # Python raises ModuleNotFoundError for a module that is None here.
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # typeshed has no None
    modules["opentelemetry"] = None
    try:
        yield
    finally:
        del modules["opentelemetry"]


def without_last_collection() -> None:
    """Let the process end without a last collection, which would look at the objects of all modules."""
    atexit.register(gc.freeze)
