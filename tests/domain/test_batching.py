"""Batches: their options, their halves, the size that fits, and the wait that pays."""

import random

import pytest

from maas_backoff.domain.batch_learning import BatchSize, Window
from maas_backoff.domain.batching import Batching, half_of
from maas_backoff.errors import InvalidValueError


def test_a_claim_is_a_text() -> None:
    assert Batching(32, 0.02).claim(16, 0.0075) == "16 7.5 -"
    assert Batching.checked(4, 1, 16_384).claim(4, 1) == "4 1000 16384"


@pytest.mark.parametrize(
    "given", [(0, 1, None), (True, 1, None), (1001, 1, None), (1, -1, None), (1, "1", None), (1, 1, 0)]
)
def test_wrong_options_are_refused(given: tuple[object, ...]) -> None:
    with pytest.raises(InvalidValueError, match="max_"):
        Batching.checked(*given)


@pytest.mark.parametrize("number", range(2, 40))
def test_halves_are_two_cohorts_with_all_tasks(number: int) -> None:
    halves = [half_of("batch", place, number) for place in range(number)]
    names = [name for name, _ in halves]
    assert len(set(names)) == 2 and set(names).isdisjoint({half_of("other", 0, number)[0]})
    for name, size in halves:
        assert names.count(name) == size <= (number + 1) // 2


def test_the_size_is_halved_until_it_fits_and_tried_again() -> None:
    size, fits = BatchSize(32), 11
    sizes = list[int]()
    for _ in range(2000):
        sizes.append(size.limit)
        size.ran_out(size.limit) if size.limit > fits else size.succeeded(size.limit)
    failed = [place for place, one in enumerate(sizes) if one > fits]
    assert sizes[:3] == [32, 16, 8] and len(failed) <= 12
    assert sum(one >= 8 for one in sizes) > 1900
    # It fits again, after a neighbour has left, say.
    for _ in range(20_000):
        size.succeeded(size.limit)
    assert size.limit == 32


def test_a_smaller_batch_says_nothing_about_a_larger_one() -> None:
    size = BatchSize(8)
    size.ran_out(8)
    for _ in range(1000):
        size.succeeded(3)
    assert size.limit == 4


def test_a_window_waits_only_while_single_calls_would_not_do() -> None:
    window = Window(Batching(32, 0.02, adaptive=True), slots=1)
    assert window.wait == 0
    now, spread = 0.0, random.Random(1)
    for _ in range(300):  # 10 tasks a second
        now += 0.1
        window.claimed(1, now)
        window.ran(1, 0.0103 + spread.uniform(0, 0.001))
    assert window.wait == 0
    for _ in range(300):  # 1,000 tasks a second
        now += 0.02
        window.claimed(20, now)
        window.ran(spread.choice((16, 20, 24)), 0.016)
    assert window.wait == 0.02
    assert Window(Batching(32, 0.02), slots=1).wait == 0.02
