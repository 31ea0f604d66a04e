"""The tenants and limits of a history: who has what."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TENANTS = {"a": 1.0, "b": 2.0, "c": 5.0}
"""Their weights."""

LOOSE = "loose"
"""A limit that comes and goes."""


class Limits(NamedTuple):
    """The limits of a history, which never change, and those of its tasks."""

    most: Mapping[str, int]
    """Limits of running tasks."""
    rates: Mapping[str, tuple[int, float]]
    """Limits of starts in so many seconds."""
    of_tasks: Sequence[Mapping[str, float]]

    def most_of(self, name: str) -> int | None:
        """Return how many tasks of a limit may run at once, if that never changes."""
        return self.most.get(name) or self.most.get(f"{name.partition(':')[0]}:*")


SIMULATED = Limits(
    {"few": 2, "user:*": 1},
    {"pace": (20, 60.0)},
    [
        *({}, {}, {}, {"few": 1}, {"user:1": 1}, {"user:2": 1, "few": 1}),
        *({"pace": 1}, {"few": 1, "pace": 1}, {LOOSE: 1}, {LOOSE: 1, "user:1": 1}),
    ],
)
"""For tasks that take a minute, and come once in ten seconds."""

CHAOTIC = Limits(
    {"few": 6, "user:*": 2},
    {"pace": (60, 10.0)},
    [*SIMULATED.of_tasks, *({f"user:{n}": 1.0} for n in range(3, 7)), {"user:3": 1, "pace": 1}],
)
"""For tasks that take half a second, and come twenty times a second."""


def share_of_task(choice: random.Random, limits: Limits) -> dict[str, Any]:
    """Return the options of a task: a tenant, a cost and limits, each maybe none."""
    found: dict[str, Any] = {"limits": choice.choice(limits.of_tasks), "cost": choice.choice([1, 1, 7])}
    tenant = choice.choice(["", *TENANTS])
    return found | ({"tenant": tenant} if tenant else {})


def noted(share: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the event of a creation has of these options."""
    return {"tenant": share.get("tenant", ""), "cost": share["cost"], "limits": [*share["limits"]]} if share else {}
