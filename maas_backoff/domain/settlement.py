"""The settlement: the state change that an outcome leads to."""

import math
from typing import Self, assert_never

import attrs

from maas_backoff.domain.backoff import Backoff
from maas_backoff.domain.batching import HALF, half_of
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.outcome import (
    Cancelled,
    CancelReason,
    Failed,
    FailedAlone,
    FailedInBatch,
    FailedOnGpu,
    LeaseExpired,
    Outcome,
    Snoozed,
    Succeeded,
    Unstarted,
)
from maas_backoff.domain.policy import Policy
from maas_backoff.domain.retry_rule import EndedBy, ended_by
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskError

BLAME_DIGITS = 4
"""Decimals that are kept of a task's blame."""


@attrs.frozen
class Counts:
    """How often a task has come back, by reason.

    `suspect`: its last attempt was lost, and another one before, or its batch failed. A suspect comes back with its
    `cohort`, which has `cohort_size` tasks at most: see suspicion.py.

    `oom` and `fault` count attempts that failed for lack of GPU memory, or by a GPU fault. They use no retry.
    `blame` is the sum of the losses for `max_lost`. A loss counts fully, unless other tasks were lost with this one.
    """

    retry: int = 0
    lost: int = 0
    snooze: int = 0
    suspect: bool = False
    oom: int = 0
    fault: int = 0
    blame: float = attrs.field(default=attrs.Factory(lambda self: float(self.lost), takes_self=True))
    cohort: str = ""
    cohort_size: int = 1

    @property
    def lost_together(self) -> bool:
        """Whether the task came back in a cohort of lost tasks; the halves of failed batches have ended no worker."""
        return self.suspect and not self.cohort.startswith(HALF)

    def cleared(self, **changes: int) -> "Counts":
        """Return the counts after an attempt that was not lost: no suspicion is left."""
        return attrs.evolve(self, suspect=False, cohort="", cohort_size=1, **changes)


_COMPLETED = TaskStatus.COMPLETED  # to find a member of an enum takes 0.2 us in Python 3.11


