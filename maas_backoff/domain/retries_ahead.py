"""The retries that a task has left, with the times at which they would come."""

from datetime import datetime, timedelta

import attrs

from maas_backoff.domain.policy import CUSTOM_STRATEGY, Policy
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity

MOST_RETRIES = 10
"""The most retries that are told."""


@attrs.frozen
class RetryAhead:
    """A retry that would come if each attempt before it fails.

    `number` counts the retries of the task from 1. `shortest` and `longest` are the seconds from the failed attempt to
    the retry: they are equal, unless the delay is that of a callable of the user. `earliest` and `latest` are the
    moments at which it would come if the attempts before took no time; None while an attempt runs, and once the task is
    due: nobody knows when the next attempt starts.
    """

    number: int
    shortest: float
    longest: float
    earliest: datetime | None = None
    latest: datetime | None = None


def retries_ahead(task: TaskEntity, policy: Policy, now: datetime) -> list[RetryAhead]:
    """Return the retries after the running or the next attempt, at most MOST_RETRIES; none that its deadline forbids.

    The jitter is exact: it follows from the id of the task. A handler may ask for other delays.
    """
    if task.status.finished:
        return []
    found = list[RetryAhead]()
    due = task.next_execute_time if task.status is TaskStatus.PENDING else None
    first = last = None if due is None else max(due, now)
    for number in range(task.retry_count + 1, min(policy.max_retry_count, task.retry_count + MOST_RETRIES) + 1):
        shortest, longest = _delays(policy, number, task.task_id)
        if first is not None and last is not None:
            first, last = _later(first, shortest), _later(last, longest)
        if first is not None and task.deadline is not None and first > task.deadline:
            break
        told = (first, last) if due is not None and due > now else (None, None)
        found.append(RetryAhead(number, shortest, longest, *told))
    return found


def _delays(policy: Policy, number: int, task_id: str) -> tuple[float, float]:
    """Return the shortest and the longest delay before a retry. Only the workers have the callable of the user."""
    if policy.backoff_strategy == CUSTOM_STRATEGY:
        return 0, policy.max_backoff_interval
    delay = policy.backoff().delay(number, task_id)
    return delay, delay


def _later(moment: datetime, seconds: float) -> datetime | None:
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:  # after the year 9999
        return None
