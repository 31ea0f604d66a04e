"""The GPUs of this machine, sampled once for a command."""

import threading
import time
from collections.abc import Sequence

from maas_backoff.gate.nvml import NvmlProbe
from maas_backoff.gate.sample import GpuSample

PATIENCE = 15.0
"""The most seconds to wait for NVML: a GPU that sleeps needs seconds to wake."""


def probed() -> Sequence[GpuSample]:
    """Return a sample of each GPU of this machine. Raises LookupError with the reason if there are none."""
    probe, read = NvmlProbe(), threading.Event()
    probe.start(read.set)
    deadline = time.monotonic() + PATIENCE
    while not probe.has_answered and time.monotonic() < deadline:
        read.wait(0.05)
    probe.stop()
    if not probe.samples():
        raise LookupError(probe.trouble)
    return probe.samples()
