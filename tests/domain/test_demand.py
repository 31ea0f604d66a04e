"""A demand on a GPU in words, and under its name."""

import pytest

from maas_backoff.domain.demand import Demand


@pytest.mark.parametrize(
    ("demand", "words"),
    [
        (Demand(1536), "1.5 GiB free"),
        (Demand(0, 50), "utilisation below 50 %"),
        (Demand(1024, 12.5), "1 GiB free and utilisation below 12.5 %"),
    ],
)
def test_a_demand_is_said_in_words_and_found_by_its_name(demand: Demand, words: str) -> None:
    assert str(demand) == words
    assert Demand.parse(demand.name) == demand
