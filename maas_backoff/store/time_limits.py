"""The deadlines of a task, as its overrides hold them: see lua/_deadlines.lua.

They are the first member of the JSON object, `{"@by":[start_ms,complete_ms,start,complete,ttl_s],…}`, where "@" sorts
before all letters. A script finds them by one pattern. The server sets the first two numbers when it creates the task.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from maas_backoff.domain.policy import Policy

NAME = "@by"
NAMES = ("start_within", "complete_within")
"""The options that lead to them."""


class TimeLimits(NamedTuple):
    """Until when an attempt must start, and until when all must end, in ms by the queue's clock; 0: no limit."""

    start_by: int
    complete_by: int
    start_within: int
    """The length in ms, from the task's creation or first due time on; so is `complete_within`."""
    complete_within: int
    ttl: int
    """Seconds for which the cancelled task is kept."""

    @classmethod
    def of(cls, own: Mapping[str, Any]) -> Self | None:
        """Return the limits in a task's overrides; None if there are none."""
        stored = own.get(NAME)
        return None if stored is None else cls._make(stored)

    @property
    def expiry(self) -> int:
        """The moment at which a pending task ends, in ms."""
        return min(moment for moment in (self.start_by, self.complete_by) if moment)


def with_limits(own: dict[str, Any], defaults: Mapping[str, float | None], policy: Policy) -> dict[str, Any]:
    """Return checked overrides as they are sent: with the deadlines of a task, if there are any.

    `defaults` are the values of `NAMES` for a task that names none of its own.
    """
    start, complete = (own.pop(name, defaults[name]) for name in NAMES)
    if start is None and complete is None:
        return own
    lengths = [0 if seconds is None else max(1, round(seconds * 1000)) for seconds in (start, complete)]
    return {**own, NAME: [0, 0, *lengths, max(1, round(policy.result_ttl))]}
