"""The rules of fairness.py find each kind of violation in small histories made by hand, and none in a good one."""

from typing import Any

import pytest
from chaos.fairness import crowded, rushed, unfair, woken
from chaos.history import Event
from chaos.shares import SIMULATED


def task(task_id: str, *limits: str, tenant: str = "") -> Event:
    about = {"tenant": tenant, "cost": 1, "limits": [*limits]}
    return {"event": "invoke", "id": task_id, "time": 0.0, "kind": "plain", **about}


def attempt(task_id: str, token: int, begin: float, end: float, answer: str = "ok") -> list[Event]:
    of_it: dict[str, Any] = {"id": task_id, "token": token}
    found = [{"event": "start", "time": begin, **of_it}, {"event": "end", "time": end, **of_it}]
    return [*found, {"event": "settle", "time": end + 0.1, "answer": answer, **of_it}]


def in_order(*events: Event) -> list[Event]:
    return sorted(events, key=lambda event: float(event["time"]))


@pytest.mark.parametrize(
    ("limit", "answer", "is_wrong"),
    [("user:1", "ok", True), ("user:1", "lost", False), ("few", "ok", False), ("loose", "ok", False)],
)
def test_attempts_beside_each_other(limit: str, answer: str, is_wrong: bool) -> None:
    """Two at once: one more than `user:*` allows. The place of an attempt that was lost may have another one."""
    events = [task("x", limit), task("y", limit), *attempt("x", 1, 1, 3, answer), *attempt("y", 2, 2, 4)]
    assert [one.promise for one in crowded(in_order(*events), SIMULATED)] == ["crowded"] * is_wrong
    one_after_the_other = [task("x", limit), task("y", limit), *attempt("x", 1, 1, 3), *attempt("y", 2, 3, 4)]
    assert not [*crowded(in_order(*one_after_the_other), SIMULATED)]


def test_a_child_that_crashed_has_left_its_place_before_its_settlement_is_noted() -> None:
    crashed = [event for event in attempt("x", 1, 1, 3) if event["event"] != "end"]
    events = [task("x", "user:1"), task("y", "user:1"), *crashed, *attempt("y", 2, 2.9, 4)]
    assert not [*crowded(in_order(*events), SIMULATED)]


def test_a_thread_that_goes_on_after_a_timeout_has_left_its_place() -> None:
    settled_early = [event | {"time": 2.0} if event["event"] == "settle" else event for event in attempt("x", 1, 1, 3)]
    events = [task("x", "user:1"), task("y", "user:1"), *settled_early, *attempt("y", 2, 1.9, 4)]
    assert not [*crowded(in_order(*events), SIMULATED)]


@pytest.mark.parametrize(("apart", "is_wrong"), [(1.0, False), (0.9, True)])
def test_starts_in_a_stretch_of_time(apart: float, is_wrong: bool) -> None:
    most, seconds = SIMULATED.rates["pace"]
    step = round(apart * seconds * 1_000_000 / most)
    events = [task(f"{n}", "pace") for n in range(3 * most)]
    events += [one for n in range(3 * most) for one in attempt(f"{n}", n * step, n, n)]
    assert [one.promise for one in rushed(in_order(*events), SIMULATED)] == ["rushed"] * is_wrong


def test_shares_of_tenants() -> None:
    """Tenant c has five times the weight of a. Starts before all of them had tasks do not count."""
    flood = {tenant: [f"{tenant}{n}" for n in range(100)] for tenant in "abc"}
    created = [task(task_id, tenant=tenant) for tenant, ids in flood.items() for task_id in ids]

    def starts(order: str, first: int) -> list[Event]:
        left = {tenant: iter(ids) for tenant, ids in flood.items()}
        return [one for n, tenant in enumerate(order) for one in attempt(next(left[tenant]), first + n, n, n)]

    places = dict.fromkeys(flood, 0.0)
    assert not [*unfair(created + starts("abbccccc" * 10, 1), flood, 0, places, 2)]
    assert [one.promise for one in unfair(created + starts("abc" * 30, 1), flood, 0, places, 2)] == ["unfair"]
    assert not [*unfair(created + starts("abc" * 30, 1), flood, 1000, places, 2)]
    # Tenant c was charged before: it waits for the others.
    ahead = places | {"c": 20.0}
    assert not [*unfair(created + starts("abb" * 20, 1), flood, 0, ahead, 2)]
    assert [one.promise for one in unfair(created + starts("abbccccc" * 10, 1), flood, 0, ahead, 2)] == ["unfair"]
    # A claim that is in no event may have been the missing ones.
    lost = [event | {"lost": 1} if event["event"] == "start" else event for event in starts("abc" * 30, 1)]
    assert not [*unfair(created + lost, flood, 0, places, 2)]


def test_a_start_while_its_tenant_is_paused() -> None:
    pause = {"event": "paused", "time": 9.0, "tenant": "a", "since": 1000.0, "until": 2000.0}
    for ms, tenant, is_wrong in ((1500, "a", True), (1500, "b", False), (500, "a", False), (2500, "a", False)):
        events = [task("x", tenant=tenant), *attempt("x", ms * 1000, 1, 2), pause]
        assert [one.promise for one in woken(events)] == ["woken"] * is_wrong
