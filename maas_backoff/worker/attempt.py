"""An attempt in this process: it has a lease and can be cancelled."""

import asyncio
import logging
import math
import time
from collections.abc import Callable

import attrs

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.outcome import CancelReason, Outcome
from maas_backoff.domain.task import ProgressReport, TaskEntity
from maas_backoff.domain.tracing import AttemptSpan
from maas_backoff.gate.grant import Grant
from maas_backoff.logs import about
from maas_backoff.store.batch import Claimed
from maas_backoff.store.codec import AttemptInfo
from maas_backoff.worker.cancelling import cancel_call

log: Log = log_for("worker")


class Attempt:
    """One claimed task in this process, from the claim to the reply to its settlement."""

    outcome: Outcome | None = None
    """The outcome of the handler, before a cancel of the attempt is taken into account."""
    call: "asyncio.Task[None] | None" = None
    """The asyncio task that calls the handler, then the one that calls the exception handler."""
    began: bool = False
    """Whether `call` has begun. An asyncio task that is cancelled before it begins never runs, and settles nothing."""
    reason: CancelReason | None = None
    started_at: float | None = None
    """When the handler began, by time.monotonic()."""
    deadline: float = math.inf
    lingering: asyncio.Event | None = None
    over: bool = False
    progress: tuple[float, str | None] | None = None
    span: AttemptSpan | None = None

    def __init__(
        self,
        claimed: Claimed,
        *,
        timeout: float,
        lease_until: float,
        margin: float,
        watch: Callable[[float], None],
        report: ProgressReport,
        grant: Grant | None = None,
    ) -> None:
        """Make the attempt of a claimed task.

        `lease_until` is the moment, by time.monotonic(), until which the lease is valid for certain. The handler may
        not begin in the last `margin` seconds before `lease_until`. `watch` is called with the deadline, `report` with
        the handler's progress. Neither may reference this attempt: that would create a reference cycle.
        """
        self.claimed = claimed
        self.grant = grant
        self.token: int = claimed.token
        self.timeout = timeout
        self.lease_until: float = lease_until
        """The lease is valid at least until this moment, by time.monotonic(); `renewed` moves the moment."""
        self._margin = margin
        self._watch = watch
        self._begun = time.monotonic()
        self.task: TaskEntity = claimed.task.connected(report)
        if grant is not None:
            self.task = attrs.evolve(self.task, gpu=grant.assignment)

    def __repr__(self) -> str:
        return f"<Attempt {self.task.attempt} of {self.task.task_id!r}, token {self.token}>"

    @property
    def start_before(self) -> float:
        """The last moment, by time.monotonic(), for the handler to begin: later, too little of the lease is left."""
        return self.lease_until - self._margin

    def renewed(self, until: float) -> None:
        """Note that the lease was renewed, and is valid until this moment. Called from the heartbeat's thread."""
        self.lease_until = max(self.lease_until, until)

    def started(self) -> None:
        """Start the time of the timeout."""
        self.started_at = time.monotonic()
        self.deadline = self.started_at + self.timeout
        self._watch(self.deadline)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("task %r: attempt %d begins", self.task.task_id, self.task.attempt, extra=self.about("started"))

    def extend(self) -> None:
        """Give the exception handler as much time as the handler had; the lease is renewed as long."""
        self.deadline = time.monotonic() + self.timeout

    def lingers(self, ended: asyncio.Event) -> None:
        """Note that the thread cannot be stopped; the slot stays taken until `ended` is set."""
        self.lingering = ended

    def cancel(self, reason: CancelReason) -> None:
        """Stop the handler. The first reason is kept, except that a lost lease replaces it."""
        if not self.over and (self.reason is None or reason is CancelReason.LEASE_LOST):
            self.reason = reason
            if self.call is not None and self.began:
                cancel_call(self.call)

    def abandon(self) -> "asyncio.Task[None] | None":
        """Leave the attempt to its lease: it is not settled. Return the asyncio task of its handler."""
        self.over = True
        return self.call

    def about(self, event: str) -> dict[str, object]:
        """Return the extra fields of a log record about this attempt."""
        return about(event, self.task.task_id, self.task.attempt, self.token)

    def info(self, worker: str) -> AttemptInfo:
        """Return when and where this attempt ran, by the server's clock."""
        started = self.claimed.started_ms
        elapsed = (time.monotonic() - self._begun) * 1000
        return AttemptInfo(self.task.attempt, started, started + elapsed, worker)
