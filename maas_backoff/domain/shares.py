"""The tenants and the limits of a queue at one moment."""

import math
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import attrs

from maas_backoff.domain.limit import CLASS, Limit
from maas_backoff.domain.seconds import span
from maas_backoff.domain.waiting import at


@attrs.frozen
class TenantStats:
    """A tenant that has waiting tasks, a weight or a pause."""

    name: str
    waiting: int = 0
    """Its pending tasks, delayed ones too."""
    weight: float = 1
    paused_since: datetime | None = None
    """Since when no task of the tenant is claimed; None: not paused."""
    paused_by: str = ""
    """The name of the person who paused the tenant; empty: not paused, or no name was given."""


@attrs.frozen
class LimitStats:
    """A limit that is set, or that is shut."""

    name: str
    """The name that tasks give; or a name with `:*`, whose setting holds for all names of the class: `user:*`."""
    limit: Limit | None
    """The setting, with the times of its rates in seconds; None: the limit is not set, but a task has closed it."""
    set_by: str
    """The name of the setting: `name`, or the class `user:*`; empty: not set."""
    in_use: int = 0
    """Running tasks that name the limit; 0 for a class."""
    most: int | None = None
    """Tasks that may run at once; None: any number. After a task has closed the limit, it begins at 1 and grows."""
    waiting_lanes: int = 0
    """Lanes that wait for this limit: sets of due tasks with the same tenant, kind and limits."""
    waiting_tasks: int = 0
    """Due tasks in these lanes. A task with several shut limits waits for the first of them by name."""
    shut: str = ""
    """Why no task may start now, such as `limit openai: 64 of 64 in use`; empty: a task may start."""
    opens_at: datetime | None = None
    """When the next task may start, if the limit is shut by a rate or was closed; None: now, or when a task ends."""
    closed_until: datetime | None = None
    """Until when a task has closed the limit; None: not closed."""

    @property
    def is_class(self) -> bool:
        """Whether this is the setting of a class of names, such as `user:*`."""
        return self.name.endswith(CLASS)


class LimitList(list[LimitStats]):
    """Limits, and how many shut names of classes such as `user:*` are left out: `.more`, at most so many."""

    def __init__(self, limits: Iterable[LimitStats] = (), more: int = 0) -> None:
        super().__init__(limits)
        self.more: int = more


class LimitState(NamedTuple):
    """A limit as the server has it; all times are ms by the queue's clock. _limits.lua decides by the same rule."""

    name: str
    set_by: str
    setting: str
    use: int
    at: float
    """Theoretical arrival time of the next task, by the rate."""
    unit_at: float
    """Theoretical arrival time of the next unit, by the rate of units."""
    closed_until: float
    trial: int
    """After the limit was closed, so many tasks may run at once; 0: not on trial."""

    @classmethod
    def of(cls, name: str, set_by: str, setting: str, use: str, at: str, unit_at: str, closed: str) -> "LimitState":
        """Return the state of a row of _shares.lua."""
        until, trial, *_ = [*closed.split(), "", ""]
        return cls(
            name,
            set_by,
            setting,
            int(use or 0),
            float(at or 0),
            float(unit_at or 0),
            float(until or 0),
            int(trial or 0),
        )

    def look(self, now: float) -> tuple[float, str]:
        """Return when a task may start, in ms, and why not now: (now, "") if one may; infinity: when a task ends."""
        if self.closed_until > now:
            return self.closed_until, f"limit {self.name}: closed by a task for {_left(self.closed_until - now)} more"
        concurrency, interval, burst, unit, unit_burst = self._numbers()
        most = self.most
        if most is not None and self.use >= most:
            trial = "" if concurrency == most else ", on trial after a task has closed it"
            return math.inf, f"limit {self.name}: {self.use:,} of {most:,} in use{trial}"
        if interval and self.at - burst > now:
            opens = self.at - burst
            return opens, f"rate {self.name}: room in {_left(opens - now)}"
        if unit and self.unit_at - unit_burst > now:
            opens = self.unit_at - unit_burst
            return opens, f"tokens {self.name}: room in {_left(opens - now)}"
        return now, ""

    @property
    def most(self) -> int | None:
        """Return how many tasks may run at once; None: any number."""
        numbers = [int(number) for number in (self._numbers()[0], self.trial) if number]
        return min(numbers, default=None)

    def _numbers(self) -> tuple[float, ...]:
        try:
            numbers = tuple(map(float, self.setting.split()[:5]))
        except ValueError:  # a person has written over the setting
            numbers = ()
        return numbers if len(numbers) == 5 else (0.0,) * 5

    def stats(self, now: float, ahead: float, lanes: int = 0, tasks: int = 0) -> LimitStats:
        """Return the values for users; the queue's clock is `ahead` ms ahead of the server's."""
        opens, why = self.look(now)
        return LimitStats(
            self.name,
            Limit.of(self.setting),
            self.set_by,
            self.use,
            self.most,
            lanes,
            tasks,
            why,
            at(opens - ahead) if why and opens < math.inf else None,
            at(self.closed_until - ahead) if self.closed_until > now else None,
        )


def _left(ms: float) -> str:
    return span(math.ceil(ms / 1000))
