"""One page of a listing."""

import re
from datetime import datetime

import attrs

from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import InvalidValueError

LARGEST_PAGE = 1000

_CURSOR = re.compile(r"[1-9] ([-+]inf|-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]{1,3})?) [0-9]{1,15}")


@attrs.frozen
class TaskPage:
    """Some tasks in one state, and the cursor to go on with; None at the end."""

    tasks: list[TaskEntity]
    cursor: str | None


@attrs.frozen
class Listing:
    """Which tasks of a state a page is to have, and what of them. The arguments of `list_tasks`."""

    limit: int = 100
    cursor: str | None = None
    reverse: bool = False
    waiting_for: str | None = None
    due_from: datetime | None = None
    brief: bool = False

    @property
    def start(self) -> str:
        """Where in the indexes the page begins."""
        if self.cursor is not None:
            return self.cursor
        if self.due_from is not None and not self.reverse:
            return f"1 {self.due_from.timestamp() * 1000:.0f} 0"
        return "1 +inf 0" if self.reverse else "1 -inf 0"

    @property
    def due_only(self) -> bool:
        """Whether what is scheduled for later is left out."""
        return self.waiting_for == "slot"

    def check(self, status: str) -> None:
        """Raise InvalidValueError for what no page can be."""
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or not 1 <= self.limit <= LARGEST_PAGE:
            raise InvalidValueError("limit", f"a whole number from 1 to {LARGEST_PAGE}", self.limit)
        if self.cursor is not None and not (isinstance(self.cursor, str) and _CURSOR.fullmatch(self.cursor)):
            raise InvalidValueError("cursor", "the cursor of a page, or None", self.cursor)
        if self.waiting_for not in {None, "slot", "gpu"}:
            raise InvalidValueError("waiting_for", '"slot", "gpu", or None', self.waiting_for)
        if self.waiting_for is not None and status != "pending":
            raise InvalidValueError("waiting_for", "None but for pending tasks", self.waiting_for)
        if self.due_from is None:
            return
        if not isinstance(self.due_from, datetime) or self.due_from.tzinfo is None:
            raise InvalidValueError("due_from", "an aware datetime, or None", self.due_from)
        if status != "pending" or self.reverse or self.waiting_for is not None:
            raise InvalidValueError("due_from", "None but for pending tasks in the order in which they are due", status)
