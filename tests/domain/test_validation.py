"""Values are made, and checked, at the door."""

import time
from datetime import UTC, datetime

import pytest

from maas_backoff.domain.validation import new_task_id, new_task_ids


@pytest.mark.parametrize("number", [0, 1, 1000])
def test_ids_that_are_made_together_are_as_good_as_those_made_alone(number: int) -> None:
    """16 characters, no two the same, and in the order of the ms in which they were made."""
    before = new_task_id()
    time.sleep(0.002)
    ids = new_task_ids(number)
    time.sleep(0.002)
    after = new_task_id()
    assert len(set(ids)) == len(ids) == number
    assert {len(one) for one in (before, *ids, after)} == {16}
    assert all(before < one < after for one in ids)


@pytest.mark.parametrize("year", [1930, 1970, 2108, 2110, 2120, 2500, 9999])
def test_ids_are_made_at_any_time(year: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a battery, a test that replaces the clock: 42 bits of ms last until 2109, and begin anew."""
    monkeypatch.setattr(time, "time_ns", lambda: int(datetime(year, 1, 1, tzinfo=UTC).timestamp() * 10**9))
    ids = [new_task_id(), *new_task_ids(100)]
    assert {len(one) for one in ids} == {16} and len(set(ids)) == 101
    assert len({one[:7] for one in ids}) == 1
