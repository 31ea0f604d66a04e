"""Tables and progress bars by rich (extra `cli`) for terminals. Texts of tasks are never parsed as rich's markup."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from maas_backoff.language import t

Show = Callable[[str, str, float], None]
"""A function that shows a state, a line of text, and a percentage."""

_WHOLE = {"id", "worker", "uuid", "due", "ended"}
_SHORT = {"state", "prio", "tries", "when"}
SHORT = 24
"""Characters of a cell that is shown in one piece at any width."""

_STYLES = {"processing": "cyan", "completed": "green", "ok": "green", "failed": "red", "cancelled": "dim"}


def table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table, at most as wide as the terminal, with escape sequences.

    `names` are the English names of the columns; the first line is the head.
    """
    shown = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    console = Console()
    for name, cells in zip(names, zip(*lines, strict=True), strict=True):
        # People copy these cells: no line break inside, unless the terminal is narrow.
        is_whole = name in _WHOLE and max(map(len, cells)) <= max(SHORT, console.width // 4)
        shown.add_column(_text(cells[0]), overflow="fold", no_wrap=is_whole or name in _SHORT)
    for line in lines[1:]:
        shown.add_row(*map(_text, line))
    with console.capture() as capture:
        console.print(shown)
    return capture.get().rstrip("\n")


def _text(cell: str) -> Text:
    is_bar = cell and not cell.strip("#")
    return Text(cell, style="cyan" if is_bar else {t(name): style for name, style in _STYLES.items()}.get(cell, ""))


@contextmanager
def progress_bar() -> Generator[Show]:
    """Yield a function that draws the progress of a task, and prints a line for each new state."""
    console, shown = Console(), ""
    columns = (BarColumn(20), TextColumn("{task.description}", markup=False))
    # No refresh thread of rich: nothing changes between two events.
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        bar = progress.add_task("")

        def show(state: str, line: str, percent: float) -> None:
            nonlocal shown
            if state != shown:
                console.print(Text(line), soft_wrap=True)
            shown = state
            progress.update(bar, completed=percent, description=line, refresh=True)

        yield show
