"""Values are made, and checked, at the door."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest

from maas_backoff import ConfigError, InvalidValueError
from maas_backoff.domain.lane import checked_limits, in_limits
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


_LIMITS = "limits: expected a mapping of at most 4 names to units"
_NAMES = "limits: expected names of 1 to 100 of A-Z a-z 0-9 _ . : @ / + -"


@pytest.mark.parametrize(
    ("limits", "error"),
    [
        (["up"], f"{_LIMITS}, got ['up']"),
        (["openai"], f"{_LIMITS}, got ['openai']"),
        (["up", "io", "db", "fs", "ab"], _LIMITS),
        ("up", f"{_LIMITS}, got 'up'"),
        (b"up", _LIMITS),
        ({"up", "io"}, _LIMITS),
        (3, f"{_LIMITS}, got 3"),
        (None, f"{_LIMITS}, got None"),
        ([("a", 1, 2)], _LIMITS),
        ([("a", 1), ("a", 2)], f"{_LIMITS}, each name once, got ['a', 'a']"),
        ([([], 1)], f"{_NAMES}, got []"),
        ({"a b": 1}, f"{_NAMES}, got 'a b'"),
        ({"a": "1"}, "limits['a']: expected a number from 0.001 to 1,000,000,000, got '1'"),
    ],
)
def test_limits_are_a_mapping_or_pairs(limits: Any, error: str) -> None:
    with pytest.raises(InvalidValueError) as raised:
        checked_limits(limits)
    assert str(raised.value).startswith(error)
    if not isinstance(limits, str):
        with pytest.raises(ConfigError) as configured:
            in_limits(limits)
        assert str(configured.value).startswith(f"task.{error}")


@pytest.mark.parametrize("limits", [{"a": 1, "b": 2.5}, [("a", 1), ["b", 2.5]], {"a": 1, "b": 2.5}.items()])
def test_limits_in_each_form_are_the_same(limits: Any) -> None:
    assert checked_limits(limits) == {"a": 1, "b": 2.5}
    assert in_limits(limits) == (("a", 1), ("b", 2.5))


def test_a_text_of_the_environment_names_each_limit_once() -> None:
    assert in_limits("a=1, b=2.5, c") == (("a", 1), ("b", 2.5), ("c", 1))
    with pytest.raises(ConfigError, match=r"task\.limits: expected .*, each name once, got"):
        in_limits("a=1,a=2")
