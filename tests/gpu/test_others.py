"""Memory that only another container shows in use counts once, and never as free and used at once."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maas_backoff.gate import others, owner
from maas_backoff.gate.others import WATCHED_FOR, Others, with_reported
from maas_backoff.gate.owner import owner_of
from maas_backoff.gate.placement import room_of, used_by_other_processes
from maas_backoff.gate.sample import GpuSample
from maas_backoff.store.ledger import SEEN_FOR, DeviceLedger, Reservation

TOTAL = 16
THERE = "container:7"
HERE = owner_of(7)


def sample(at: float, free: int, **used: int) -> GpuSample:
    return GpuSample("GPU-a", 0, "", TOTAL, free, at, used)


def ledger(mib: int, seen: int, who: str = THERE) -> DeviceLedger:
    return DeviceLedger({who: Reservation(who, mib, "running", who, "w", "q", "t", seen=seen)})


def watched(*known: tuple[float, int, DeviceLedger]) -> int:
    """Return the room after samples at moments, each with what was free, and the ledger."""
    believer = Others()
    room = 0
    for at, free, told in known:
        room = room_of(told, believer.believed(sample(at, free), told))
    return room


def test_a_child_in_another_container_counts_once_after_a_while() -> None:
    told = ledger(10, seen=10)
    assert watched((0, 6, told)) == -4
    assert watched((0, 6, told), (WATCHED_FOR - 0.1, 6, told)) == -4
    assert watched((0, 6, told), (2, 6, told), (WATCHED_FOR, 6, told)) == 6


def test_a_child_of_this_container_is_what_the_reading_shows() -> None:
    """Also where it shows nothing: the process is not there, whatever was told."""
    told = ledger(10, seen=10, who=HERE)
    assert with_reported(sample(0, 6), told) == sample(0, 6)
    assert watched((0, 6, told), (WATCHED_FOR, 6, told)) == -4


def test_memory_that_came_back_is_not_given_away_while_it_is_told_as_used() -> None:
    """The child has died, and its worker has not told yet: it will want as much again."""
    told = ledger(10, seen=10)
    before = [(at, 6, told) for at in (0.0, 2.0, WATCHED_FOR)]
    assert watched(*before, (WATCHED_FOR + 0.5, 16, told)) == 6
    # Something else took a part of it, so that it does not show in what is free.
    assert watched(*before, (WATCHED_FOR + 0.5, 12, told)) <= 6
    assert watched(*before, (WATCHED_FOR + 0.5, 16, ledger(10, seen=0))) == 6


def test_a_child_that_the_machine_s_own_worker_sees_under_another_id_counts_once() -> None:
    """Outside of containers NVML shows all processes: there the child has two names, of which one is its owner's."""
    told, believer = ledger(10, seen=10), Others()
    for at in (0.0, 2.0, WATCHED_FOR):
        shown = believer.believed(GpuSample("GPU-a", 0, "", TOTAL, 6, at, {"machine:4711": 10}), told)
        room = room_of(told, shown)
    assert room == 6
    # The child gives its memory back, and its worker has not told yet.
    later = GpuSample("GPU-a", 0, "", TOTAL, 16, WATCHED_FOR + 0.5, {})
    assert room_of(told, believer.believed(later, told)) == 6


def test_nothing_is_believed_that_nobody_has_watched() -> None:
    """A worker looks while a task waits for a GPU: the last look may be long ago."""
    told = ledger(10, seen=10)
    assert watched((0, 6, told), (2, 6, told), (100, 16, told)) == 6
    assert watched((0, 6, told), (2, 6, told), (100, 6, told)) == -4


def test_other_programs_are_told_apart_from_children_in_other_containers() -> None:
    told = ledger(10, seen=8)
    assert used_by_other_processes(told, sample(0, 6)) == 10
    assert used_by_other_processes(told, with_reported(sample(0, 6), told)) == 2


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_two_containers_never_promise_more_than_there_is(seed: int) -> None:
    """Children take and give back, die and come again; workers look and tell once a second, each in its own time."""
    _run(random.Random(seed))


def test_the_simulation_of_two_containers_finds_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """If what comes back were believed at once, more would be promised than there is."""
    monkeypatch.setattr(others, "WATCHED_FOR", 0.0)
    with pytest.raises(AssertionError):
        for seed in range(1000):
            _run(random.Random(seed))


def _run(choice: random.Random) -> None:
    now, foreign = 0.0, choice.randint(0, 6)
    one, other = (_Worker(f"c{number}", choice) for number in range(2))
    while now < 40:
        now = round(now + 0.125, 3)
        one.change()
        other.change()
        if choice.random() < 0.01:
            foreign = choice.randint(0, foreign)
        free = TOTAL - foreign - one.used - other.used
        one.live(now, free, other)
        other.live(now, free, one)
        assert max(one.mib, one.used) + max(other.mib, other.used) + foreign <= TOTAL


class _Worker:
    """One that has all that it is promised in one reservation, and asks for more whenever there is room."""

    def __init__(self, container: str, choice: random.Random) -> None:
        self.owner = f"{container}:1"
        self.choice = choice
        self.mib = self.used = 0
        self.told = (-100.0, 0)
        self.others = Others()
        self.sample = GpuSample("", 0, "", TOTAL, 0, 0)
        self.next_reading, self.next_telling = choice.uniform(0, 1), 100.0

    def change(self) -> None:
        """Its child takes what it was promised, a part of it, or gives all back."""
        if self.choice.random() < 0.05:
            self.used = self.choice.choice([0, self.mib, self.choice.randint(0, self.mib)])

    def reservation(self, now: float) -> Reservation:
        seen = self.told[1] if now - self.told[0] < SEEN_FOR else 0
        return Reservation(self.owner, self.mib, "running", self.owner, "w", "q", "t", seen=seen)

    def live(self, now: float, free: int, other: "_Worker") -> None:
        """Read the device about once a second, tell a moment later, and look whether more can be had in between."""
        if now >= self.next_reading:
            self.sample = GpuSample("", 0, "", TOTAL, free, now, {self.owner: self.used})
            self.next_reading = now + self.choice.uniform(0.9, 1.3)
            self.next_telling = now + self.choice.uniform(0, 0.3)
        if now >= self.next_telling:
            self.told = (now, self.sample.used[self.owner])
            self.next_telling = math.inf
        if self.sample.used and self.choice.random() < 0.4:
            self.look(now, other)

    def look(self, now: float, other: "_Worker") -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, "_NAMESPACE", self.owner.partition(":")[0])
            ledger = DeviceLedger({one.owner: one.reservation(now) for one in (self, other)})
            shown = self.others.believed(self.sample, ledger)
        room = room_of(ledger, shown)
        if room > 0 and self.choice.random() < 0.5:
            self.mib += self.choice.randint(1, room)
        elif self.choice.random() < 0.1:
            self.mib = max(self.used, self.choice.randint(0, self.mib))
