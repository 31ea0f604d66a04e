"""The kinds of tasks in a history. Events call them functions: the `kind` of an event says how a task behaves."""

import random
from collections.abc import Collection

FUNCTIONS = ("", "one", "two")
"""The handler of tasks without a kind, and the functions of two kinds."""

SHARES = {"": 2, "one": 1, "two": 1}
"""How many tasks each function gets."""


def function_of_task(choice: random.Random) -> str:
    return choice.choices(list(SHARES), list(SHARES.values()))[0]


def functions_of_worker(choice: random.Random, needed: Collection[str] = ()) -> tuple[str, ...]:
    """Return the functions of a new worker: the needed ones, and others by chance. A worker has one at least."""
    found = tuple(name for name in FUNCTIONS if choice.random() < 0.5 or name in needed)
    return found or (choice.choice(FUNCTIONS),)
