"""An exchange loop: sends what is to be settled and claims what is due, one batch request after the other.

Two of them run, so that the server works on one request while this process works on the other.
"""

import logging
import time
from collections.abc import Sequence

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.raised import related
from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import Retry, StorageError
from maas_backoff.gate.grant import Grant
from maas_backoff.store.batch import BatchReply, BatchRequest
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.context import WorkerContext
from maas_backoff.worker.loops.patience import Patience
from maas_backoff.worker.requests import BatchRequests
from maas_backoff.worker.wake_ups import WakeUps
from maas_backoff.worker.work import Work

log: Log = log_for("worker")


class ExchangeLoop:
    """One of the exchange loops of a worker."""

    def __init__(
        self, number: int, context: WorkerContext, requests: BatchRequests, wake_ups: WakeUps, work: Work
    ) -> None:
        """Tell the loops of one worker apart by `number`: the server remembers the last request of each."""
        self.number = number
        self._context = context
        self._requests = requests
        self._wake_ups = wake_ups
        self._work = work
        self._patience = Patience(f"a worker's exchange loop {number}", context.store.connection.server.outage)

    async def run(self) -> None:
        """Send requests as there is something to send."""
        while True:
            request = self._requests.next(self.number)
            if request is None:
                self._wake_ups.to_send.clear()
                await self._wake_ups.to_send.wait()
                continue
            sent = time.monotonic()
            reply = await self.send(request)
            self.apply(request, reply, sent)

    async def send(self, request: BatchRequest) -> BatchReply:
        """Send the same request until it is answered; what ends meanwhile waits for the next one."""
        store = self._context.store
        while True:
            try:
                reply = await store.exchange.send(request, self._context.name)
            except StorageError as error:  # whatever it refuses, it has changed nothing
                await self._patience.after(error)
                await store.connection.server.revive()
            else:
                self._patience.restored()
                return reply

    def apply(self, request: BatchRequest, reply: BatchReply, sent: float, grants: Sequence[Grant] = ()) -> None:
        """Begin what was claimed, and free the slots of what is settled. `sent`: when, by time.monotonic().

        `grants` are what the request's fits stand for.
        """
        # The claims come first: nothing that an idle worker does next is to keep a task waiting.
        if reply.claimed:
            self._work.begin(reply.claimed, sent, grants)
        settled = self._requests.answered(request, reply, time.monotonic() - sent)
        for attempt, settle, word in zip(settled, request.settles, reply.answers, strict=True):
            report(attempt, settle.settlement, word)
        now, interval = anyio.current_time(), self._context.interval
        due = now + interval if reply.next_due is None else now + min(interval, reply.next_due)
        if (request.claims and not request.fits) or due < self._wake_ups.look_at:
            self._wake_ups.plan(due)


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
