"""Batches: several tasks of one kind that one call of a handler runs."""

import hashlib
import math
from datetime import timedelta

import attrs

from maas_backoff.domain.demand import MIB_PER_GIB, Demand
from maas_backoff.domain.lane import LARGEST_COST, is_cost
from maas_backoff.errors import InvalidValueError

MOST_TASKS = 1000
"""The most tasks of a batch: a claim of so many keeps the server busy for about 10 ms."""

LONGEST_WAIT = 3600.0
"""The longest `max_wait` in seconds."""

_MOST_GIB = 100_000

WRONG_OUTCOMES = "wrong_outcomes"
"""The type of the TaskError of tasks whose handler has not returned one outcome for each task."""

HALF = "~"
"""The first character of the name of a cohort whose batch has failed."""


@attrs.frozen
class Batching:
    """How many tasks of a kind run together, and how long a task waits for others.

    A batch has `max_size` tasks at most. If `max_cost` is given, the costs of its tasks add up to `max_cost` at most,
    unless it has one task only. It starts as soon as it is full, or when its oldest task has been due for `max_wait`
    seconds. `adaptive`: it starts at once while the worker can keep up without waiting. On a GPU, each task but the
    first needs `gpu_memory_per_task` MiB more than the first one.
    """

    max_size: int = 32
    max_wait: float = 0.02
    max_cost: float | None = None
    adaptive: bool = False
    gpu_memory_per_task: int = 0

    @classmethod
    def checked(
        cls,
        max_size: object,
        max_wait: object,
        max_cost: object = None,
        *,
        adaptive: object = False,
        gpu_memory_per_task_gb: object = 0,
    ) -> "Batching":
        """Return the options of a batch. Raises InvalidValueError."""
        if isinstance(max_size, bool) or not isinstance(max_size, int) or not 1 <= max_size <= MOST_TASKS:
            raise InvalidValueError("max_size", f"a whole number from 1 to {MOST_TASKS:,}", max_size)
        seconds = max_wait.total_seconds() if isinstance(max_wait, timedelta) else max_wait
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_WAIT:
            raise InvalidValueError("max_wait", "seconds from 0 to 3,600, or a timedelta", max_wait)
        if max_cost is not None and not is_cost(max_cost):
            raise InvalidValueError("max_cost", f"a number from 0.001 to {LARGEST_COST:,}, or None", max_cost)
        if not isinstance(adaptive, bool):
            raise InvalidValueError("adaptive", "True or False", adaptive)
        each = gpu_memory_per_task_gb
        if isinstance(each, bool) or not isinstance(each, int | float) or not 0 <= each <= _MOST_GIB:
            raise InvalidValueError("gpu_memory_per_task_gb", f"GiB from 0 to {_MOST_GIB:,}", each)
        cost = float(max_cost) if isinstance(max_cost, int | float) else None
        return cls(max_size, float(seconds), cost, adaptive, math.ceil(each * MIB_PER_GIB))

    def demand(self, alone: Demand, number: int) -> Demand:
        """Return what a batch of `number` tasks needs of a GPU; `alone` is what each of them needs alone."""
        return attrs.evolve(alone, memory=alone.memory + (number - 1) * self.gpu_memory_per_task)

    def claim(self, size: int, wait: float) -> str:
        """Return the text of a claim of up to `size` tasks; the oldest one waits for `wait` seconds: see _batch.lua."""
        return f"{size} {wait * 1000:g} {'-' if self.max_cost is None else f'{self.max_cost:.12g}'}"


def half_of(origin: str, place: int, number: int) -> tuple[str, int]:
    """Return the cohort of the task at `place` in a failed batch of `number` tasks, and the size of this cohort.

    `origin` names the batch. The first half is the larger one.
    """
    first = (number + 1) // 2
    half, size = (0, first) if place < first else (1, number - first)
    return HALF + hashlib.blake2s(f"{origin}\n{half}".encode(), digest_size=6).hexdigest(), size
