"""The placement of tasks: as a table, and for whatever devices and tasks there are."""

import asyncio
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maas_backoff.config import GpuConfig
from maas_backoff.domain.demand import Demand, Waiting
from maas_backoff.gate.context import GateContext
from maas_backoff.gate.grant import ChildUse, Grant
from maas_backoff.gate.placement import Plan, plan, room_of
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import DeviceLedger, Reservation


def device(uuid: str, free: int, total: int = 16, **more: Any) -> GpuSample:
    return GpuSample(uuid, 0, "Fake", total, free, at=0, **more)


def waits(memory: int, rank: float = 1, age: float = 0, ceiling: float = 0, avoid: str = "") -> Waiting:
    demand = Demand(memory, ceiling)
    return Waiting(demand.name, demand, rank, age, avoid)


def ledger(*reserved: tuple[str, int, str], **more: Any) -> DeviceLedger:
    """Reservations as (owner, MiB, state)."""
    made = {owner: Reservation(owner, mib, state, owner, "w", "q", "t") for owner, mib, state in reserved}
    return DeviceLedger(made, **more)


def grant(uuid: str, mib: int, owner: str = "-", *, child: bool = True) -> Grant:
    context = GateContext(GpuConfig(), worker="w", queue="q", in_children=child, changed=asyncio.Event())
    made = Grant(owner, context, device(uuid, 0), 0, Demand(mib))
    made.child = ChildUse(owner, (lambda: None) if child else None, kept=mib)
    made.attempt_ended()
    return made


def planned(waiting: list[Waiting], *devices: GpuSample, **given: Any) -> Plan:
    defaults: dict[str, Any] = {
        "grants": [],
        "queue": "q",
        "slots": 10,
        "limit": 0,
        "starts_children": False,
        "starvation_after": 60,
        "held": "",
    }
    ledgers = {one.uuid: DeviceLedger() for one in devices} | given.pop("ledgers", {})
    grants = given.pop("grants", [])
    return plan(waiting, devices, ledgers, grants, **{**{k: v for k, v in defaults.items() if k != "grants"}, **given})


def places(made: Plan) -> list[tuple[str, str]]:
    return [(start.waiting.name, start.sample.uuid) for start in made.starts]


def test_the_oldest_that_fits_goes_first_and_a_small_one_may_pass() -> None:
    made = planned([waits(2, rank=3), waits(14, rank=1), waits(4, rank=2)], device("a", 8))
    assert places(made) == [("4:0", "a"), ("2:0", "a")]


def test_each_demand_holds_on_one_device() -> None:
    """Two devices with 8 free have no room for 10; nor does one with memory and another without load."""
    assert places(planned([waits(10)], device("a", 8), device("b", 8))) == []
    busy, small = device("a", 16, utilization=80.0), device("b", 4, utilization=0.0)
    assert places(planned([waits(8, ceiling=50)], busy, small)) == []
    assert places(planned([waits(8, ceiling=81)], busy, small)) == [("8:81", "a")]
    assert places(planned([waits(8, ceiling=50)], device("c", 16, utilization=None))) == [("8:50", "c")]


def test_the_least_is_left_over() -> None:
    assert places(planned([waits(4)], device("a", 16), device("b", 5), device("c", 8))) == [("4:0", "b")]


def test_what_is_reserved_and_not_seen_yet_is_no_room() -> None:
    """6 are reserved and 2 are seen: 4 more are coming."""
    sample = device("a", 10, used={"x": 2})
    assert room_of(ledger(("x", 6, "running")), sample) == 6
    assert places(planned([waits(7)], sample, ledgers={"a": ledger(("x", 6, "running"))})) == []
    assert places(planned([waits(6)], sample, ledgers={"a": ledger(("x", 6, "running"))})) == [("6:0", "a")]


