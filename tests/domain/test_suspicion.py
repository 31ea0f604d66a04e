"""The tasks that are blamed for a lost worker, and those that come back together."""

import itertools
from collections import Counter
from collections.abc import Sequence

from maas_backoff.config import TaskConfig
from maas_backoff.domain.backoff import Backoff
from maas_backoff.domain.outcome import LeaseExpired
from maas_backoff.domain.settlement import Counts, decide
from maas_backoff.domain.suspicion import Losses, Lost, judge

FRESH = Counts()


def lost(number: int, worker: str = "w", counts: Counts = FRESH, first: int = 1) -> list[Lost]:
    return [Lost(worker, token, counts) for token in range(first, first + number)]


def suspect(cohort: str) -> Counts:
    return Counts(lost=1, suspect=True, blame=0.1, cohort=cohort)


def cohorts(losses: list[LeaseExpired]) -> list[int]:
    return sorted(Counter(loss.cohort for loss in losses).values())


def test_it_makes_halves_and_says_how_large_they_are() -> None:
    for number in range(1, 8):
        losses = judge(lost(number), {"w": Losses(number, number)})
        assert {loss.together for loss in losses} == {number}
        assert cohorts(losses) == ([number // 2, number - number // 2] if number > 1 else [1])
        assert all(loss.size == sum(other.cohort == loss.cohort for other in losses) for loss in losses)


def test_a_worker_is_judged_by_itself_and_so_is_a_cohort() -> None:
    numbers = {"v": Losses(2, 2), "w": Losses(4, 4, 2, 2)}
    of_v, fresh = lost(2, "v"), lost(4, first=10)
    suspects = [*lost(1, counts=suspect("x"), first=20), *lost(1, counts=suspect("y"), first=21)]
    losses = judge([*of_v, *fresh, *suspects], numbers)
    assert [loss.together for loss in losses] == [2] * 2 + [6] * 4 + [2] * 2
    assert len({loss.cohort for loss in losses}) == 6
    assert cohorts(losses) == [1, 1, 1, 1, 2, 2]


def test_the_order_and_the_steps_of_a_listing_change_nothing() -> None:
    """Two reapers list the same tasks; later steps go on where the first one ended."""
    everything = lost(7)
    at_once = judge(everything, {"w": Losses(7, 7)})
    assert judge(everything[::-1], {"w": Losses(7, 7)}) == at_once[::-1]
    in_steps = judge(everything[:4], {"w": Losses(7, 7)}) + judge(everything[4:], {"w": Losses(7, 3)})
    assert in_steps == at_once


def test_a_half_never_has_the_name_of_what_it_was_a_half_of() -> None:
    """Else what is to be parted would come together again."""
    names: set[str] = set()
    counts = FRESH
    for _ in range(10):
        (loss, _) = judge(lost(2, counts=counts), {"w": Losses(2, 2, 2, 2)})
        assert loss.cohort not in names
        names.add(loss.cohort)
        counts = suspect(loss.cohort)


def test_what_is_known_of_no_worker_is_a_loss_of_its_own() -> None:
    assert [loss.together for loss in judge(lost(1), {})] == [1]


def test_a_suspect_shares_the_blame_with_fresh_tasks_that_were_lost_before() -> None:
    """One of these may have ended both workers."""
    (loss,) = judge(
        lost(1, counts=suspect("x")), {"w": Losses(fresh=9, fresh_left=9, suspects=1, suspects_left=1, again=3)}
    )
    assert loss.together == 4


def test_a_half_of_a_failed_batch_is_judged_as_a_fresh_task() -> None:
    """It has ended no worker: a suspect that was alone beside it is surely to blame."""
    half = Counts(suspect=True, cohort="~a", cohort_size=16)
    numbers = {"w": Losses(fresh=16, fresh_left=16, suspects=1, suspects_left=1)}
    *halves, poison = judge([*lost(16, counts=half), *lost(1, counts=suspect("x"), first=20)], numbers)
    assert (poison.together, poison.size) == (1, 1)
    assert {(one.together, one.size) for one in halves} == {(17, 8)} and cohorts(halves) == [8, 8]


def test_in_no_order_do_two_poison_tasks_fail_an_innocent_one() -> None:
    """Each death has the innocent task in the worker, and one poison task or both, as far as they may run together."""
    policy, backoff, tokens = TaskConfig().policy, Backoff("fixed", interval=1), itertools.count()

    def together(tasks: Sequence[Counts]) -> bool:
        return len({counts.cohort for counts in tasks if counts.suspect}) <= 1

    def die(tasks: Sequence[Counts]) -> list[Counts | None]:
        """Return the counts after a loss of these tasks; None for a task that has failed."""
        suspects, again = sum(one.suspect for one in tasks), sum(one.lost > 0 and not one.suspect for one in tasks)
        numbers = Losses(len(tasks) - suspects, len(tasks) - suspects, suspects, suspects, again)
        losses = judge([Lost("w", next(tokens), counts) for counts in tasks], {"w": numbers})
        ends = [decide(loss, "", counts, policy, backoff) for loss, counts in zip(losses, tasks, strict=True)]
        return [end.counts if end is not None and end.status == "pending" else None for end in ends]

    def most_blame(innocent: Counts, poison: Sequence[Counts]) -> float:
        worst = innocent.blame
        for size in (1, 2):
            for group in itertools.combinations(range(len(poison)), size):
                if together([innocent, *(poison[n] for n in group)]):
                    after, *others = die([innocent, *(poison[n] for n in group)])
                    assert after is not None, (innocent, poison, group)
                    left = [*others, *(one for n, one in enumerate(poison) if n not in group)]
                    worst = max(worst, most_blame(after, [one for one in left if one is not None]))
        return worst

    assert policy.max_lost == 3
    assert most_blame(FRESH, (FRESH, FRESH)) < 2.6
