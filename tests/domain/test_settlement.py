"""`decide` as a table: outcome and what is left of the task's chances, to the settlement. This is its specification."""

from typing import Any

import attrs
import pytest

from maas_backoff.config import TaskConfig
from maas_backoff.domain.backoff import Backoff
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.outcome import (
    Cancelled,
    CancelReason,
    Failed,
    FailedOnGpu,
    LeaseExpired,
    Outcome,
    Snoozed,
    Succeeded,
    Unstarted,
    crashed,
    timed_out,
)
from maas_backoff.domain.settlement import Counts, Settlement, decide
from maas_backoff.domain.task import TaskError

POLICY = TaskConfig(max_retry_count=2, max_lost=2, max_snoozes=2, result_ttl=11, failed_ttl=22).policy
BACKOFF = Backoff("linear", interval=10)
ERROR = TaskError("ValueError", "boom")
FRESH, TIRED = Counts(), Counts(retry=2, lost=1, snooze=2)
LOST_ONCE = TaskError("lease_lost", "its worker stopped renewing the lease; lost 1 of 2 times")
LOST_TWICE = TaskError("lease_lost", "its worker stopped renewing the lease; lost 2 of 2 times")
LOST_FIRST_WITH_OTHERS = TaskError(
    "lease_lost", "its worker stopped renewing the lease; lost with 3 other tasks; that adds up to 0.25 of 2 losses"
)
LOST_WITH_OTHERS = TaskError(
    "lease_lost", "its worker stopped renewing the lease; lost with 3 other tasks; that adds up to 0.5 of 2 losses"
)
LOST_SIX_TIMES = TaskError(
    "lease_lost", "its worker stopped renewing the lease; lost with 2 other tasks; that adds up to 2 of 2 losses"
)

TABLE: list[tuple[str, Outcome, Counts, Settlement | None]] = [
    ("success", Succeeded("1"), FRESH, Settlement("completed", 11, result="1")),
    ("success on the last attempt", Succeeded("1"), TIRED, Settlement("completed", 11, result="1")),
    ("failure", Failed(ERROR, "tb"), FRESH, Settlement("pending", 11, 10, Counts(1), error=ERROR, traceback="tb")),
    ("second failure", Failed(ERROR), Counts(1, 1, 1), Settlement("pending", 11, 20, Counts(2, 1, 1), error=ERROR)),
    ("failure without a retry left", Failed(ERROR, "tb"), TIRED, Settlement("failed", 22, error=ERROR, traceback="tb")),
    ("permanent failure", Failed(ERROR, permanent=True), FRESH, Settlement("failed", 22, error=ERROR)),
    ("own delay", Failed(ERROR, retry_after=7), FRESH, Settlement("pending", 11, 7, Counts(1), error=ERROR)),
    ("own delay without a retry left", Failed(ERROR, retry_after=7), TIRED, Settlement("failed", 22, error=ERROR)),
    ("timeout", timed_out(3), FRESH, Settlement("pending", 11, 10, Counts(1), error=timed_out(3).error)),
    ("crash", crashed("x"), TIRED, Settlement("failed", 22, error=TaskError("crashed", "x"))),
    ("snooze", Snoozed(5), Counts(2, 0, 1), Settlement("pending", 11, 5, Counts(2, 0, 2))),
    (
        "a snooze too many",
        Snoozed(5),
        TIRED,
        Settlement("failed", 22, error=TaskError("snoozed_too_often", "snoozed 2 times")),
    ),
    ("cancelled by a user", Cancelled(CancelReason.USER), FRESH, Settlement("cancelled", 11)),
    ("stopped by a shutdown", Cancelled(CancelReason.SHUTDOWN), TIRED, Settlement("pending", 11)),
    ("handed back unstarted", Unstarted(), TIRED, Settlement("pending", 11)),
    ("lease lost while running", Cancelled(CancelReason.LEASE_LOST), FRESH, None),
    (
        "worker died",
        LeaseExpired(),
        Counts(retry=2),
        Settlement("pending", 11, counts=Counts(2, 1), error=LOST_ONCE),
    ),
    (
        "worker died with three others for the first time",
        LeaseExpired(4, "name", 2),
        FRESH,
        Settlement("pending", 11, counts=Counts(lost=1, blame=0.25), error=LOST_FIRST_WITH_OTHERS),
    ),
    (
        "worker died again",
        LeaseExpired(),
        TIRED,
        Settlement("failed", 22, counts=Counts(2, 2, 2, suspect=True), error=LOST_TWICE),
    ),
    (
        "worker died with three others",
        LeaseExpired(4, "name", 2),
        Counts(lost=1, blame=0.25),
        Settlement(
            "pending",
            11,
            counts=Counts(lost=2, suspect=True, blame=0.5, cohort="name", cohort_size=2),
            error=LOST_WITH_OTHERS,
        ),
    ),
    (
        "a failure after a loss",
        Failed(ERROR),
        Counts(lost=1, suspect=True, blame=0.5, cohort="name", cohort_size=2),
        Settlement("pending", 11, 10, Counts(1, 1, blame=0.5), error=ERROR),
    ),
    (
        "worker died of thirds",
        LeaseExpired(3, "name", 2),
        Counts(lost=5, blame=1.6667),
        Settlement(
            "failed",
            22,
            counts=Counts(lost=6, suspect=True, blame=2.0, cohort="name", cohort_size=2),
            error=LOST_SIX_TIMES,
        ),
    ),
]


