"""Tenants, costs and limits of tasks: what decides whose task is taken next, and whether it may start now."""

import re
from collections.abc import Iterable, Mapping, Sized
from functools import lru_cache
from types import MappingProxyType
from typing import Any, cast

import attrs

from maas_backoff.errors import ConfigError, InvalidValueError

NO_TENANT = ""
NO_LIMITS: Mapping[str, float] = MappingProxyType({})
"""The limits of all tasks that name none."""

ALL_LIMITS = ""
"""In place of a limit's name: all limits that a task names."""

MOST_LIMITS = 4
"""Limits that one task may name."""

SMALLEST_COST = 0.001
LARGEST_COST = 1_000_000_000
LARGEST_WEIGHT = 1000
_NAME = re.compile(r"[A-Za-z0-9_.:@/+-]{1,100}")
_NAMES = "1 to 100 of A-Z a-z 0-9 _ . : @ / + -"
_NAMED = f"names of {_NAMES}"
_LIMITS = f"a mapping of at most {MOST_LIMITS} names to units"
_UNITS = f"a number from 0.001 to {LARGEST_COST:,}"
_USED = f"a number from 0 to {LARGEST_COST:,}"


@attrs.frozen
class Lane:
    """The tenant of a task, what it costs its tenant, and how many units it uses of each of its limits."""

    tenant: str = NO_TENANT
    cost: float = 1
    limits: Mapping[str, float] = NO_LIMITS

    @property
    def record(self) -> str:
        """The text in a task's creation: "lane costs" as _lanes.lua describes it; empty if nothing is set."""
        if not self.tenant and not self.limits:
            return ""
        names = sorted(self.limits)
        lane = f"{self.tenant}|{','.join(names)}" if names else self.tenant
        return f"{lane} {','.join(f'{number:.12g}' for number in (self.cost, *map(self.limits.__getitem__, names)))}"

    @property
    def record_of_cost(self) -> str:
        """The same text, which has the cost also for a task without a tenant and limits: then the lane is empty."""
        return self.record or f" {self.cost:.12g}"

    @classmethod
    def of(cls, record: str) -> "Lane":
        """Return the lane in a text that `record` has made. A text that a person has overwritten has no lane."""
        try:
            return _parsed(record) if record else NO_LANE
        except ValueError:
            return NO_LANE

    def changed(self, cost: float | None, limits: Mapping[str, float]) -> str:
        """Return the record of what must be added to the costs if the task has used `cost` and `limits` instead."""
        more = 0 if cost is None else cost - self.cost
        names = sorted(self.limits)
        deltas = (more, *(limits.get(name, self.limits[name]) - self.limits[name] for name in names))
        return f"{self.record.split(' ')[0]} {','.join(f'{number:.12g}' for number in deltas)}"


NO_LANE = Lane()


@lru_cache(maxsize=1024)
def _parsed(record: str) -> Lane:
    lane, _, costs = record.partition(" ")
    tenant, _, names = lane.partition("|")
    cost, *units = map(float, costs.split(","))
    # Read-only: handlers see it, and later tasks share it.
    limits = MappingProxyType(dict(zip(names.split(","), units, strict=True))) if names else NO_LIMITS
    return Lane(tenant, cost, limits)


def checked_tenant(tenant: object) -> str:
    """Return the name of a tenant. Raises InvalidValueError."""
    return _checked_name("tenant", tenant)


def checked_limit(name: object) -> str:
    """Return the name of a limit. Raises InvalidValueError."""
    return _checked_name("limit", name)


def _checked_name(option: str, name: object, expected: str = _NAMES) -> str:
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        raise InvalidValueError(option, expected, name)
    return found[0]  # of a subclass of str: its text alone


def is_cost(value: object) -> bool:
    """Return whether a value is a number that a task may cost."""
    return isinstance(value, int | float) and not isinstance(value, bool) and SMALLEST_COST <= value <= LARGEST_COST


def checked_cost(cost: Any, option: str = "cost") -> float:
    """Return what a task costs. Raises InvalidValueError."""
    if not is_cost(cost):
        raise InvalidValueError(option, _UNITS, cost)
    return float(cost)


TaskLimits = tuple[tuple[str, float], ...]
"""Limits that a task needs to start, and the units that it uses of each."""

GivenLimits = Mapping[str, float] | TaskLimits
"""Limits as a user gives them: `{"openai": 1200, "user:7": 1}`."""


def in_limits(given: GivenLimits | str) -> TaskLimits:
    """Return limits as a configuration has them. One text has them with commas between: `openai=1200,user:7=1`.

    Raises ConfigError.
    """
    try:
        return tuple(checked_limits(_pairs(given) if isinstance(given, str) else given).items())
    except InvalidValueError as error:
        raise ConfigError(f"task.{error.option}", error.expected, error.got) from None


def _pairs(text: str) -> TaskLimits:
    pairs = [one.strip().partition("=") for one in text.split(",") if one.strip()]
    try:
        return tuple((name, float(units or 1)) for name, _, units in pairs)
    except ValueError:
        raise InvalidValueError("limits", "names and units such as openai=1200,user:7=1", text) from None


def checked_limits(limits: Any) -> dict[str, float]:
    """Return the limits of a task, and the units that it uses of each. Raises InvalidValueError.

    `limits` is a mapping, or pairs of a name and a number.
    """
    pairs = _pairs_of(limits)
    if len(pairs) > MOST_LIMITS:
        raise InvalidValueError("limits", _LIMITS, sorted(str(name) for name, _ in pairs))
    units = {_checked_name("limits", name, _NAMED): checked_cost(number, f"limits[{name!r}]") for name, number in pairs}
    if len(units) < len(pairs):
        raise InvalidValueError("limits", f"{_LIMITS}, each name once", [name for name, _ in pairs])
    return units


def _pairs_of(limits: Any) -> list[tuple[Any, Any]]:
    if isinstance(limits, Mapping):
        units: dict[Any, Any] = {**limits}
        return list(units.items())
    try:
        pairs: list[Any] = list(limits)
    except TypeError:  # it is no iterable
        pairs = [limits]
    # Python would split a name of two letters into a pair.
    if not all(isinstance(pair, tuple | list) and len(cast("Sized", pair)) == 2 for pair in pairs):
        raise InvalidValueError("limits", _LIMITS, limits)
    return pairs


def checked_used(cost: Any, limits: Any) -> tuple[float | None, dict[str, float]]:
    """Return what an attempt has used: its cost, and units by limit. Raises InvalidValueError."""
    if limits is not None and not isinstance(limits, Mapping):
        raise InvalidValueError("limits", _LIMITS, limits)
    units: dict[Any, Any] = {**(limits or {})}
    checked = None if cost is None else _checked_number("cost", cost)
    return checked, {
        _checked_name("limits", name, _NAMED): _checked_number(f"limits[{name!r}]", one) for name, one in units.items()
    }


def _checked_number(option: str, number: Any) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= LARGEST_COST:
        raise InvalidValueError(option, _USED, number)
    return float(number)


def closing(closes: Iterable[tuple[str, float]], limits: Iterable[str]) -> dict[str, float]:
    """Return the seconds for which a task closes each limit.

    `closes` has the name of a limit, or ALL_LIMITS, and seconds. `limits` are those that the task names.
    """
    seconds: dict[str, float] = {}
    for closed, after in closes:
        for name in limits if closed == ALL_LIMITS else [closed]:
            seconds[name] = max(after, seconds.get(name, 0))
    return seconds
