"""An exchange loop: settle ended attempts and claim due tasks, one batch request after the other.

Two loops run, so that the server handles one request while this process handles the reply to the other.
"""

import logging
import time
from collections.abc import Sequence

import anyio

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.raised import related
from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.signals import Retry
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import StorageError
from maas_backoff.gate.grant import Grant
from maas_backoff.store.batch import UNSENT, BatchReply, BatchRequest
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
        """Take a `number` that names the loop in its worker: the server remembers the last request of each loop."""
        self.number = number
        self._context = context
        self._requests = requests
        self._wake_ups = wake_ups
        self._work = work
        self._patience = Patience(f"a worker's exchange loop {number}", context.store.connection.server.outage)

    async def run(self) -> None:
        """Send a batch request whenever there is something to send."""
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
        """Send the same request until the server replies; attempts that end meanwhile wait for the next request."""
        tracing = self._work.tracing
        if tracing is None or not request.settles:
            return await self._send(request)
        with tracing.settle({one.task.task_id: one.span for one in self._requests.settled_by(request)}):
            return await self._send(request)

    async def _send(self, request: BatchRequest) -> BatchReply:
        store = self._context.store
        while True:
            try:
                reply = await store.exchange.send(request, self._context.name, self._context.kinds)
            except StorageError as error:  # a request that the server refused has changed nothing
                await self._patience.after(error)
                await store.connection.server.revive()
            else:
                self._patience.restored()
                return reply

    def apply(self, request: BatchRequest, reply: BatchReply, sent: float, grants: Sequence[Grant] = ()) -> None:
        """Begin the claimed tasks, and free the slots of the settled ones.

        `sent` is when the request was sent, by time.monotonic(). `grants` belong to the request's `fits`.
        """
        # Claimed tasks come first: no other work should make them wait.
        if reply.claimed and request.batch:
            self._work.begin_batch(reply.claimed, sent, grants)
        elif reply.claimed:
            self._work.begin(reply.claimed, sent, grants)
        if reply.ranks:
            self._wake_ups.note_ranks(reply.ranks, seen=request.kind)
        settled = self._requests.answered(request, reply, time.monotonic() - sent)
        for attempt, settle, word in zip(settled, request.settles, reply.answers, strict=True):
            if word == UNSENT:
                self._work.attempts.emissions.send_again(attempt, settle)
            else:
                report(attempt, settle.settlement, word, self._context.name)
        now, interval = anyio.current_time(), self._context.interval
        due = now + interval if reply.next_due is None else now + min(interval, reply.next_due)
        is_look = request.claims and not request.fits and (not request.batch or self._wake_ups.only_batches)
        if is_look or due < self._wake_ups.look_at:
            self._wake_ups.plan(due)


def report(attempt: Attempt, settlement: Settlement, word: str, worker: str) -> None:
    """Log the end of an attempt; no other code logs it."""
    if word == "ok" and settlement.error is None and not log.isEnabledFor(logging.DEBUG):
        return
    task = attempt.task
    late = word in {"lost", "unknown"}
    extra = attempt.about("too_late" if late else "cancelled" if word == "cancelled" else settlement.event)
    extra["worker"] = worker
    if settlement.error is not None:
        extra["error_type"] = settlement.error.type
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
        if settlement.expired:
            then = "expired"
        # A retry that the handler asked for, without a cause, is no trouble.
        asked_for = settlement.error.type == Retry.__name__ and not settlement.traceback
        level = logging.INFO if asked_for else logging.WARNING
        log.log(level, "task %r: attempt %d: %s; %s", task.task_id, task.attempt, settlement.error, then, extra=extra)


def _report_failure(task: TaskEntity, settlement: Settlement, extra: dict[str, object]) -> None:
    """Log that a task has failed for good: with its exception, or with the traceback from a child process."""
    end = f"failed by {settlement.ended_by}" if settlement.ended_by else "failed"
    details = (task.task_id, task.attempt, settlement.error, end)
    error, settlement.exception = settlement.exception, None  # it keeps the handler's variables alive
    if error is not None and _is_printable(error):
        exc_info = (type(error), error, error.__traceback__)
        log.error("task %r: attempt %d: %s; %s", *details, extra=extra, exc_info=exc_info)
    elif settlement.traceback:
        log.error("task %r: attempt %d: %s; %s\n%s", *details, settlement.traceback.rstrip(), extra=extra)
    else:
        log.error("task %r: attempt %d: %s; %s", *details, extra=extra)


def _is_printable(error: BaseException) -> bool:
    """Return whether UTF-8 can encode an exception and its causes: it cannot encode a lone surrogate for a log file."""
    try:
        for one in related(error):
            str(one).encode()
    except BaseException:  # noqa: BLE001 - a hostile __str__ may raise anything
        return False
    return True
