"""The new time or priority of many pending tasks."""

from datetime import datetime, timedelta
from typing import NamedTuple

from maas_backoff.domain.spec import Reschedule
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.validation import checked_due, checked_priority
from maas_backoff.errors import InvalidValueError


class NewPlace(NamedTuple):
    """A new priority, and a new due time in seconds from now or as a moment; None: as before."""

    priority: int | None
    due: float | datetime | None

    @classmethod
    def of(cls, call: str, options: Reschedule) -> "NewPlace":
        """Return the new place in the options of a call. Raises InvalidValueError."""
        if not options or options.keys() - Reschedule.__annotations__:
            raise InvalidValueError(call, "priority, delay or run_at", ", ".join(options) or "none of them")
        priority = checked_priority(options["priority"]) if "priority" in options else None
        return cls(priority, checked_due(options) if options.keys() & {"delay", "run_at"} else None)

    def has(self, task: TaskEntity, since: datetime, now: datetime) -> bool:
        """Return whether a pending task is there already, or was put there by a change between `since` and `now`.

        A task that is due counts as due now: another due time would cost the task its turn.
        """
        due = task.next_execute_time
        if due is None or (self.priority is not None and task.priority != self.priority):
            return False
        if self.due is None:
            return True
        if isinstance(self.due, datetime):
            return abs(due - self.due) < timedelta(milliseconds=2)
        delay = timedelta(seconds=self.due)
        return (not delay or due >= since + delay) and due <= now + delay
