"""Whether the tasks of batches ran together as they may. Pure, as checker.py.

The start of a task in a batch has the number of the call as `batch`. The end has `whole` if the call failed as a whole.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from chaos.checker import Violation
from chaos.history import Event


class Bounds(Protocol):
    """The bounds of the batches of a kind."""

    @property
    def max_size(self) -> int: ...
    @property
    def max_cost(self) -> float | None: ...


def calls_of(events: Sequence[Event]) -> dict[int, list[Event]]:
    """Return the starts of each call of a handler for a batch."""
    found: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["event"] == "start" and "batch" in event:
            found[event["batch"]].append(event)
    return found


def oversized(events: Sequence[Event], kinds: Mapping[str, Bounds]) -> Iterator[Violation]:
    """No batch has more tasks, or more cost, than its kind allows. All tasks of a batch have one kind."""
    invoked = {event["id"]: event for event in events if event["event"] == "invoke"}
    for starts in calls_of(events).values():
        first, number = starts[0], len(starts)
        kind = kinds[first["function"]]
        functions = {invoked[start["id"]]["function"] for start in starts if start["id"] in invoked}
        if functions - {first["function"]}:
            yield Violation("oversized", first["id"], f"a batch of {first['function']!r} had tasks of {functions}")
        if number > kind.max_size:
            yield Violation("oversized", first["id"], f"a batch had {number} tasks, not {kind.max_size}")
        cost = sum(invoked[start["id"]].get("cost", 1) for start in starts if start["id"] in invoked)
        if kind.max_cost is not None and number > 1 and cost > kind.max_cost:
            yield Violation("oversized", first["id"], f"a batch of {number} tasks cost {cost}, not {kind.max_cost}")


def gathered(events: Sequence[Event], kinds: Mapping[str, Bounds]) -> Iterator[Violation]:
    """The tasks of a batch are claimed by one request: none has a lease while it waits for others."""
    for starts in calls_of(events).values():
        tokens = [start["token"] for start in starts]
        if max(tokens) - min(tokens) >= kinds[starts[0]["function"]].max_size:
            yield Violation("gathered", starts[0]["id"], f"a batch has tokens of several claims: {sorted(tokens)}")


def halved(events: Sequence[Event]) -> Iterator[Violation]:
    """The tasks of a failed batch come back in halves. A task that has failed alone comes back alone."""
    sizes = {number: len(starts) for number, starts in calls_of(events).items()}
    failed = {event["token"] for event in events if event["event"] == "end" and event.get("whole")}
    attempts: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["event"] == "start" and "batch" in event:
            attempts[event["id"]].append(event)
    for task_id, starts in attempts.items():
        for before, after in itertools.pairwise(sorted(starts, key=lambda start: int(start["token"]))):
            if before["token"] not in failed or after["lost"] > before["lost"]:
                continue
            size, then = sizes[before["batch"]], sizes[after["batch"]]
            if then > (size + 1) // 2:
                yield Violation("halved", task_id, f"failed in a batch of {size}, and came back in one of {then}")
            if size > 1 and after["retry"] > before["retry"]:
                yield Violation("halved", task_id, f"used a retry although a batch of {size} failed as a whole")
