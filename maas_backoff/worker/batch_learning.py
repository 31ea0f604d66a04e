"""The knowledge of one worker about its batches, by kind and device."""

import time
from collections.abc import Mapping

from maas_backoff.domain.batch_learning import BatchSize, Window
from maas_backoff.domain.batching import Batching
from maas_backoff.domain.outcome import Failed, HandlerOutcome


class BatchLearning:
    """The size that fits, and the wait that pays, of each kind that runs in batches."""

    def __init__(self, batches: Mapping[str, Batching], slots: int) -> None:
        self._batches = batches
        self._windows = {kind: Window(batching, slots) for kind, batching in batches.items()}
        self._sizes: dict[tuple[str, str], BatchSize] = {}

    def size_of(self, kind: str, device: str = "") -> BatchSize:
        """Return what is known of the size on a device; "" is this machine."""
        key = kind, device
        if key not in self._sizes:
            self._sizes[key] = BatchSize(self._batches[kind].max_size)
        return self._sizes[key]

    def claim(self, kind: str) -> str:
        """Return the text of the next claim of a batch."""
        return self._batches[kind].claim(self.size_of(kind).limit, self._windows[kind].wait)

    def claim_on_gpu(self, kind: str, device: str) -> str:
        """Return the text of a claim of a batch that is due, for a reservation on a device."""
        return self._batches[kind].claim(self.size_of(kind, device).limit, 0)

    def claimed(self, kind: str, size: int) -> None:
        """Note the size of a claimed batch."""
        self._windows[kind].claimed(size, time.monotonic())

    def ended(self, kind: str, device: str, size: int, seconds: float, failed: HandlerOutcome | None) -> None:
        """Note the end of a batch, and its failure as a whole, if it failed."""
        if isinstance(failed, Failed) and (
            failed.fault == "out_of_memory" or failed.error.type == MemoryError.__name__
        ):
            self.size_of(kind, device).ran_out(size)
        elif failed is None:
            self.size_of(kind, device).succeeded(size)
            self._windows[kind].ran(size, seconds)
