"""What is made, and checked, at the door."""

import time

import pytest

from maas_backoff.domain.newtask import new_task_id, new_task_ids


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
