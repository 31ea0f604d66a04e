"""The batch requests of a worker: each settles ended attempts, and claims tasks for free slots.

This module does no I/O, and does not `await` between a read of the state and its change.
"""

import itertools
import time
from collections.abc import Iterable, Sequence

from maas_backoff.common.guard import Log, log_for
from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.tally import Tally
from maas_backoff.domain.task import TaskError
from maas_backoff.store.batch import ACCEPTED, UNSENT, BatchReply, BatchRequest, Settle, settle_args
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.outbox import MOST_SETTLES, Outbox
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.sums import SettleSums
from maas_backoff.worker.suspects import Suspects
from maas_backoff.worker.wake_ups import WakeUps

SLEEPING_CLAIMS = 2
"""The tasks of a claim that sleeps on the server. A claim of 1 would always look like the first of many."""

log: Log = log_for("worker")


class BatchRequests:
    """Makes the batch requests of one worker, and handles their replies."""

    def __init__(
        self,
        slots: Slots,
        outbox: Outbox,
        wake_ups: WakeUps,
        suspects: Suspects,
        tally: Tally,
        sums: SettleSums,
        *,
        batch_size: int,
    ) -> None:
        """`batch_size` is the most tasks that one batch request claims."""
        self._slots = slots
        self._outbox = outbox
        self._wake_ups = wake_ups
        self._suspects = suspects
        self._tally = tally
        self._sums = sums
        # Half of the slots: the server works on one request while the handlers of the other run.
        self._batch = min(batch_size, MOST_SETTLES, -(-slots.concurrency // 2))
        self._in_flight: dict[str, tuple[list[Attempt], int]] = {}
        self._numbers = itertools.count()
        self._busy = 0
        self._plenty = False
        self._asleep: BatchRequest | None = None

    @property
    def sleeps_on_slots(self) -> bool:
        """Whether a claim that sleeps on the server has reserved slots."""
        return self._asleep is not None

    def suspects_on_gpus(self) -> str:
        """Return the suspects that a claim of tasks that need a GPU could take now, as an argument of a script."""
        return self._suspects.on_gpus(self._slots.attempts.values())

    def next(self, exchange: int) -> BatchRequest | None:
        """Return the batch request that an exchange loop should send now, or None.

        While a request of the other loop is on its way, only a full request is sent. A smaller request would cost the
        server ten times as much for each task; its content goes with the next request of the other loop. Settlements
        can fill a request. Claims can fill it, too, if the last claim found as many tasks as it asked for.
        """
        if self._busy and len(self._outbox) < self._batch and not (self._plenty and self._slots.wanted >= self._batch):
            return None
        settles, attempts = self._outbox.take()
        self._slots.settles_sent(attempts)
        claims = 0 if self._wake_ups.only_batches else min(self._slots.wanted, self._batch)
        if not settles and not claims:
            return None
        self._busy += 1
        return self._made(settles, attempts, claims, exchange)

    def sleeping(self, exchange: int) -> BatchRequest | None:
        """Return a claim that the server runs when a task becomes ready, or None if too few slots are free.

        The claim is small: a worker that is frozen or disconnected keeps the claimed tasks from others for a lease.
        The next requests claim more. At least one slot is left for tasks that become due meanwhile.
        """
        claims = min(self._slots.claimable - 1 - self._slots.spare, SLEEPING_CLAIMS)
        if self._slots.shut or claims < 1 or self._wake_ups.only_batches:
            return None
        self._asleep = self._made([], [], claims, exchange, asleep=True)
        return self._asleep

    def for_gpus(self, fits: Sequence[str], exchange: int) -> BatchRequest | None:
        """Return a claim of tasks that need a GPU, one for each of `fits`, or None if too few slots are free."""
        if self._slots.shut or not fits or self._slots.free < len(fits):
            return None
        return self._made([], [], len(fits), exchange, tuple(fits))

    def for_gpu_batch(self, fit: str, kind: str, batch: str, exchange: int) -> BatchRequest | None:
        """Return a claim of a batch of tasks that need a GPU, for the placement `fit`, or None if no slot is free."""
        if self._slots.shut or self._slots.free < 1:
            return None
        return self._made([], [], 1, exchange, (fit,), batch=batch, kind=kind)

    def for_batch(self, kind: str, batch: str, exchange: int) -> BatchRequest | None:
        """Return a claim of a batch of a kind, or None if no slot is free. `batch` is a text of `Batching.claim`."""
        if self._slots.shut or self._slots.claimable_for_batches < 1:
            return None
        return self._made([], [], 1, exchange, batch=batch, kind=kind)

    def _made(
        self,
        settles: list[Settle],
        attempts: list[Attempt],
        claims: int,
        exchange: int,
        fits: tuple[str, ...] = (),
        *,
        asleep: bool = False,
        batch: str = "",
        kind: str = "",
    ) -> BatchRequest:
        may_claim_suspect, cohort = False, ""
        if claims:
            self._slots.claims_sent(claims)
            running = self._slots.attempts.values()
            may_claim_suspect, cohort = self._suspects.ask(running, gpu=bool(fits), asleep=asleep, batch=bool(batch))
        request_id = f"{next(self._numbers)}"
        self._in_flight[request_id] = attempts, self._wake_ups.count
        tally = self._tally.take(time.monotonic(), is_last=self._slots.closing) if settles else ""
        claim = claims, may_claim_suspect, request_id, exchange, tally, fits, cohort, batch, kind
        try:
            return BatchRequest(tuple(settles), *claim)
        except Exception as error:  # noqa: BLE001 - a bad outcome of one task must not stop the settlements of the others
            log.error("an outcome cannot be sent: %s", type(error).__name__)  # noqa: TRY400 - the traceback may show the outcome
            return BatchRequest(tuple(map(_sendable, settles)), *claim)

    def settled_by(self, request: BatchRequest) -> Sequence[Attempt]:
        """Return the attempts that a request settles, which has no answer yet."""
        return self._in_flight[request.request_id][0]

    def answered(self, request: BatchRequest, reply: BatchReply, seconds: float) -> list[Attempt]:
        """Free the slots of the settled attempts, and return them in the order of the request, which took `seconds`.

        Attempts that are answered UNSENT keep their slots.
        """
        settled, wakes = self._in_flight.pop(request.request_id)
        if settled:
            self._tally.count_settles(seconds, len(settled))
            self._sums.add(settled, request.settles, reply.answers)
        if request.tally and not ACCEPTED.intersection(reply.answers):
            self._tally.put_back(request.tally)  # the server counts a tally with the first settlement that it accepts
        # A claim has slots until its answer, and may have found nothing.
        freed = bool(settled or (request.claims and not request.fits))
        if request is self._asleep:
            self._asleep = None
        elif not request.fits and not request.batch:
            self._busy -= 1
        self._look_again(self._suspects.answered(request))
        if request.claims and not request.fits and not request.batch:
            # A wake-up during the request may belong to a task that was created after the claim.
            self._plenty = reply.hit
            self._wake_ups.note_work(found=reply.hit or wakes != self._wake_ups.count)
        unsent = {one.token for one, word in zip(settled, reply.answers, strict=True) if word == UNSENT}
        self._slots.answered(settled, request.claims, unsent)
        if freed and self._slots.spare:
            self._wake_ups.gpu.set()
        if (request.batch or request.fits) and len(reply.claimed) < request.claims:
            self._wake_ups.to_send.set()  # other tasks may have the slots that the claim had until its answer
        return settled

    def _look_again(self, refused: Iterable[bool]) -> None:
        """Repeat the claims that were refused suspects: of batches (True), and of other tasks (False)."""
        for batch in refused:
            if batch:
                self._wake_ups.look_for_batches(self._wake_ups.batches)
            else:
                self._wake_ups.look_again()


def _sendable(settle: Settle) -> Settle:
    """Return `settle`, or a failure in its place if its outcome cannot be encoded."""
    try:
        settle_args([settle])
    except Exception as error:  # noqa: BLE001 - an outcome may raise any error
        failed = TaskError("unknown_outcome", f"the outcome cannot be sent: {type(error).__name__}")
        settlement = Settlement(TaskStatus.FAILED, settle.settlement.ttl, error=failed)
        about = settle.task_id, settle.precondition, settle.token
        return Settle(*about, settlement, settle.counts, settle.info, used=settle.used)
    return settle
