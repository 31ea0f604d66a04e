"""Measurements are counted in buckets, and come back as quantiles and advice."""

import pytest

from maas_backoff import BatchSizes
from maas_backoff.domain.history import ENOUGH, Activity, gpu_memory_hint
from maas_backoff.domain.tally import Tally


def counted(*attempts: tuple[int, int], times: int = 1) -> Activity:
    """Return what the server keeps of attempts, each by the MiB that it used and asked for."""
    tally = Tally()
    for peak, need in attempts * times:
        tally.count_gpu_memory(peak, need)
    numbers: dict[str, int] = {}
    for line in tally.take(0).splitlines():
        name, number = line.split()
        numbers[name] = numbers.get(name, 0) + int(number)
    return Activity.of(numbers)


@pytest.mark.parametrize("mib", [64, 500, 1024, 10_000, 81_920, 143_771])
def test_a_quantile_of_memory_is_within_a_fifth(mib: int) -> None:
    activity = counted((mib, 2 * mib), times=100)
    for sizes, expected in ((activity.gpu_peaks, mib), (activity.gpu_needs, 2 * mib)):
        assert sizes.count == 100
        for share in (0.5, 0.99):
            found = sizes.quantile(share)
            assert found is not None
            assert 0.8 * expected <= found * 1024 <= 1.2 * expected


def test_more_than_the_last_bucket_holds_is_in_the_last_bucket() -> None:
    activity = counted((2**40, 2**40))
    assert activity.gpu_peaks.count == activity.gpu_needs.count == 1


def test_a_batch_has_at_least_one_task() -> None:
    alone = BatchSizes((6, *[0] * 11), 6)
    assert [alone.quantile(share) for share in (0.01, 0.5, 0.99)] == [1, 1, 1]
    mixed = BatchSizes((2, 0, 2, *[0] * 9), 10)
    assert [mixed.quantile(share) for share in (0.5, 0.75, 1)] == [1, 3, 4]


def test_memory_that_was_not_counted_has_no_quantile() -> None:
    assert Activity().gpu_peaks.quantile(0.5) is None
    assert gpu_memory_hint(Activity()) == ""


def test_batches_are_counted_by_their_size() -> None:
    tally = Tally()
    for size in (1, 2, 3, 17, 32, 1000):
        tally.count_batch(size, 20)
    taken = tally.take(10)
    tally.put_back(taken)
    assert set(tally.take(20).splitlines()) == set(taken.splitlines())
    activity = Activity.of({name: int(number) for name, number in (line.split() for line in taken.splitlines())})
    assert activity.batch_sizes.counts == (1, 1, 1, 0, 0, 2, 0, 0, 0, 0, 1, 0)
    assert activity.batch_sizes.total == 1055
    assert activity.batch_waits.quantile(1) == 0.032 and activity.waits.count == 0


def test_what_was_taken_and_put_back_is_the_same() -> None:
    tally = Tally()
    tally.count_gpu_memory(4096, 8192)
    tally.runs[3] += 1
    taken = tally.take(0)
    assert tally.take(0) == ""
    tally.put_back(taken)
    assert tally.take(1) == taken


@pytest.mark.parametrize(
    ("used", "asked", "advice"),
    [
        (9_000, 10_240, ""),
        (7_000, 10_240, ""),
        (4_096, 10_240, "may be lower"),
        (11_000, 10_240, ""),
        (16_384, 10_240, "raise min_gpu_memory_gb"),
    ],
)
def test_advice_is_given_where_tasks_use_much_less_or_more_than_they_ask_for(
    used: int, asked: int, advice: str
) -> None:
    assert advice in (found := gpu_memory_hint(counted((used, asked), times=ENOUGH)))
    assert bool(found) == bool(advice)


def test_few_attempts_are_not_enough_for_advice() -> None:
    assert gpu_memory_hint(counted((1, 10_240), times=ENOUGH - 1)) == ""


def test_attempts_that_ask_for_different_sizes_are_compared_with_all_of_them() -> None:
    """Half of them asks for little and uses it: the largest, which uses what it asks for, needs no advice."""
    assert gpu_memory_hint(counted((900, 1024), (18_000, 20_480), times=ENOUGH)) == ""
