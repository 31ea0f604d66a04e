"""The pages of a listing."""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import attrs

from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import InvalidValueError

LARGEST_PAGE = 1000

_CURSOR = re.compile(
    r"[a-z]+([:|][A-Za-z0-9_.:/~|,@+-]{1,900})? ([-+]inf|-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]{1,3})?) [0-9]{1,15}"
)


@attrs.frozen
class TaskPage:
    """Some tasks in one state, and the cursor of the next page; None at the end."""

    tasks: list[TaskEntity]
    cursor: str | None


class Listing(NamedTuple):
    """The arguments of `list_tasks`: the tasks of a state that a page has."""

    limit: int = 100
    cursor: str | None = None
    reverse: bool = False
    waiting_for: str | None = None
    due_from: datetime | timedelta | None = None
    brief: bool = False

    @property
    def first(self) -> str:
        """The score at which a listing begins in an index; "now+<ms>" is by the server's clock."""
        if isinstance(self.due_from, timedelta):
            return f"now+{self.due_from.total_seconds() * 1000:.0f}"
        if self.due_from is not None:
            return f"{self.due_from.timestamp() * 1000:.0f}"
        return "+inf" if self.reverse else "-inf"

    def start(self, names: Sequence[str]) -> tuple[int, str, str]:
        """Return where the page begins: the place among these names of indexes, score and skip.

        A cursor has the name of its index. If no task waits with that demand any more, the index is gone: the page
        begins with the next one.
        """
        if self.cursor is None:
            return 0, self.first, "0"
        name, score, skip = self.cursor.split(" ")
        if name in names:
            return names.index(name), score, skip
        return next((n for n, one in enumerate(names) if _order(one) > _order(name)), len(names)), self.first, "0"

    @property
    def due_only(self) -> bool:
        """Whether tasks that are not due yet are left out."""
        return self.waiting_for == "slot"

    def check(self, status: str) -> None:
        """Raise InvalidValueError for a wrong argument."""
        for option in ("reverse", "brief"):
            if not isinstance(getattr(self, option), bool):
                raise InvalidValueError(option, "True or False", getattr(self, option))
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or not 1 <= self.limit <= LARGEST_PAGE:
            raise InvalidValueError("limit", f"a whole number from 1 to {LARGEST_PAGE}", self.limit)
        if self.cursor is not None and not (isinstance(self.cursor, str) and _CURSOR.fullmatch(self.cursor)):
            raise InvalidValueError("cursor", "the cursor of a page, or None", self.cursor)
        if self.waiting_for not in (None, "slot", "gpu"):
            raise InvalidValueError("waiting_for", '"slot", "gpu", or None', self.waiting_for)
        if self.waiting_for is not None and status != "pending":
            raise InvalidValueError("waiting_for", "None but for pending tasks", self.waiting_for)
        if self.due_from is None:
            return
        aware = isinstance(self.due_from, datetime) and self.due_from.tzinfo is not None
        if not aware and not (isinstance(self.due_from, timedelta) and self.due_from >= timedelta()):
            raise InvalidValueError("due_from", "an aware datetime, a timedelta from now on, or None", self.due_from)
        if status != "pending" or self.reverse or self.waiting_for is not None:
            raise InvalidValueError("due_from", "None but for pending tasks in the order in which they are due", status)


def _order(name: str) -> tuple[int, str]:
    """Return the place of an index of pending tasks: no kind and no GPU, then by kind, by demand, not due yet."""
    places = {"ready": 0, "suspects": 0, "scheduled": 3}
    return places.get(name, 1 if name.startswith("k:") else 2), name