@attrs.define  # made for each task; a frozen one takes twice as long
class Settlement:
    """The next state of a task, made by one of the constructors below.

    `delay` is in seconds, for a task that becomes pending again. `ttl` is in seconds, for a task that is finished, also
    by a requested cancel instead of the comeback.
    """

    status: TaskStatus
    ttl: float
    delay: float = 0
    counts: Counts | None = None
    result: str | None = attrs.field(default=None, repr=False)
    error: TaskError | None = None
    traceback: str = ""
    params: str | None = attrs.field(default=None, repr=False)
    """JSON text that replaces the task's params."""
    ended_by: EndedBy = ""
    """The option by which the failure is final, although retries may be left."""
    gpu: tuple[Demand, str] | None = None
    """The task's new demand on a GPU, and the UUID of the device to avoid."""
    expired: bool = False
    """Whether a deadline is the reason of a cancel."""
    exception: BaseException | None = attrs.field(default=None, eq=False, repr=False)
    """The handler's exception, for the log of a task that failed for good."""

    @property
    def event(self) -> str:
        """The name of the event: the task's new state, `retried`, `released`, or `expired`."""
        if self.expired:
            return "expired"
        if self.status is not TaskStatus.PENDING:
            return self.status.value
        return "released" if self.error is None else "retried"

    @classmethod
    def complete(cls, result: str, policy: Policy) -> Self:
        """Return the end of a completed task, with the JSON text of its result."""
        return cls(_COMPLETED, policy.result_ttl, result=result)

    @classmethod
    def cancel(cls, policy: Policy) -> Self:
        """Return the end of a cancelled task."""
        return cls(TaskStatus.CANCELLED, policy.result_ttl)

    @classmethod
    def expire(cls, failed: Failed, policy: Policy) -> Self:
        """Return the end of a task whose deadline stopped its last attempt."""
        cancelled, ttl = TaskStatus.CANCELLED, policy.result_ttl
        return cls(cancelled, ttl, error=failed.error, traceback=failed.traceback, expired=True)

    @classmethod
    def fail(cls, error: TaskError, policy: Policy, *, traceback: str = "", counts: Counts | None = None) -> Self:
        """Return the end of a failed task."""
        return cls(TaskStatus.FAILED, policy.failed_ttl, error=error, traceback=traceback, counts=counts)

    @classmethod
    def give_up(cls, failed: Failed, policy: Policy, by: EndedBy = "") -> Self:
        """Return the end of a task that failed in its last attempt; `by` is the option that made it the last."""
        settlement = cls.fail(failed.error, policy, traceback=failed.traceback)
        settlement.exception, settlement.ended_by = failed.exception, by
        return settlement

    @classmethod
    def retry(cls, failed: Failed, counts: Counts, delay: float, policy: Policy) -> Self:
        """Return a comeback after `delay` that uses one retry."""
        used = counts.cleared(retry=counts.retry + 1)
        error, text = failed.error, failed.traceback
        return cls(
            TaskStatus.PENDING, policy.result_ttl, delay, used, error=error, traceback=text, params=failed.params
        )

    @classmethod
    def retry_on_gpu(
        cls, failed: Failed, counts: Counts, delay: float, demand: Demand, avoid: str, policy: Policy
    ) -> Self:
        """Return a comeback after `delay` that uses no retry, because of a GPU fault."""
        error = failed.error
        settlement = cls(TaskStatus.PENDING, policy.result_ttl, delay, counts, error=error, traceback=failed.traceback)
        settlement.params, settlement.gpu = failed.params, (demand, avoid)
        return settlement

    @classmethod
    def snooze(cls, delay: float, counts: Counts, policy: Policy) -> Self:
        """Return a comeback after `delay` that uses no retry."""
        used = counts.cleared(snooze=counts.snooze + 1)
        return cls(TaskStatus.PENDING, policy.result_ttl, delay, used)

    @classmethod
    def release(cls, policy: Policy) -> Self:
        """Return a comeback at once that uses nothing: not started, or released by a worker that drains."""
        return cls(TaskStatus.PENDING, policy.result_ttl)

    @classmethod
    def halve(cls, counts: Counts, policy: Policy) -> Self:
        """Return a comeback at once that uses nothing, in a half of a failed batch."""
        return cls(TaskStatus.PENDING, policy.result_ttl, counts=counts)

    @classmethod
    def lose(cls, error: TaskError, counts: Counts, policy: Policy) -> Self:
        """Return a comeback at once that counts a loss: its worker died."""
        return cls(TaskStatus.PENDING, policy.result_ttl, counts=counts, error=error)


def decide(  # noqa: C901, PLR0911 - one return per outcome
    outcome: Outcome, task_id: str, counts: Counts, policy: Policy, backoff: Backoff
) -> Settlement | None:
    """Return the settlement of an outcome; None if the lease was lost, because another attempt may have the task."""
    match outcome:
        case Succeeded(result):
            return Settlement.complete(result, policy)
        case Failed():
            return _after_failure(outcome, task_id, counts, policy, backoff)
        case FailedOnGpu():
            return _after_gpu_failure(outcome, task_id, counts, policy, backoff)
        case FailedInBatch() | FailedAlone():
            return _after_batch(outcome, task_id, counts, policy, backoff)
        case Snoozed(after):
            if counts.snooze < policy.max_snoozes:
                delay = backoff.spread(after, task_id, f"snooze {counts.snooze + 1}")
                return Settlement.snooze(delay, counts, policy)
            return Settlement.fail(TaskError("snoozed_too_often", f"snoozed {counts.snooze} times"), policy)
        case Cancelled(CancelReason.LEASE_LOST):
            return None
        case Cancelled(CancelReason.USER):
            return Settlement.cancel(policy)
        case Cancelled() | Unstarted():
            return Settlement.release(policy)
        case LeaseExpired():
            return _after_loss(outcome, counts, policy)
        case _:
            assert_never(outcome)


