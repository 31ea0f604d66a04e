"""Lines for terminals. Control characters in the texts of tasks are shown, and have no effect."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec

from maas_backoff.language import t
from maas_backoff.language.width import columns, padded
from maas_backoff.logs import printable

WIDEST = 60
"""The most characters of a cell."""


def is_rich() -> bool:
    """Return whether stdout is a terminal, and rich is installed (extra `cli`)."""
    return sys.stdout.isatty() and find_spec("rich") is not None


def cell(text: object) -> str:
    """Return printable text for a cell of a table."""
    shown = printable(text)
    return shown if len(shown) <= WIDEST else f"{shown[: WIDEST - 1]}…"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with columns as wide as their cells, or a table of rich if `is_rich`. The head is English."""
    if is_rich():
        from maas_backoff.commands import rich_text

        return rich_text.table(head, _cells(head, rows))
    return plain_table(head, rows)


def plain_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table with columns as wide as their cells. The head is English."""
    lines = _cells(head, rows)
    widths = [max(map(columns, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(padded, line, widths)).rstrip() for line in lines)


def _cells(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[tuple[str, ...]]:
    return [tuple(map(t, head)), *(tuple(map(cell, row)) for row in rows)]


def span(seconds: float | None) -> str:
    """Return a duration as text with two or three figures; "-" for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return t("{number} ms", number=f"{seconds * 1000:.3g}")
    for text, size in (("{number} d", 86_400), ("{number} h", 3600), ("{number} min", 60)):
        if seconds >= 2 * size:
            return t(text, number=f"{seconds / size:.3g}")
    return t("{number} s", number=f"{seconds:.3g}")


def moment(at: datetime | None) -> str:
    """Return a moment in UTC, to the second; "-" for None."""
    return "-" if at is None else f"{at:%Y-%m-%d %H:%M:%S}Z"


def clock(at: datetime | None) -> str:
    """Return a moment in UTC: the time if it is today, else the day and the time; "-" for None."""
    if at is None:
        return "-"
    return f"{at:%H:%M:%S}Z" if at.date() == datetime.now(UTC).date() else f"{at:%m-%d %H:%M}Z"
