"""The progress of a run on stderr: a line that is written over on a terminal, a line each second elsewhere."""

import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from typing import TextIO

import anyio

from maas_backoff.commands.mapping.output import Output
from maas_backoff.commands.mapping.records import COMPLETED
from maas_backoff.domain.seconds import span
from maas_backoff.errors import StorageError
from maas_backoff.language import sentence, t
from maas_backoff.language.width import cut
from maas_backoff.logs import printable

BAR = 20
"""Characters of the bar."""

PATIENCE = 10.0
"""Seconds without a written line after which the reason is shown."""

CLEAR = "\r\x1b[K"


class Progress:
    """Shows how many lines are written, how fast, and what keeps the next one waiting."""

    def __init__(self, output: Output, total: int | None, waits_for: Callable[[], Awaitable[str]]) -> None:
        """`total` is the number of lines, if it is known. `waits_for` says what the next line waits for."""
        self._output = output
        self._total = total
        self._waits_for = waits_for
        self._started = time.monotonic()
        self._first = output.last
        self._live = is_live()

    @property
    def seconds(self) -> float:
        """The seconds since the start."""
        return time.monotonic() - self._started

    async def run(self) -> None:
        """Show the progress until this is cancelled."""
        last, since, why = self._first, time.monotonic(), ""
        try:
            while True:
                await anyio.sleep(0.1 if self._live else 1)
                if self._output.last != last:
                    last, since, why = self._output.last, time.monotonic(), ""
                elif time.monotonic() - since > PATIENCE:
                    since, why = time.monotonic(), await self._why(why)
                self._show(why)
        finally:
            if self._live:
                print(CLEAR, end="", file=sys.stderr, flush=True)

    async def _why(self, known: str) -> str:
        try:
            return await self._waits_for()
        except StorageError:
            return known

    def _show(self, why: str) -> None:
        text = t("; ").join([self._line(), printable(why)] if why else [self._line()])
        if self._live:
            text = CLEAR + cut(text, shutil.get_terminal_size().columns - 1)  # a line that wraps cannot be written over
        print(text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def _line(self) -> str:
        last, total = self._output.last, self._total
        counts = self._output.counts
        failed = counts.total() - counts[COMPLETED]
        rate = (last - self._first) / self.seconds
        a_second = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        speed = t("{failed} failed, {rate} a second", failed=f"{failed:,}", rate=a_second)
        seconds, lines = f"{self.seconds:7.1f}", f"{last:,}"
        if not total:
            return t("{seconds} s  {n} lines, {speed}", seconds=seconds, n=lines, speed=speed)
        bar = "#" * (BAR * last // total)
        line = t(
            "{seconds} s [{bar}] {n} of {most} lines, {speed}",
            seconds=seconds,
            bar=f"{bar:.<{BAR}}",
            n=lines,
            most=f"{total:,}",
            speed=speed,
        )
        return line + t(", {span} left", span=sentence(span((total - last) / rate))) if rate else line


def is_live() -> bool:
    """Return whether stderr is a terminal."""
    return sys.stderr.isatty()


class AboveProgress:
    """A stream for log records. On a terminal, a record first clears the line that shows the progress."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> object:
        """Write a record."""
        return self._stream.write(f"{CLEAR}{text}" if is_live() else text)

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()
