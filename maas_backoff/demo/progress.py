"""The progress of the demo: one line, rewritten on a terminal, printed anew every second elsewhere."""

import shutil
import sys
import time

from maas_backoff.demo.server import ModelServer
from maas_backoff.domain.stats import QueueStats
from maas_backoff.language import t
from maas_backoff.language.width import cut, padded

_BAR = 8


class Progress:
    """Shows the changing numbers of a queue."""

    def __init__(self, total: int, model: ModelServer) -> None:
        self._total = total
        self._model = model
        self._started = time.monotonic()
        self._next = 0.0
        self._live = sys.stdout.isatty()

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self._started

    def show(self, stats: QueueStats, *, last: bool = False) -> None:
        """Print the numbers: always on a terminal, once a second elsewhere."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1  # a line that wraps cannot be rewritten
            print(f"\r{padded(cut(self._line(stats), width), width)}", end="", flush=True)
        elif last or self.seconds >= self._next:
            self._next = self.seconds + 1
            print(self._line(stats), flush=True)

    def end(self) -> None:
        """End the rewritten line."""
        if self._live:
            print()

    def _line(self, stats: QueueStats) -> str:
        done = finished(stats)
        bar = "#" * (_BAR * done // self._total)
        return t(
            "{seconds} s [{bar}] {done}/{total} done, {running} running, {waiting} waiting; "
            "{refused} refused, {broken} broken",
            seconds=f"{self.seconds:5.1f}",
            bar=f"{bar:.<{_BAR}}",
            done=done,
            total=self._total,
            running=stats.processing_count,
            waiting=stats.pending_count,
            refused=self._model.refused.total(),
            broken=self._model.broken.total(),
        )


def finished(stats: QueueStats) -> int:
    """Return the number of finished tasks."""
    return stats.completed_count + stats.failed_count + stats.cancelled_count
