"""Whether the tasks of batches ran together as they may. Pure, as checker.py.

The start of a task in a batch has the number of the call as `batch`. The end has `whole` if the call failed as a whole.
A settlement that was sent has `released` if the worker hands the task back, whatever came of its attempt.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from chaos.checker import TOLERANCE, Violation
from chaos.history import Event

MOMENT = 0.01
"""Seconds between the ends of two calls whose order is not known."""

LONG_BEFORE = 2.0
"""Seconds between the start of a batch and a cancel that has nothing to do with it."""


class Bounds(Protocol):
    """The bounds of the batches of a kind."""

    @property
    def max_size(self) -> int: ...
    @property
    def max_wait(self) -> float: ...
    @property
    def max_cost(self) -> float | None: ...
    @property
    def adaptive(self) -> bool: ...


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


def hasty(events: Sequence[Event], kinds: Mapping[str, Bounds]) -> Iterator[Violation]:
    """No batch is claimed that is neither full nor old enough. A token is the time of its claim, in microseconds.

    Nothing is said of tasks that come back, as suspects wait for nobody; and of a batch from which a task was cancelled
    before it began, or was given back as its deadline had passed: it may have been full.
    """
    invoked = {event["id"]: event for event in events if event["event"] == "invoke"}
    cancels = [event["time"] for event in events if event["event"] == "cancel"]
    released = [event["token"] for event in events if event["event"] == "sent" and event.get("released")]
    for starts in calls_of(events).values():
        first, kind = starts[0], kinds[starts[0]["function"]]
        is_bound = kind.max_cost is None and not kind.adaptive and len(starts) < kind.max_size
        if not is_bound or any(start["attempt"] > 1 or start["id"] not in invoked for start in starts):
            continue
        if any(abs(cancel - first["time"]) < LONG_BEFORE for cancel in cancels):
            continue
        if any(abs(token - first["token"]) < kind.max_size for token in released):
            continue
        due = min(invoked[start["id"]]["time"] + invoked[start["id"]]["delay"] for start in starts) + kind.max_wait
        early = due - min(start["token"] for start in starts) / 1_000_000
        if early > TOLERANCE:
            yield Violation("hasty", first["id"], f"a batch of {len(starts)} was claimed {early:.3f} s too early")


def halved(events: Sequence[Event]) -> Iterator[Violation]:
    """The tasks of a failed batch come back in halves. A task that is to blame comes back alone.

    A worker that stood still for longer than its lease hands them back instead.
    """
    blamed = _blamed(events)
    sizes = {number: len(starts) for number, starts in calls_of(events).items()}
    failed = {event["token"] for event in events if event["event"] == "end" and event.get("whole")}
    failed -= {event["token"] for event in events if event["event"] == "sent" and event.get("released")}
    attempts: defaultdict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event["event"] == "start" and "batch" in event:
            attempts[event["id"]].append(event)
    for task_id, starts in attempts.items():
        for before, after in itertools.pairwise(sorted(starts, key=lambda start: int(start["token"]))):
            if before["token"] not in failed or after["lost"] > before["lost"]:
                continue
            size, then = sizes[before["batch"]], sizes[after["batch"]]
            if then > (size + 1) // 2 and (size > 1 or before["token"] in blamed):
                yield Violation("halved", task_id, f"failed in a batch of {size}, and came back in one of {then}")
            if size > 1 and after["retry"] > before["retry"]:
                yield Violation("halved", task_id, f"used a retry although a batch of {size} failed as a whole")


def _blamed(events: Sequence[Event]) -> set[int]:
    """Return the tokens of attempts that failed alone and are to blame for it.

    If another task of the kind failed alone in the same worker before, and no call has succeeded in between, what all
    of them call may be to blame. Nothing is said of calls that end at the same moment, nor after a call of which it is
    not known whether the worker has counted it as a success or a failure, until a task completes.
    """
    calls = calls_of(events)
    call_of = {start["token"]: start for starts in calls.values() for start in starts}
    sent = [event for event in events if event["event"] == "sent"]
    completed = {event["token"] for event in sent if event["status"] == "completed"}
    told = {event["token"] for event in sent if event["error"] is not None and not event.get("released")}
    last: dict[tuple[int, str], tuple[float, int]] = {}
    first: dict[tuple[int, str], str] = {}
    found = set[int]()
    for event in events:
        start = call_of.get(event.get("token", 0)) if event["event"] == "end" else None
        if start is None:
            continue
        place = start["worker"], start["function"]
        at, number = last.get(place, (0.0, 0))
        is_alone_now = number == start["batch"] or event["time"] - at > MOMENT
        last[place] = event["time"], start["batch"]
        if event["token"] in completed:
            first.pop(place, None)
        elif not event.get("whole"):
            first[place] = ""
        elif len(calls[start["batch"]]) == 1:
            is_first = first.setdefault(place, event["id"] if event["token"] in told else "") == event["id"]
            found.update([event["token"]] if is_first and is_alone_now else [])
    return found