JITTER = Backoff("linear", interval=10, jitter=0.5)
DEMAND = Demand(4096)

BAD = Failed(TaskError("BadRequestError", "no"), names=("openai.BadRequestError", "openai.OpenAIError"))
OOM = FailedOnGpu(Failed(ERROR, fault="out_of_memory", names=("torch.OutOfMemoryError",)), "GPU-a", DEMAND, 0, 8192)


@pytest.mark.parametrize(
    ("options", "outcome", "counts", "status", "by"),
    [
        ({"give_up_on": ["BadRequestError"]}, BAD, FRESH, "failed", "give_up_on"),
        ({"give_up_on": ["BadRequestError"]}, BAD, TIRED, "failed", "give_up_on"),
        ({"give_up_on": ["TimeoutError"]}, BAD, FRESH, "pending", ""),
        ({"give_up_on": ["TimeoutError"]}, BAD, TIRED, "failed", ""),
        ({"retry_on": ["OpenAIError"]}, BAD, FRESH, "pending", ""),
        ({"retry_on": ["OpenAIError"]}, BAD, TIRED, "failed", ""),
        ({"retry_on": ["TimeoutError"]}, BAD, FRESH, "failed", "retry_on"),
        ({"retry_on": ["OpenAIError"], "give_up_on": ["BadRequestError"]}, BAD, FRESH, "failed", "give_up_on"),
        ({"retry_on": ["TimeoutError"]}, attrs.evolve(BAD, permanent=True), FRESH, "failed", ""),
        ({"retry_on": ["TimeoutError"]}, attrs.evolve(BAD, requested=True), FRESH, "pending", ""),
        ({"retry_on": ["timeout"]}, timed_out(3), FRESH, "pending", ""),
        ({"retry_on": ["timeout"]}, crashed("x"), FRESH, "failed", "retry_on"),
        ({"give_up_on": [400]}, Failed(TaskError("failed", "no", 400)), FRESH, "failed", "give_up_on"),
        ({"retry_on": [503]}, Failed(TaskError("failed", "no", 400)), FRESH, "failed", "retry_on"),
        ({"give_up_on": ["OutOfMemoryError"]}, OOM, FRESH, "failed", "give_up_on"),
        ({"retry_on": ["TimeoutError"]}, OOM, FRESH, "pending", ""),
        ({"retry_on": ["TimeoutError"]}, OOM, Counts(oom=3), "failed", "retry_on"),
        ({"retry_on": ["TimeoutError"]}, LeaseExpired(), FRESH, "pending", ""),
        ({"retry_on": ["TimeoutError"]}, Snoozed(5), FRESH, "pending", ""),
    ],
)
def test_the_error_decides_whether_a_task_is_retried(
    options: dict[str, Any], outcome: Outcome, counts: Counts, status: str, by: str
) -> None:
    policy = TaskConfig(max_retry_count=2, **options).policy
    settlement = decide(outcome, "id", counts, policy, BACKOFF)
    assert settlement is not None and (settlement.status, settlement.ended_by) == (status, by)


@pytest.mark.parametrize(
    "outcome",
    [
        Failed(ERROR, retry_after=10),
        Snoozed(10),
        FailedOnGpu(Failed(ERROR, retry_after=10, fault="out_of_memory"), "GPU-a", DEMAND, 0, 8192),
        FailedOnGpu(Failed(ERROR, retry_after=10, fault="gpu"), "GPU-a", DEMAND, 0, 8192),
    ],
)
def test_a_delay_that_a_handler_asks_for_is_spread(outcome: Outcome) -> None:
    """By the task's id and by how often it came back: the same each time it is asked for."""

    def delay(task_id: str, counts: Counts) -> float:
        settlement = decide(outcome, task_id, counts, POLICY, JITTER)
        assert settlement is not None and settlement.status == "pending"
        return settlement.delay

    delays = [delay(f"{n}", FRESH) for n in range(100)]
    assert all(10 <= one <= 15 for one in delays) and len(set(delays)) == 100
    assert delay("x", FRESH) == delay("x", FRESH) != delay("x", Counts(retry=1, snooze=1, oom=1))


def test_the_exception_goes_with_the_last_failure_only() -> None:
    error = ValueError("boom")
    failed = Failed(ERROR, "tb", exception=error)
    last, earlier = decide(failed, "id", TIRED, POLICY, BACKOFF), decide(failed, "id", FRESH, POLICY, BACKOFF)
    assert last is not None and earlier is not None
    assert (last.exception, earlier.exception) == (error, None)


@pytest.mark.parametrize(("outcome", "counts", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_each_outcome_leads_to_its_settlement(outcome: Outcome, counts: Counts, expected: Settlement | None) -> None:
    assert decide(outcome, "id", counts, POLICY, BACKOFF) == expected


@pytest.mark.parametrize(
    ("together", "told"),
    [
        (1, "lost alone; that adds up to 1.25 of 2 losses"),
        (2, "lost with 1 other task; that adds up to 0.75 of 2 losses"),
        (4, "lost with 3 other tasks; that adds up to 0.5 of 2 losses"),
    ],
)
def test_the_error_of_a_loss_says_in_what_company(together: int, told: str) -> None:
    settlement = decide(LeaseExpired(together), "x", Counts(lost=1, blame=0.25), POLICY, BACKOFF)
    assert settlement is not None and settlement.error is not None
    assert settlement.error.message == f"its worker stopped renewing the lease; {told}"
