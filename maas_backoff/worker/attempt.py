"""An attempt in this process: it has a lease and can be cancelled."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence

import attrs

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.emission import Emission, Part
from maas_backoff.domain.outcome import CancelReason, Outcome
from maas_backoff.domain.task import Receiver, TaskEntity
from maas_backoff.domain.tracing import AttemptSpan
from maas_backoff.gate.grant import Grant
from maas_backoff.logs import about
from maas_backoff.store.batch import Claimed
from maas_backoff.store.settled import AttemptInfo
from maas_backoff.worker.cancelling import PATIENCE, place_of
from maas_backoff.worker.lease import Lease
from maas_backoff.worker.shared_slot import SharedSlot
from maas_backoff.worker.user_call import UserCall

log: Log = log_for("worker")

COST = ""
"""In place of a limit's name in `Attempt.used`: the cost."""


class Attempt(UserCall):
    """One claimed task in this process, from the claim to the reply to its settlement."""

    outcome: Outcome | None = None
    """The outcome of the handler, before a cancel of the attempt is taken into account."""
    over: bool = False
    ran: float | None = None
    """The seconds for which the handler has run, once it has ended; None: it did not begin."""
    progress: tuple[float, str | None] | None = None
    used: dict[str, float] | None = None
    """The units that the handler has reported, by limit, and its cost."""
    span: AttemptSpan | None = None
    emission: Emission | None = None
    """The parts and lines of the handler; None: it has emitted nothing yet."""
    earlier: Sequence[Part] = ()
    """The parts of the task's stream that earlier attempts have emitted."""
    batch: SharedSlot | None = None
    """The batch of the attempt; None: the handler is called for this attempt alone."""

    def __init__(
        self,
        claimed: Claimed,
        lease: Lease,
        timeout: float,
        watch: Callable[[float], None],
        receiver: Receiver,
        grant: Grant | None = None,
    ) -> None:
        """Make the attempt of a claimed task. The calls of `renewed` move the lease.

        `timeout` and `watch` are those of UserCall. `receiver` takes the handler's reports. It and `watch` must not
        reference this attempt: that would create a reference cycle.
        """
        super().__init__(timeout, watch)
        self.claimed = claimed
        self.grant = grant
        self.token: int = claimed.token
        self.lease: Lease = lease
        self._begun = time.monotonic()
        if claimed.time_left != math.inf:  # a field that is set costs each attempt its time
            self.ends_by: float = self._begun + claimed.time_left
        self.task: TaskEntity = claimed.task.connected(receiver)
        if grant is not None:
            self.task = attrs.evolve(self.task, gpu=grant.assignment)

    def __repr__(self) -> str:
        return f"<Attempt {self.task.attempt} of {self.task.task_id!r}, token {self.token}>"

    @property
    def start_before(self) -> float:
        """The last moment, by time.monotonic(), for the handler to begin: of the lease, which moves, or of the task."""
        if self.claimed.start_before < self.lease.start_before:
            return self.claimed.start_before
        return self.lease.start_before

    def renewed(self, lease: Lease) -> None:
        """Note that the lease was renewed. Called from the heartbeat's thread."""
        if lease.until > self.lease.until:
            self.lease = lease

    def started(self) -> None:
        """Start the time of the timeout."""
        self.start_time()
        if log.isEnabledFor(logging.DEBUG):
            log.debug("task %r: attempt %d begins", self.task.task_id, self.task.attempt, extra=self.about("started"))

    def cancel(self, reason: CancelReason) -> None:
        """Stop the handler. The first reason is kept, except that a lost lease replaces it."""
        if not self.over:
            is_first = self.reason is None
            super().cancel(reason)
            if is_first and self.call is not None and self.began:
                self.call.get_loop().call_later(PATIENCE, self._name_if_running, self.call)

    def _name_if_running(self, call: "asyncio.Task[None]") -> None:
        """Log that the call ignores its cancel, if it does. Its slot stays taken."""
        if call.done():
            return
        place = place_of(call)
        log.warning(
            "task %r: attempt %d ignores its cancel (%s), and goes on%s; its slot stays taken",
            *(self.task.task_id, self.task.attempt, self.reason, place and f" at {place}"),
            extra=self.about("ignores_cancel"),
        )

    def abandon(self) -> "asyncio.Task[None] | None":
        """Leave the attempt to its lease: it is not settled. Return the asyncio task of its handler."""
        self.over = True
        return self.call

    def about(self, event: str) -> dict[str, object]:
        """Return the extra fields of a log record about this attempt."""
        extra = about(event, self.task.task_id, self.task.attempt, self.token)
        extra["queue"] = self.task.biz_prefix
        if self.ran is not None:
            extra["duration"] = round(self.ran, 6)
        return extra if self.span is None else {**extra, **self.span.ids}

    @property
    def age(self) -> float:
        """The seconds since the claim."""
        return time.monotonic() - self._begun

    @property
    def now_ms(self) -> float:
        """The present time in ms, by the server's clock."""
        return self.claimed.started_ms + (time.monotonic() - self._begun) * 1000

    def info(self, worker: str) -> AttemptInfo:
        """Return when and where this attempt ran, by the server's clock."""
        gpu = "" if self.task.gpu is None else self.task.gpu.uuid
        return AttemptInfo(self.task.attempt, self.claimed.started_ms, self.now_ms, worker, gpu)
