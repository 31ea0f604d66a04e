"""The kinds of a history whose tasks run in batches: what a seed says of them, and their handlers."""

import asyncio
import random
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Self

import attrs

from maas_backoff import TaskBackoffScheduler, TaskEntity, TaskKind

if TYPE_CHECKING:
    from simulation.world import World

NAMES = ("many", "dear")

WAITS = (0.0, 0.02, 1.0, 5.0, 20.0)

SLOTS = (1, 2, 10)

HOW = {"returns": 3, "raises": 2, "hangs": 1}
"""How a task fails: by an outcome of its own, or with all tasks of its batch."""


@attrs.frozen
class BatchKind:
    """A kind whose tasks run in batches."""

    name: str
    max_size: int
    max_wait: float
    max_cost: float | None
    adaptive: bool
    pace: float
    """A factor of the seconds of its tasks. Short batches are claimed ahead."""

    @property
    def exec_timeout(self) -> float:
        """Longer than any task that does not hang."""
        return 100 * self.pace

    @classmethod
    def of(cls, name: str, choice: random.Random) -> Self:
        size, wait = choice.choice([2, 3, 4, 8]), choice.choice(WAITS)
        cost = 10.0 if name == "dear" else None
        return cls(name, size, wait, cost, choice.random() < 0.3, choice.choice([1, 1, 0.01]))


@attrs.frozen
class Batches:
    """All kinds of a history that run in batches."""

    kinds: tuple[BatchKind, ...]
    homes: tuple[int, ...]
    """For each of them, the place whose worker has it at the end."""
    alone: bool
    """Whether the workers have no other kinds."""
    slots: int
    """The slots of each worker."""

    @classmethod
    def of(cls, choice: random.Random, workers: int) -> Self:
        kinds = tuple(BatchKind.of(name, choice) for name in NAMES[: choice.randint(1, len(NAMES))])
        alone = choice.random() < 0.3
        return cls(
            kinds, tuple(choice.randrange(workers) for _ in kinds), alone, choice.choice(SLOTS if alone else SLOTS[1:])
        )

    def needed_at(self, place: int) -> set[str]:
        """Return those that the worker at a place has at the end."""
        return {kind.name for kind, home in zip(self.kinds, self.homes, strict=True) if home == place}

    def of_worker(self, choice: random.Random, needed: Collection[str]) -> tuple[str, ...]:
        """Return those that a new worker has: the needed ones, and others by chance. One, if it has no other kinds."""
        found = tuple(kind.name for kind in self.kinds if choice.random() < 0.6 or kind.name in needed)
        return found or ((self.kinds[0].name,) if self.alone else ())

    def group(self, choice: random.Random) -> tuple[BatchKind, int]:
        """Return the kind of tasks that come at once, and how many there are."""
        kind = choice.choice(self.kinds)
        return kind, choice.choice([1, 1, 2, kind.max_size, 2 * kind.max_size + 1])


def declare(world: "World", scheduler: TaskBackoffScheduler, kind: BatchKind) -> TaskKind[Any, Any]:
    """Declare a kind, for a worker that runs its tasks or a producer that creates them."""

    async def run(tasks: list[TaskEntity], items: list[dict[str, Any]]) -> list[Any]:
        return await _run(world, kind, tasks, items)

    declared: TaskKind[Any, Any] = scheduler.batch(
        name=kind.name,
        max_size=kind.max_size,
        max_wait=kind.max_wait,
        max_cost=kind.max_cost,
        adaptive=kind.adaptive,
        exec_timeout=kind.exec_timeout,
    )(run)
    return declared


async def _run(
    world: "World", kind: BatchKind, tasks: Sequence[TaskEntity], items: Sequence[dict[str, Any]]
) -> list[Any]:
    began = world.loop.now
    node = world.note_starts(tasks, kind.name, batch=next(world.calls))
    whole, how = False, dict.fromkeys((task.task_id for task in tasks), "ok")
    try:
        if any(item["kind"] == "poison" for item in items):
            world.die(node)
            await asyncio.sleep(0)
        fails = [task.retry_count < item["fails"] for task, item in zip(tasks, items, strict=True)]
        ways = {item["how"] for item, failing in zip(items, fails, strict=True) if failing}
        await asyncio.sleep(max(item["seconds"] for item in items))
        if "hangs" in ways:
            await asyncio.sleep(2 * kind.exec_timeout)
        if "raises" in ways:
            raise ConnectionError("not yet")
        how = {task.task_id: "ConnectionError" if one else "ok" for task, one in zip(tasks, fails, strict=True)}
        return [
            ConnectionError("not yet") if one else {"token": task.token} for task, one in zip(tasks, fails, strict=True)
        ]
    except BaseException as error:
        whole = isinstance(error, ConnectionError) or world.loop.now >= began + kind.exec_timeout
        how = dict.fromkeys(how, type(error).__name__)
        raise
    finally:
        world.note_ends(node, tasks, how, whole=whole)
