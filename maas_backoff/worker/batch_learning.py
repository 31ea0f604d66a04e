"""The knowledge of one worker about its batches, by kind and device."""

import time
from collections.abc import Mapping

from maas_backoff.domain.batch_learning import BatchSize, Window
from maas_backoff.domain.batching import Batching
from maas_backoff.domain.outcome import Failed, HandlerOutcome

LONGEST_RUN = 1.0
"""Seconds. During a batch that runs longer, the next one is not claimed ahead: its end is not known to some ms."""

LONGEST_LEAD = 0.05
"""Seconds. A batch is claimed ahead so early at most: tasks that come later are not in it."""

_CLAIMS = 8
"""Claims after which the time of a claim counts a third."""


class BatchLearning:
    """The size that fits, and the wait that pays, of each kind that runs in batches."""

    def __init__(self, batches: Mapping[str, Batching], slots: int) -> None:
        self._batches = batches
        self._windows = {kind: Window(batching, slots) for kind, batching in batches.items()}
        self._claim_seconds = 0.0
        self._spread = 0.0
        self._sizes: dict[tuple[str, str], BatchSize] = {}
        self._blamed: dict[str, str] = {}
        """The first task of each kind that has failed alone since a call of this kind succeeded last."""

    def size_of(self, kind: str, device: str = "") -> BatchSize:
        """Return what is known of the size on a device; "" is this machine."""
        key = kind, device
        if key not in self._sizes:
            self._sizes[key] = BatchSize(self._batches[kind].max_size)
        return self._sizes[key]

    def claim(self, kind: str) -> str:
        """Return the text of the next claim of a batch."""
        return self._batches[kind].claim(self.size_of(kind).limit, self._windows[kind].wait)

    def claim_on_gpu(self, kind: str, device: str, most: int) -> str:
        """Return the text of a claim of a batch that is due, for a reservation on a device of room for `most` tasks."""
        return self._batches[kind].claim(min(self.size_of(kind, device).limit, most), 0)

    def seconds_until_claim(self, kind: str, size: int) -> float | None:
        """Return after how many seconds of a batch's run the next batch should be claimed, to be there at its end.

        None: at its end, as nothing is known, or the run takes so long that the gap does not matter.
        """
        run = self._windows[kind].seconds_of(size)
        if not self._claim_seconds or not 0 < run <= LONGEST_RUN:
            return None
        return max(0.0, run - min(self._claim_seconds + 4 * self._spread, LONGEST_LEAD))

    def claimed(self, kind: str, size: int, seconds: float) -> None:
        """Note the size of a claimed batch, and how long its claim took."""
        self._spread += (abs(seconds - self._claim_seconds) - self._spread) / _CLAIMS if self._claim_seconds else 0
        self._claim_seconds += (seconds - self._claim_seconds) / (_CLAIMS if self._claim_seconds else 1)
        self._windows[kind].claimed(size, time.monotonic())

    def ended(self, kind: str, device: str, size: int, seconds: float, failed: HandlerOutcome | None) -> None:
        """Note the end of a batch, and its failure as a whole, if it failed."""
        if failed is None:
            self._blamed.pop(kind, None)
        if isinstance(failed, Failed) and (
            failed.fault == "out_of_memory" or failed.error.type == MemoryError.__name__
        ):
            self.size_of(kind, device).ran_out(size)
        elif failed is None:
            self.size_of(kind, device).succeeded(size)
            self._windows[kind].ran(size, seconds)

    def blames(self, kind: str, task_id: str) -> bool:
        """Return whether a task that has just failed alone is to blame.

        If another one has failed alone before, and no call of their kind has succeeded since, an upstream may be away.
        """
        return self._blamed.setdefault(kind, task_id) == task_id