def test_a_device_where_it_failed_comes_last_and_is_better_than_none() -> None:
    assert places(planned([waits(4, avoid="a")], device("a", 5), device("b", 16))) == [("4:0", "b")]
    assert places(planned([waits(4, avoid="a")], device("a", 5))) == [("4:0", "a")]


def test_a_warm_child_comes_first_and_its_memory_is_free_for_its_task() -> None:
    warm = grant("a", 6, "x")
    sample = device("a", 4, used={"x": 6})
    ledgers = {"a": ledger(("x", 6, "idle"))}
    made = planned([waits(9)], sample, device("b", 16), ledgers=ledgers, grants=[warm])
    assert made.starts[0].grant is warm
    made = planned([waits(11)], sample, device("b", 16), ledgers=ledgers, grants=[warm])
    assert places(made) == [("11:0", "b")]


def test_an_idle_child_goes_when_its_room_is_needed() -> None:
    """As few as may be; and what is freed is kept for who needs it."""
    small, large = grant("a", 3, "x"), grant("a", 5, "y")
    sample = device("a", 8, used={"x": 3, "y": 5})
    ledgers = {"a": ledger(("x", 3, "idle"), ("y", 5, "idle"))}
    # A task of 12 fits into the larger child's memory and what is free beside it.
    made = planned([waits(12)], sample, ledgers=ledgers, grants=[small, large])
    assert made.starts[0].grant is large and not made.evictions
    # One of 14 fits into either, when the other has gone.
    made = planned([waits(14, rank=1), waits(2, rank=2)], sample, ledgers=ledgers, grants=[small, large])
    assert made.starts == [] and made.evictions == [small]
    assert planned([waits(17)], sample, ledgers=ledgers, grants=[small, large]).evictions == []


def test_another_workers_idle_child_is_asked_to_go() -> None:
    sample = device("a", 4, used={"x": 12})
    made = planned([waits(14)], sample, ledgers={"a": ledger(("x", 12, "idle"))})
    assert made.needs == [("a", 14)] and not made.starts


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"quarantine": "CUDA error", "quarantine_for": 5.0}, False),
        ({"quarantine": "CUDA error", "quarantine_for": 0.0}, True),
        ({"held_for": "other 14:0"}, False),
        ({"held_for": "q 2:0"}, True),
    ],
)
def test_a_device_that_is_shut_or_held_is_for_nobody_else(more: dict[str, Any], expected: bool) -> None:
    made = planned([waits(2)], device("a", 16), ledgers={"a": ledger(**more)})
    assert bool(made.starts) == expected


def test_as_many_tasks_as_may_be_at_once() -> None:
    ledgers = {"a": ledger(("x", 1, "running"), ("y", 1, "idle"))}
    assert places(planned([waits(1, 1), waits(2, 2)], device("a", 14), ledgers=ledgers, limit=2)) == [("1:0", "a")]


def test_one_child_starts_at_a_time() -> None:
    made = planned([waits(1, 1), waits(2, 2)], device("a", 16), starts_children=True)
    assert places(made) == [("1:0", "a")]
    starting = {"x": Reservation("x", 4, "running", "x", "w", "q", "t", starting=True)}
    for used, expected in ((0, 0), (1, 0), (2, 1)):
        sample = device("a", 16 - used, used={"x": used})
        made = planned([waits(1)], sample, ledgers={"a": DeviceLedger(starting)}, starts_children=True)
        assert len(made.starts) == expected, used


def test_one_that_has_starved_gets_the_device_with_the_least_in_its_way() -> None:
    """One device of the queue, and only one that could ever fit it; younger ones do not start there."""
    a, b, c = device("a", 4, used={"x": 12}), device("b", 8, used={"y": 8}), device("c", 8)
    ledgers = {"a": ledger(("x", 12, "running")), "b": ledger(("y", 8, "running")), "c": ledger()}
    waiting = [waits(14, rank=1, age=61), waits(6, rank=2)]
    made = planned(waiting, a, b, c, ledgers=ledgers)
    assert made.hold is not None and made.hold.sample.uuid == "b"
    assert places(made) == [("6:0", "c")], "other processes use c, which never has 14"
    assert planned([waits(14, age=59)], a, b, ledgers=ledgers).hold is None
    again = planned(waiting, a, b, ledgers=ledgers, held="14:0 a w")
    assert again.hold is not None and again.hold.sample.uuid == "a", "the hold stays where it is"
    assert planned(waiting, a, b, ledgers=ledgers, held="12:0 b w").hold is None, "one at a time"


