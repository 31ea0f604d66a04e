"""The counts of a task are what its settlements have written, one after the other."""

import pytest

from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.status import TaskStatus
from maas_backoff.store.codec import counts_of
from maas_backoff.store.settled import settlement_fields

HALF = Counts(suspect=True, cohort="~half", cohort_size=16)
COHORT = Counts(lost=2, suspect=True, blame=0.5, cohort="lost", cohort_size=2)


@pytest.mark.parametrize(
    "steps",
    [
        [HALF],
        [Counts(lost=1)],
        [Counts(lost=1, blame=0.25), COHORT, COHORT.cleared(retry=1)],
        # A task of a failed batch is lost as the only one of its worker: all of the loss counts.
        [HALF, HALF.cleared(retry=1), Counts(retry=1, lost=1)],
        [Counts(lost=1), Counts(lost=1, suspect=True, cohort="~half", cohort_size=4), Counts(retry=1, lost=1)],
        [Counts(lost=1, blame=0.5), Counts(), HALF, Counts(retry=1), Counts(retry=1, lost=1)],
    ],
)
def test_each_settlement_is_read_as_it_was_written(steps: list[Counts]) -> None:
    stored, before = dict[str, str](), Counts()
    for counts in steps:
        fields = settlement_fields(Settlement(TaskStatus.PENDING, 60, counts=counts), before, None)
        stored |= zip(fields[::2], fields[1::2], strict=True)
        before = counts_of(stored["k"].encode(), stored.get("c", "").encode())
        assert before == counts
