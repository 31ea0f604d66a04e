"""The facts about a worker that all parts of its gate need."""

import asyncio
import time
from collections.abc import Callable

import attrs

from maas_backoff.config import GpuConfig


@attrs.frozen
class GateContext:
    """One worker of one queue, as the parts of its gate know it."""

    config: GpuConfig
    worker: str
    queue: str
    in_children: bool
    """Whether attempts run in child processes, each for one device, whose memory NVML reports by process."""
    changed: asyncio.Event
    """Set when something may have changed for tasks that need a GPU."""
    clock: Callable[[], float] = time.monotonic
    """The clock of the GPU samples."""