def _after_failure(failed: Failed, task_id: str, counts: Counts, policy: Policy, backoff: Backoff) -> Settlement:
    if failed.expired:
        return Settlement.expire(failed, policy)
    by = "" if failed.permanent else ended_by(failed, policy.retry_on, policy.give_up_on)
    if failed.permanent or by or counts.retry >= policy.max_retry_count:
        return Settlement.give_up(failed, policy, by)
    retry = counts.retry + 1
    if failed.retry_after is None:
        return Settlement.retry(failed, counts, backoff.delay(retry, task_id, failed.error), policy)
    return Settlement.retry(failed, counts, backoff.spread(failed.retry_after, task_id, f"{retry}"), policy)


def _after_batch(
    outcome: FailedInBatch | FailedAlone, task_id: str, counts: Counts, policy: Policy, backoff: Backoff
) -> Settlement:
    if isinstance(outcome, FailedAlone):
        return _kept_alone(_after_failure(outcome.failed, task_id, counts, policy, backoff), task_id)
    return Settlement.halve(attrs.evolve(counts, suspect=True, cohort=outcome.cohort, cohort_size=outcome.size), policy)


def _kept_alone(settlement: Settlement, task_id: str) -> Settlement:
    """Let a task that comes back run alone: in company, it would fail others again."""
    if settlement.counts is not None and settlement.status is TaskStatus.PENDING:
        cohort, size = half_of(task_id, 0, 1)
        settlement.counts = attrs.evolve(settlement.counts, suspect=True, cohort=cohort, cohort_size=size)
    return settlement


def _after_gpu_failure(
    outcome: FailedOnGpu, task_id: str, counts: Counts, policy: Policy, backoff: Backoff
) -> Settlement:
    failed, demand = outcome.failed, outcome.demand
    # `retry_on` is about retries; a comeback after a GPU failure is none.
    ends = ended_by(failed, (), policy.give_up_on)
    if failed.permanent or ends or counts.oom + counts.fault >= policy.max_ooms:
        return _after_failure(failed, task_id, counts, policy, backoff)
    # No delay unless the handler asked for one: another device may have room.
    delay = backoff.spread(failed.retry_after or 0, task_id, f"gpu {counts.oom + counts.fault + 1}")
    if failed.fault == "gpu":
        again = counts.cleared(fault=counts.fault + 1)
        return Settlement.retry_on_gpu(failed, again, delay, demand, outcome.uuid, policy)
    again = counts.cleared(oom=counts.oom + 1)
    if failed.params is None and not outcome.crowded:
        demand = attrs.evolve(demand, memory=_grown(outcome, policy.oom_growth))
    return Settlement.retry_on_gpu(failed, again, delay, demand, outcome.uuid, policy)


def _grown(outcome: FailedOnGpu, growth: float) -> int:
    """Return the MiB that a task needs after it ran out of memory: at least as before, at most `outcome.most`."""
    before = outcome.demand.memory
    return max(before, min(max(outcome.peak, math.ceil(before * growth)), outcome.most))


def _company(others: int) -> str:
    if not others:
        return "lost alone"
    return "lost with 1 other task" if others == 1 else f"lost with {others:,} other tasks"


def _after_loss(loss: LeaseExpired, counts: Counts, policy: Policy) -> Settlement:
    """Return the settlement of a loss. It counts 1/n if n tasks were lost: a task lost alone is surely to blame."""
    blame = round(counts.blame + 1 / loss.together, BLAME_DIGITS)
    lost = attrs.evolve(counts.cleared(lost=counts.lost + 1), blame=blame)
    if counts.lost:
        lost = attrs.evolve(lost, suspect=True, cohort=loss.cohort, cohort_size=loss.size)
    how_often = f"lost {lost.lost} of {policy.max_lost} times"
    if blame != lost.lost:
        how_often = f"{_company(loss.together - 1)}; that adds up to {blame:.3g} of {policy.max_lost} losses"
    error = TaskError("lease_lost", f"its worker stopped renewing the lease; {how_often}")
    # The sum of three rounded thirds is a little less than 1.
    if blame > policy.max_lost - 0.01:
        return Settlement.fail(error, policy, counts=lost)
    return Settlement.lose(error, lost, policy)