devices = st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), min_size=1, max_size=3)


@given(devices=devices, demands=st.lists(st.integers(1, 16), max_size=5, unique=True), children=st.booleans())
def test_nothing_starts_where_it_does_not_fit(
    devices: list[tuple[int, int]], demands: list[int], children: bool
) -> None:
    """For any free memory and reservations: what starts on a device has room there together."""
    samples = [device(f"d{n}", free) for n, (free, _) in enumerate(devices)]
    ledgers = {f"d{n}": ledger((f"r{n}", reserved, "running")) for n, (_, reserved) in enumerate(devices)}
    waiting = [waits(memory, rank=n) for n, memory in enumerate(demands)]
    made = planned(waiting, *samples, ledgers=ledgers, starts_children=children)
    for sample in samples:
        taken = sum(start.waiting.demand.memory for start in made.starts if start.sample is sample)
        assert taken == 0 or taken <= room_of(ledgers[sample.uuid], sample)
    assert len({start.waiting.name for start in made.starts}) == len(made.starts)


def test_the_slots_are_the_limit() -> None:
    made = planned([waits(n, rank=n) for n in range(1, 5)], device("a", 16), slots=2)
    assert places(made) == [("1:0", "a"), ("2:0", "a")]


def test_grants_are_not_compared_by_value() -> None:
    assert grant("a", 1) != grant("a", 1)


class TestOneProcessAtATime:
    """A device in the compute mode EXCLUSIVE_PROCESS, whatever memory is free."""

    free = device("a", 16, exclusive=True)

    def test_a_child_has_it_alone(self) -> None:
        running = {"a": ledger(("x", 4, "running"))}
        assert places(planned([waits(4)], self.free, starts_children=True)) == [("4:0", "a")]
        assert places(planned([waits(4)], self.free, starts_children=True, ledgers=running)) == []
        assert len(planned([waits(4, rank=1), waits(2, rank=2)], self.free, starts_children=True).starts) == 1

    def test_a_warm_child_takes_the_next_task_or_goes(self) -> None:
        warm, idle = grant("a", 4, "x"), {"a": ledger(("x", 4, "idle"))}
        sample = attrs.evolve(self.free, free=12, used={"x": 4})
        made = planned([waits(8)], sample, starts_children=True, grants=[warm], ledgers=idle)
        assert made.starts[0].grant is warm
        full = attrs.evolve(sample, free=2)
        made = planned([waits(6)], full, starts_children=True, grants=[grant("a", 2, "x")], ledgers=idle)
        assert made.starts[0].grant is not None

    def test_a_warm_child_of_another_worker_is_asked_to_go(self) -> None:
        idle = {"a": ledger(("x", 4, "idle"))}
        made = planned([waits(4)], self.free, starts_children=True, ledgers=idle)
        assert (made.starts, made.needs) == ([], [("a", 16)])

    def test_tasks_in_one_process_share_it(self) -> None:
        mine = grant("a", 4, "mine", child=False)
        mine.state = "running"
        ours = {"a": ledger(("mine", 4, "running"))}
        assert places(planned([waits(4)], self.free, grants=[mine], ledgers=ours)) == [("4:0", "a")]
        others = {"a": ledger(("mine", 4, "running"), ("x", 4, "running"))}
        assert places(planned([waits(4)], self.free, grants=[mine], ledgers=others)) == []
