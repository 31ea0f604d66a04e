"""The checker of batches finds each kind of violation in small histories made by hand, and none in a good one."""

from collections.abc import Sequence

import attrs
import pytest
from chaos.batches import gathered, halved, hasty, oversized
from chaos.checker import Violation
from chaos.fairness import woken
from chaos.history import Event


@attrs.frozen
class Bounds:
    max_size: int = 4
    max_cost: float | None = None
    max_wait: float = 0
    adaptive: bool = False


def created(*ids: str, function: str = "many", cost: float = 1) -> list[Event]:
    return [{"event": "invoke", "id": one, "function": function, "cost": cost} for one in ids]


def call(
    number: int, ids: Sequence[str], *, token: int = 0, retry: int = 0, lost: int = 0, fails: bool = False
) -> list[Event]:
    """One call of the handler for tasks that were claimed at once."""
    first = token or 1000 * number
    starts = [
        {
            "event": "start",
            "id": one,
            "batch": number,
            "token": first + n,
            "retry": retry,
            "lost": lost,
            "function": "many",
            "worker": 1,
        }
        for n, one in enumerate(ids)
    ]
    status = "pending" if fails else "completed"
    ends = [{"event": "end", "id": one["id"], "token": one["token"], "whole": fails, "time": number} for one in starts]
    about = {"event": "sent", "status": status, "error": "ConnectionError" if fails else None}
    return [*starts, *ends, *({**about, "token": one["token"]} for one in starts)]


def found(events: list[Event], bounds: Bounds | None = None) -> list[Violation]:
    kinds = {"many": bounds or Bounds()}
    return [*oversized(events, kinds), *gathered(events, kinds), *halved(events)]


def test_a_good_history() -> None:
    """A batch fails, and comes back in halves. One of them fails, and then a task alone, which uses a retry."""
    events = created("a", "b", "c")
    events += call(1, ["a", "b", "c"], fails=True) + call(2, ["c"]) + call(3, ["a", "b"], fails=True)
    events += call(4, ["a"], fails=True) + call(5, ["b"]) + call(6, ["a"], retry=1)
    assert found(events) == []


def test_a_lost_task_may_come_back_in_company() -> None:
    assert found(created("a", "b") + call(1, ["a"], fails=True) + call(2, ["a", "b"], lost=1)) == []


def test_tasks_that_a_worker_hands_back_may_come_back_in_company() -> None:
    """It stood still for longer than its lease: that its call failed meanwhile is not known to the server."""
    about = {"event": "sent", "status": "pending", "error": None, "released": True}
    handed_back = [{**about, "token": 1000 + n} for n in range(2)]
    assert found([*created(*"ab"), *call(1, "ab", fails=True), *handed_back, *call(2, "ab")]) == []


def test_one_of_the_tasks_of_an_outage_comes_back_alone() -> None:
    """None has completed between two failures alone: only the first one is to blame, until a task completes."""
    outage = created(*"abc") + call(1, "a", fails=True) + call(2, "b", fails=True)
    assert found([*outage, *call(3, "bc", retry=1)]) == []
    assert [one.promise for one in found([*outage, *call(3, "ac", retry=1)])] == ["halved"]
    again = call(3, "c") + call(4, "b", retry=1, fails=True) + call(5, "ab", retry=2)
    assert [one.promise for one in found([*outage, *again])] == ["halved", "halved"]
    one_error = [{**event, "whole": False} if event["event"] == "end" else event for event in call(3, "c", fails=True)]
    unknown = [*one_error, *call(4, "b", retry=1, fails=True), *call(5, "a", retry=1, fails=True)]
    assert found([*outage, *unknown, *call(6, "ab", retry=2)]) == []


@pytest.mark.parametrize(
    ("events", "bounds", "promise"),
    [
        (created(*"abc") + call(1, "abc"), Bounds(2), "oversized"),
        (created(*"ab", cost=6) + call(1, "ab"), Bounds(4, 10), "oversized"),
        (created("a") + created("b", function="other") + call(1, "ab"), Bounds(), "oversized"),
        (created(*"ab") + call(1, "a", token=1000) + call(1, "b", token=2000), Bounds(), "gathered"),
        (created(*"abcd") + call(1, "abcd", fails=True) + call(2, "abc"), Bounds(), "halved"),
        (created(*"ab") + call(1, "a", fails=True) + call(2, "ab", retry=1), Bounds(), "halved"),
        (created(*"ab") + call(1, "ab", fails=True) + call(2, "a", retry=1), Bounds(), "halved"),
    ],
)
def test_what_is_wrong_is_found(events: list[Event], bounds: Bounds, promise: str) -> None:
    assert promise in {one.promise for one in found(events, bounds)}


def test_one_task_may_cost_more_than_a_batch() -> None:
    assert found(created("a", cost=11) + call(1, "a"), Bounds(4, 10)) == []


@pytest.mark.parametrize(
    ("claimed", "ids", "attempt", "cancel", "expected"),
    [
        (4.9, "ab", 1, 0.0, ["hasty"]),
        (5.1, "ab", 1, 0.0, []),  # old enough
        (4.9, "abcd", 1, 0.0, []),  # full
        (4.9, "ab", 2, 0.0, []),  # a suspect, perhaps
        (4.9, "ab", 1, 4.8, []),  # two others were cancelled, perhaps
    ],
)
def test_a_batch_that_waits_too_short_is_found(
    claimed: float, ids: str, attempt: int, cancel: float, expected: list[str]
) -> None:
    about = {"time": claimed, "attempt": attempt}
    events = [{**event, "time": 0.0, "delay": 0.0} for event in created(*ids)]
    events += [{**event, **about} for event in call(1, ids, token=int(claimed * 1_000_000))]
    events.append({"event": "cancel", "id": "z", "time": cancel})
    assert [one.promise for one in hasty(events, {"many": Bounds(max_wait=5)})] == expected


def test_a_batch_may_have_been_full_with_a_task_that_was_given_back() -> None:
    token = 4_900_000
    events = [{**event, "time": 0.0, "delay": 0.0} for event in created("a", "b", "c")]
    events += [{**event, "time": 4.9, "attempt": 1} for event in call(1, "abc", token=token)]
    kinds = {"many": Bounds(4, max_wait=5)}
    assert [one.promise for one in hasty(events, kinds)] == ["hasty"]
    events.append({"event": "sent", "id": "d", "token": token + 3, "status": "pending", "released": True})
    assert list(hasty(events, kinds)) == []


def test_a_task_of_a_paused_kind_that_starts_is_found() -> None:
    paused = {"event": "paused", "function": "many", "since": 1.0, "until": 10.0}
    assert [one.promise for one in woken([*created("a"), *call(1, "a", token=5000), paused])] == ["woken"]
    assert list(woken([*created("a"), *call(1, "a", token=20_000), paused])) == []
