"""The retries that a task has left: those of the policy, by its own backoff."""

from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from maas_backoff import TaskConfig, TaskEntity, TaskStatus
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.retries_ahead import MOST_RETRIES, RetryAhead, retries_ahead

NOW = datetime(2026, 3, 1, tzinfo=UTC)
BEFORE = NOW - timedelta(seconds=1)


def policy(**options: Any) -> Policy:
    return attrs.evolve(TaskConfig(backoff_interval=10, max_retry_count=3).policy, **options)


def pending(**fields: Any) -> TaskEntity:
    return TaskEntity("x", "q", {}, next_execute_time=NOW, **fields)


def test_the_times_are_sums_of_the_delays_after_the_next_attempt() -> None:
    first, second, third = (NOW + timedelta(seconds=seconds) for seconds in (10, 30, 70))
    expected = [RetryAhead(1, 10, 10, first, first), RetryAhead(2, 20, 20, second, second)]
    assert retries_ahead(pending(), policy(), BEFORE) == [*expected, RetryAhead(3, 40, 40, third, third)]
    after = NOW + timedelta(seconds=40)
    assert retries_ahead(pending(retry_count=2, attempt=2), policy(), BEFORE) == [RetryAhead(3, 40, 40, after, after)]
    assert retries_ahead(pending(retry_count=3), policy(), BEFORE) == []


def test_nobody_knows_when_a_task_that_is_due_starts() -> None:
    """No retry is told at a moment that has passed, or after its deadline."""
    now = NOW + timedelta(hours=6)
    assert retries_ahead(pending(), policy(), now) == [RetryAhead(n, d, d) for n, d in ((1, 10), (2, 20), (3, 40))]
    assert retries_ahead(pending(deadline=now + timedelta(seconds=35)), policy(), now) == [
        RetryAhead(1, 10, 10),
        RetryAhead(2, 20, 20),
    ]
    later = attrs.evolve(pending(), next_execute_time=now + timedelta(hours=1))
    assert retries_ahead(later, policy(), now) == retries_ahead(later, policy(), BEFORE)


def test_while_an_attempt_runs_only_the_delays_are_known() -> None:
    running = TaskEntity("x", "q", {}, TaskStatus.PROCESSING, retry_count=1, started_at=NOW)
    assert retries_ahead(running, policy(), BEFORE) == [RetryAhead(2, 20, 20), RetryAhead(3, 40, 40)]


@pytest.mark.parametrize("status", [TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED])
def test_a_finished_task_has_none(status: TaskStatus) -> None:
    assert retries_ahead(TaskEntity("x", "q", {}, status), policy(), BEFORE) == []


def test_they_are_bounded_and_jitter_is_exact() -> None:
    own = policy(max_retry_count=500, backoff_jitter=0.5, backoff_strategy="fixed")
    found = retries_ahead(pending(), own, BEFORE)
    assert [one.number for one in found] == list(range(1, MOST_RETRIES + 1))
    assert [one.shortest for one in found] == [one.longest for one in found] == own.backoff().preview(MOST_RETRIES, "x")
    assert len({one.shortest for one in found}) == MOST_RETRIES


def test_a_callable_of_the_user_is_a_range() -> None:
    one, *_ = retries_ahead(pending(), policy(backoff_strategy="custom", max_backoff_interval=60.0), BEFORE)
    assert one == RetryAhead(1, 0, 60, NOW, NOW + timedelta(seconds=60))


def test_none_comes_after_the_deadline_and_none_has_a_date_that_is_too_late() -> None:
    limited = pending(deadline=NOW + timedelta(seconds=35))
    assert [one.number for one in retries_ahead(limited, policy(), BEFORE)] == [1, 2]
    late = attrs.evolve(pending(), next_execute_time=datetime(9999, 12, 31, 23, 59, 55, tzinfo=UTC))
    assert [one.earliest for one in retries_ahead(late, policy(), BEFORE)] == [None] * 3
