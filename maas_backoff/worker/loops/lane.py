"""A lane: sends what is to be settled and claims what is due, one frame after the other.

Two lanes run, so that the server works on one frame while this process works on the other.
"""

import logging
import time
from collections.abc import Callable, Sequence

import anyio

from maas_backoff.common.guard import log_for
from maas_backoff.domain.raised import related
from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import Retry, StorageError
from maas_backoff.gate.grant import Grant
from maas_backoff.store.frame import Answer, Frame
from maas_backoff.store.redis import RedisStore
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.running import Running

log = log_for("worker")


class Lane:
    """One of the lanes of a worker."""

    def __init__(
        self,
        number: int,
        store: RedisStore,
        running: Running,
        begin: Callable[[Attempt], None],
        *,
        exec_timeout: float,
        lease: float,
        interval: float,
    ) -> None:
        """`begin` is called with each attempt that was claimed, and must not raise."""
        self.number = number
        self._store = store
        self._running = running
        self._begin = begin
        self._exec_timeout = exec_timeout
        self._lease = lease
        self._interval = interval
        self._patience = Patience(f"a worker's exchange loop {number}", store.server.outage)

    async def run(self) -> None:
        """Send frames as there is something to send."""
        while True:
            frame = self._running.next_frame(self.number)
            if frame is None:
                self._running.pulse.clear()
                await self._running.pulse.wait()
                continue
            sent = time.monotonic()
            answer = await self.send(frame)
            self.apply(frame, answer, sent)

    async def send(self, frame: Frame) -> Answer:
        """Send the same frame until it is answered; what ends meanwhile waits for the next one."""
        while True:
            try:
                answer = await self._store.exchange(frame, self._running.worker)
            except StorageError as error:  # whatever it refuses, it has changed nothing
                await self._patience.after(error)
                await self._store.server.revive()
            else:
                self._patience.restored()
                return answer

    def apply(self, frame: Frame, answer: Answer, sent: float, grants: Sequence[Grant] = ()) -> None:
        """Hand out what was claimed, and free the slots of what is settled. `sent`: when, by time.monotonic().

        `grants` are what the frame's fits stand for.
        """
        running = self._running
        # A tenth of the lease is left for the handler to be found running by the next heartbeat.
        until, margin = sent + self._lease, self._lease / 10
        if answer.claimed and running.stops_with_lease:
            running.watch(until)
        # The slots come first: nothing that an idle worker does next is to keep a task waiting.
        for claimed in answer.claimed:
            timeout = claimed.exec_timeout or self._exec_timeout
            grant = grants[claimed.fit] if grants else None
            self._begin(running.claimed(claimed, timeout=timeout, lease_until=until, margin=margin, grant=grant))
        if frame.settles:
            running.tally.settles[int((time.monotonic() - sent) * 1000).bit_length()] += len(frame.settles)
        settled = running.answered(frame, answer)
        for attempt, settle, word in zip(settled, frame.settles, answer.answers, strict=True):
            report(attempt, settle.settlement, word)
        now = anyio.current_time()
        due = now + self._interval if answer.next_due is None else now + min(self._interval, answer.next_due)
        if (frame.claims and not frame.fits) or due < running.wake_at:
            running.plan(due)


def report(attempt: Attempt, settlement: Settlement, word: str) -> None:
    """Log the end of an attempt: the only place that does."""
    if word == "ok" and settlement.error is None and not log.isEnabledFor(logging.DEBUG):
        return
    task = attempt.task
    late = word in {"lost", "unknown"}
    extra = attempt.about("too_late" if late else "cancelled" if word == "cancelled" else settlement.event)
    if late:
        log.warning(
            "task %r: the outcome of attempt %d came too late (%s)", task.task_id, task.attempt, word, extra=extra
        )
    elif settlement.error is None:
        log.debug("task %r: %s by attempt %d", task.task_id, settlement.event, task.attempt, extra=extra)
    elif word != "cancelled" and settlement.status == "failed":
        _report_failure(task, settlement, extra)
    else:
        then = "cancelled" if word == "cancelled" else f"again in {settlement.delay:g} s"
        # A handler that asks for a retry, and for nothing else, tells of no trouble.
        asked_for = settlement.error.type == Retry.__name__ and not settlement.traceback
        level = logging.INFO if asked_for else logging.WARNING
        log.log(level, "task %r: attempt %d: %s; %s", task.task_id, task.attempt, settlement.error, then, extra=extra)


def _report_failure(task: TaskEntity, settlement: Settlement, extra: dict[str, object]) -> None:
    """Log that a task has failed for good: with its exception, or with the traceback that a child process told."""
    told = (task.task_id, task.attempt, settlement.error)
    error, settlement.exception = settlement.exception, None  # it keeps the handler's variables alive
    if error is not None and _is_printable(error):
        exc_info = (type(error), error, error.__traceback__)
        log.error("task %r: attempt %d: %s; failed", *told, extra=extra, exc_info=exc_info)
    elif settlement.traceback:
        log.error("task %r: attempt %d: %s; failed\n%s", *told, settlement.traceback.rstrip(), extra=extra)
    else:
        log.error("task %r: attempt %d: %s; failed", *told, extra=extra)


def _is_printable(error: BaseException) -> bool:
    """Whether UTF-8 can hold the texts of an exception and its causes: a log file could not hold a lone surrogate."""
    try:
        for one in related(error):
            str(one).encode()
    except BaseException:  # noqa: BLE001 - of a hostile __str__, too
        return False
    return True
