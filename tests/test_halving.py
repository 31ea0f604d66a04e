"""Lost tasks come back in halves, in virtual time: no innocent task fails, and a poison task is found."""

import pytest
from halving import simulate


@pytest.mark.parametrize("fresh", [0, 5])
@pytest.mark.parametrize("slots", [10, 100])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("poison", [0, 1, 3])
def test_poison_fails_as_lost_and_no_innocent_task_does(poison: int, workers: int, slots: int, fresh: int) -> None:
    """Also where workers have fewer slots than were lost, and where new tasks run beside the suspects."""
    got = simulate(poison, workers, slots=slots, fresh=fresh)
    assert (got.failed_innocents, got.failed_poison) == (0, poison)
    # The first two, then seven halvings of 100 and two losses alone. Tasks that come in share the blame of some.
    assert got.deaths <= 2 + 12 * poison


@pytest.mark.parametrize("workers", [1, 4])
def test_without_poison_all_comes_back_at_once(workers: int) -> None:
    """A lease, and until somebody looks: 34 s."""
    assert simulate(0, workers).seconds == pytest.approx(34 + 10, abs=1)
