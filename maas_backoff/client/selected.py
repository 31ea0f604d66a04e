"""The tasks of a selection, read page by page."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

import attrs

from maas_backoff.domain.page import Listing, TaskPage
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import InvalidValueError
from maas_backoff.store.found import Scan, Seen
from maas_backoff.store.reader import Reader

READ_AT_ONCE = 200
"""Tasks per page: about 1 ms of the server's time."""

PARAMS_AT_ONCE = 20
"""Tasks per page if the params are read, too: those of one task may have 1 MiB, or more."""

MOST_READ = 2000
"""Tasks that one listing reads. The next listing goes on from the cursor."""

_FIRST_INDEX = {
    TaskStatus.PROCESSING: "leases",
    TaskStatus.FAILED: "failed",
    TaskStatus.CANCELLED: "cancelled",
    TaskStatus.COMPLETED: "completed",
}
_STATUS_OF = {name: status for status, name in _FIRST_INDEX.items()} | {"external": TaskStatus.PROCESSING}


class Selected:
    """The tasks that match a selection, in one state after the other. `read` is the number of tasks that were read."""

    def __init__(
        self, reader: Reader, selection: Selection, cursor: str | None = None, *, reverse: bool = False
    ) -> None:
        """Begin at a cursor of `self.cursor`. Raises InvalidValueError for the cursor of another selection."""
        self._reader = reader
        self._given = self._selection = selection
        self._states = list(selection.statuses)
        self._reverse = reverse
        self._cursor = cursor
        self._scan: Scan | None = None
        self._again = False
        self.read: int = 0
        self.started: datetime | None = None
        if cursor is not None:
            self._skip_to(_STATUS_OF.get(cursor.partition(" ")[0], TaskStatus.PENDING))

    def _skip_to(self, status: TaskStatus) -> None:
        if status not in self._states:
            raise InvalidValueError("cursor", "the cursor of a page of this selection, or None", self._cursor)
        del self._states[: self._states.index(status)]

    @property
    def cursor(self) -> str | None:
        """The cursor at which `more` goes on; None at the end."""
        if not self._states:
            return None
        return self._cursor or f"{_FIRST_INDEX[self._states[0]]} {'+inf' if self._reverse else '-inf'} 0"

    @property
    def page_size(self) -> int:
        """The most tasks of a page."""
        return READ_AT_ONCE if self._selection.params is None else PARAMS_AT_ONCE

    @property
    def takes_all(self) -> bool:
        """Whether all tasks match that a listing finds."""
        left: dict[str, Any] = {"status": (), "waiting_for": None}
        if _is_ahead(self._given):
            left["due_from"] = None
        return not attrs.evolve(self._given, **left).has_conditions

    @property
    def now(self) -> datetime:
        """The server's time when the last page was read."""
        assert self._scan is not None
        return self._scan.now

    def matches(self, task: TaskEntity) -> bool:
        """Return whether a task matches, by the time at which the first page was read."""
        return self._selection.matches(task)

    async def more(self, size: int | None = None, *, brief: bool = True) -> Sequence[Seen] | None:
        """Read a page, and return its tasks that match; None at the end. `leave` must follow."""
        if not self._states:
            return None
        status, selection = self._states[0], self._selection
        listing = Listing(
            size or self.page_size,
            self._cursor,
            self._reverse,
            selection.waiting_for,
            selection.due_from if _is_ahead(selection) and not self._reverse else None,
            brief and selection.params is None,
        )
        scan = self._scan = await self._reader.scan(status, listing)
        if self.started is None:
            self.started, self._selection = scan.now, selection.at(scan.now)
        return [seen for seen in scan.seen if self._selection.matches(seen.task)]

    def place_of(self, seen: Seen) -> int:
        """Return the place of a task in the last page, from 1 on."""
        assert self._scan is not None
        return self._scan.places[self._scan.seen.index(seen)]

    def look_again(self) -> None:
        """Read the present state once more at its end: its tasks may leave their index, and others move up unseen."""
        self._again = True

    def leave(self, gone: Collection[str] = ()) -> None:
        """Go on after the last page. `gone` are ids of tasks that have left their index since it was read."""
        assert self._scan is not None
        self.read += len(self._scan.seen)
        self._cursor = self._scan.cursor(gone)
        if self._cursor is None:
            if not self._again:
                del self._states[0]
            self._again = False


def _is_ahead(selection: Selection) -> bool:
    """Return whether only tasks that are not due yet can match."""
    due_from = selection.due_from
    return selection.waiting_for is None and isinstance(due_from, timedelta) and due_from >= timedelta()


async def page_of(reader: Reader, selection: Selection, listing: Listing) -> TaskPage:
    """Return up to `listing.limit` tasks that match, among MOST_READ tasks at most."""
    selected = Selected(reader, selection, listing.cursor, reverse=listing.reverse)
    found: list[TaskEntity] = []
    while len(found) < listing.limit and selected.read < MOST_READ:
        room = listing.limit - len(found)
        size = room if selected.takes_all else selected.page_size if listing.brief else PARAMS_AT_ONCE
        matching = await selected.more(size, brief=listing.brief)
        while matching is not None and len(matching) > room:
            # Read again, to the last task that has room: the cursor must not skip the others.
            matching = await selected.more(selected.place_of(matching[room - 1]), brief=listing.brief)
        if matching is None:
            break
        found += (seen.task for seen in matching)
        selected.leave()
    return TaskPage(found, selected.cursor)
