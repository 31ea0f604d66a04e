"""`maas-backoff top`: one queue, live, at a terminal."""

import argparse
import asyncio
import math
import shutil
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from maas_backoff.commands.command import OK, Arguments, Options, failed, on_queue
from maas_backoff.commands.frame import Snapshot, frame
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.keyboard import until_quit
from maas_backoff.errors import StorageError
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""Another screen without a cursor, and back."""
_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"


def _arguments(parser: Arguments) -> None:
    parser.add_argument("--once", action="store_true", help="print one frame, and end")
    parser.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="S", help="seconds between frames (default: %(default)g)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.2 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(t("expected seconds from 0.2 to 3600, got {got}", got=repr(text)))
    return seconds


async def _top(scheduler: TaskBackoffScheduler, options: Options) -> int:
    if options.json:
        print_json((await Snapshot.read(scheduler)).view())
        return OK
    if options.once:
        size = shutil.get_terminal_size()
        print("\n".join(frame(await Snapshot.read(scheduler), size.columns, None)))
        return OK
    if not sys.stdout.isatty():
        return failed(options, t("stdout is no terminal: add --once or --json"))
    snapshot = await Snapshot.read(scheduler)  # a wrong server is told before the screen changes
    print(_ENTER, end="", flush=True)
    try:
        await until_quit(_Screen(scheduler, options.interval, snapshot).run)
    finally:
        print(_LEAVE, end="", flush=True)
    return OK


class _Screen:
    """Draws a queue again and again. While the server does not answer, the last numbers stay, with a line about it."""

    def __init__(self, scheduler: TaskBackoffScheduler, interval: float, snapshot: Snapshot) -> None:
        self._scheduler = scheduler
        self._interval = interval
        self._snapshot = snapshot

    async def run(self) -> None:
        trouble = ""
        while True:
            size = shutil.get_terminal_size()
            _draw(frame(self._snapshot, size.columns, size.lines, trouble))
            await asyncio.sleep(self._interval)
            try:
                self._snapshot, trouble = await Snapshot.read(self._scheduler), ""
            except StorageError as error:
                now, then = f"{datetime.now(UTC):%H:%M:%S}Z", f"{self._snapshot.at:%H:%M:%S}Z"
                trouble = t("{now} {error}; these are the numbers of {then}", now=now, error=error, then=then)


def _draw(lines: Sequence[str]) -> None:
    text = "\n".join(line + _TO_END_OF_LINE for line in lines)
    print(_HOME + text + _TO_END, end="", flush=True)


COMMANDS = {
    "top": on_queue(
        "Show the states, rates, workers with their tasks, GPUs and errors of a queue, and draw them again every two "
        "seconds. q or Ctrl-C ends it.",
        "maas-backoff top --queue image-gen --interval 1",
        _top,
        _arguments,
    )
}
"""The command by its name."""
