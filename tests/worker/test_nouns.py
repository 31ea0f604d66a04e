"""The parts of a worker, each without a server: slots, outbox, wake-ups, deadlines, and batch requests."""

import asyncio
import logging
import math
import threading
from typing import Any

import anyio
import anyio.lowlevel
import attrs
import pytest

from maas_backoff.config import TaskConfig
from maas_backoff.domain.outcome import CancelReason
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.tally import Tally
from maas_backoff.domain.task import TaskEntity
from maas_backoff.store.batch import BatchReply, BatchRequest, Claimed, Settle
from maas_backoff.worker.attempt import COST, Attempt
from maas_backoff.worker.deadlines import Deadlines
from maas_backoff.worker.emissions import Emissions
from maas_backoff.worker.lease import Lease
from maas_backoff.worker.notes import Notes
from maas_backoff.worker.outbox import MOST_BYTES, MOST_SETTLES, Outbox
from maas_backoff.worker.own_loop import OwnLoop
from maas_backoff.worker.requests import SLEEPING_CLAIMS, BatchRequests
from maas_backoff.worker.setback import Setback
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.sums import SettleSums
from maas_backoff.worker.suspects import Suspects
from maas_backoff.worker.user_call import UserCall
from maas_backoff.worker.wake_ups import WakeUps

pytestmark = pytest.mark.anyio


@attrs.define(slots=False)
class Stub:
    """An attempt, as far as these parts look at it."""

    token: int
    over: bool = False
    grant: object = None
    reason: CancelReason | None = None
    deadline: float = math.inf
    lease_until: float = math.inf
    progress: tuple[float, str | None] | None = None
    counts: Counts = Counts()
    batch: object = None
    kind: str = ""
    tenant: str = ""

    @property
    def claimed(self) -> "Stub":
        return self

    @property
    def task(self) -> "Stub":
        return self

    @property
    def lease(self) -> Lease:
        return Lease(self.lease_until, self.lease_until)

    @property
    def task_id(self) -> str:
        return f"task {self.token}"

    attempt = 1

    def cancel(self, reason: CancelReason) -> None:
        self.reason = reason

    def about(self, event: str) -> dict[str, object]:
        return {}


def attempt(token: int = 1, **fields: Any) -> Any:
    return Stub(token, **fields)


def settle(token: int = 1, size: int = 1) -> Settle:
    return Settle(f"task {token}", "lease", token, Settlement.complete("x" * size, TaskConfig().policy))


class Parts:
    """A worker's parts, wired as the service does it."""

    def __init__(self, concurrency: int = 4, setback: Setback | None = None, batch_size: int = 100) -> None:
        self.wake_ups, self.outbox, self.tally = WakeUps(), Outbox(), Tally()
        self.slots, self.sums = Slots(concurrency, self.wake_ups, setback), SettleSums()
        suspects = Suspects()
        self.requests = BatchRequests(
            *(self.slots, self.outbox, self.wake_ups, suspects, self.tally, self.sums), batch_size=batch_size
        )

    def reply(self, *answers: str, hit: bool = False) -> BatchReply:
        return BatchReply(list(answers), [], None, hit=hit)


def notes_of(slots: Slots) -> Notes:
    return Notes(slots, Emissions(slots, 1000, lambda settle, attempt: None))


class TestSlots:
    async def test_a_claim_on_its_way_takes_slots_until_it_is_answered(self) -> None:
        slots = Parts(4).slots
        slots.claims_sent(3)
        assert (slots.free, slots.empty.is_set()) == (1, False)
        slots.take(attempt())
        slots.answered([], 3)
        assert (slots.free, slots.empty.is_set()) == (3, False)

    async def test_an_attempt_that_is_being_settled_gives_its_slot_to_the_next_claim(self) -> None:
        slots, one = Parts(1).slots, attempt()
        slots.take(one)
        assert slots.free == 0
        slots.settles_sent([one])
        assert slots.free == 1
        slots.claims_sent(1)
        assert slots.free == 0
        slots.answered([one], 1)
        assert (slots.free, slots.empty.is_set()) == (1, True)

    async def test_a_thread_that_outlives_its_attempt_keeps_its_slot(self) -> None:
        slots = Parts(2).slots
        slots.linger(1)
        assert slots.free == 1
        slots.linger(-1)
        assert slots.free == 2

    async def test_only_the_attempt_that_has_a_grant_is_handed_back_with_it(self) -> None:
        slots, mine, other = Parts(2).slots, object(), object()
        one, two = attempt(1, grant=mine), attempt(2, grant=other)
        slots.take(one)
        slots.take(two)
        slots.attempts.hand_back(mine)  # type: ignore[arg-type] - any grant will do
        assert (one.reason, two.reason) == (CancelReason.CUT_OFF, None)

    async def test_while_no_child_can_be_started_only_the_children_that_are_there_count(self) -> None:
        setback = Setback(lambda: 2)
        slots = Parts(8, setback).slots
        assert slots.claimable == 8
        setback.failed("no memory")
        assert slots.claimable == 2
        slots.take(attempt(1))
        slots.take(attempt(2, grant=object()))
        assert slots.claimable == 1, "one with a GPU has a child of its own"
        assert not slots.may_start_child()

    async def test_a_change_of_the_children_wakes_the_loops(self) -> None:
        setback = Setback(lambda: 0)
        parts = Parts(2, setback)
        setback.failed("no memory")
        assert parts.wake_ups.to_send.is_set() and parts.wake_ups.gpu.is_set()

    async def test_nothing_is_wanted_while_there_is_no_work_or_the_worker_closes(self) -> None:
        parts = Parts(4)
        assert parts.slots.wanted == 0
        parts.wake_ups.wake()
        assert parts.slots.wanted == 4
        parts.slots.keep_for_gpu(1)
        assert parts.slots.wanted == 3
        parts.slots.close()
        assert parts.slots.wanted == 0

    async def test_the_end_of_a_suspect_lets_the_next_cohort_come(self) -> None:
        parts = Parts(4)
        parts.wake_ups.listens_for_gpu = True
        one = attempt(counts=Counts(lost=1, suspect=True))
        parts.slots.take(one)
        parts.slots.release([one])
        assert parts.wake_ups.has_work and parts.wake_ups.gpu_marked

    async def test_attempts_are_cancelled_by_token_or_by_task(self) -> None:
        slots, one, other = Parts(4).slots, attempt(1), attempt(2)
        slots.take(one)
        slots.take(other)
        slots.attempts.cancel([1, 99], CancelReason.SHUTDOWN)
        slots.attempts.cancel_tasks({"task 2"})
        assert (one.reason, other.reason) == (CancelReason.SHUTDOWN, CancelReason.USER)

    async def test_those_that_ignore_their_timeout_are_stuck(self) -> None:
        slots = Parts(4).slots
        for one in (attempt(1, deadline=10), attempt(2, deadline=10, over=True), attempt(3, deadline=12)):
            slots.take(one)
        assert [one.token for one in slots.attempts.stuck(now=13, grace=2)] == [1]


class TestOwnLoop:
    async def test_a_thread_that_fails_is_critical(self, caplog: pytest.LogCaptureFixture) -> None:
        async def fails() -> None:
            raise OSError("no file descriptor is left")

        own = OwnLoop(fails, "a thread", "the leases will run out")
        own.start()
        await anyio.to_thread.run_sync(own._thread.join)
        (record,) = caplog.records
        assert (record.levelno, record.getMessage()) == (logging.CRITICAL, "the leases will run out")
        assert record.exc_info is not None and isinstance(record.exc_info[1], OSError)

    async def test_a_coroutine_that_waits_is_cancelled(self) -> None:
        entered, left = threading.Event(), threading.Event()

        async def waits() -> None:
            entered.set()
            try:
                await anyio.sleep_forever()
            finally:
                left.set()

        own = OwnLoop(waits, "a thread", "it fails")
        own.start()
        assert await anyio.to_thread.run_sync(entered.wait, 5)
        await own.stop()
        assert left.is_set() and own.stopping

    async def test_a_thread_that_is_stopped_before_its_loop_runs_calls_nothing(self) -> None:
        called = threading.Event()

        async def call() -> None:
            called.set()

        own = OwnLoop(call, "a thread", "it fails")
        own._stopping.set()  # as `stop` does while the thread is being started
        own.start()
        await own.stop()
        assert not called.is_set()

    async def test_a_thread_that_has_ended_by_itself_can_be_stopped(self, caplog: pytest.LogCaptureFixture) -> None:
        own = OwnLoop(anyio.lowlevel.checkpoint, "a thread", "it fails")
        own.start()
        await anyio.to_thread.run_sync(own._thread.join)
        await own.stop()
        assert own.stopping and not caplog.records


class TestUserCall:
    @pytest.mark.parametrize(
        ("first", "then", "kept"),
        [
            (CancelReason.USER, CancelReason.TIMEOUT, CancelReason.USER),
            (CancelReason.TIMEOUT, CancelReason.LEASE_LOST, CancelReason.LEASE_LOST),
            (CancelReason.LEASE_LOST, CancelReason.SHUTDOWN, CancelReason.LEASE_LOST),
        ],
    )
    async def test_the_first_reason_counts_except_that_a_lost_lease_forbids_to_settle(
        self, first: CancelReason, then: CancelReason, kept: CancelReason
    ) -> None:
        call = UserCall(5, lambda _: None)
        call.cancel(first)
        call.cancel(then)
        assert call.reason is kept

    async def test_a_call_that_has_not_begun_is_not_cancelled_so_that_it_settles_its_task(self) -> None:
        """asyncio never runs a task that is cancelled before it begins."""
        call, seen = UserCall(5, lambda _: None), list[CancelReason | None]()

        async def attempt() -> None:
            seen.append(call.reason)

        call.call = asyncio.create_task(attempt())
        call.cancel(CancelReason.SHUTDOWN)
        await call.call
        assert seen == [CancelReason.SHUTDOWN]


class TestAttempt:
    async def test_a_renewal_that_is_answered_late_shortens_no_lease(self) -> None:
        policy = TaskConfig().policy
        claimed = Claimed(TaskEntity("id", "q", {}), 1, Counts(), policy, exec_timeout=None, started_ms=0)
        attempt = Attempt(claimed, Lease.since(10, 30), 5, lambda _: None, lambda *_: None)
        attempt.renewed(Lease.since(20, 30))
        attempt.renewed(Lease.since(15, 30))
        assert (attempt.lease.until, attempt.start_before) == (50, 47)


class TestOutbox:
    async def test_settlements_leave_in_their_order_each_with_its_attempt(self) -> None:
        outbox = Outbox()
        for token in range(MOST_SETTLES + 1):
            outbox.put(settle(token), attempt(token))
        settles, attempts = outbox.take()
        assert [one.token for one in settles] == [one.token for one in attempts] == list(range(MOST_SETTLES))
        assert len(outbox) == 1

    async def test_large_results_make_small_requests_and_never_an_empty_one(self) -> None:
        outbox = Outbox()
        for token in range(3):
            outbox.put(settle(token, MOST_BYTES), attempt(token))
        assert [len(outbox.take()[0]) for _ in range(4)] == [1, 1, 1, 0]


class TestWakeUps:
    async def test_work_that_is_found_wakes_the_exchange_loops_and_none_lets_them_sleep(self) -> None:
        wake_ups = WakeUps()
        wake_ups.wake()
        assert wake_ups.has_work and wake_ups.to_send.is_set() and not wake_ups.idle.is_set()
        wake_ups.note_work(found=False)
        assert not wake_ups.has_work and wake_ups.idle.is_set()

    async def test_a_new_plan_is_told_to_the_loop_that_waits_for_the_old_one(self) -> None:
        wake_ups = WakeUps()
        wake_ups.plan(7)
        assert wake_ups.look_at == 7 and wake_ups.replanned.is_set()


class TestDeadlines:
    async def test_only_an_earlier_moment_wakes_the_loop(self) -> None:
        deadlines = Deadlines(by_lease=True)
        deadlines.watch(10)
        deadlines.earlier.clear()
        deadlines.watch(11)
        assert (deadlines.next, deadlines.earlier.is_set()) == (10, False)
        deadlines.watch(9)
        assert (deadlines.next, deadlines.earlier.is_set()) == (9, True)

    @pytest.mark.parametrize(("by_lease", "reason"), [(True, CancelReason.CUT_OFF), (False, None)])
    async def test_attempts_are_stopped_by_timeout_and_by_lease(
        self, by_lease: bool, reason: CancelReason | None
    ) -> None:
        late, cut_off = attempt(1, deadline=5), attempt(2, deadline=30, lease_until=9)
        running, ended = attempt(3, deadline=20, lease_until=25), attempt(4, deadline=5, over=True)
        deadlines = Deadlines(by_lease=by_lease)
        deadlines.stop_overdue([late, cut_off, running, ended], now=10)
        assert [one.reason for one in (late, cut_off, running, ended)] == [CancelReason.TIMEOUT, reason, None, None]
        assert deadlines.next == 20


class TestNotes:
    async def test_the_newest_note_of_each_attempt_is_sent_once(self) -> None:
        slots = Parts(4).slots
        notes, one = notes_of(slots), attempt()
        slots.take(one)
        notes.progressed(1, 10, "begun")
        notes.progressed(1, 20, None)
        notes.progressed(99, 5, "of nobody")
        await asyncio.wait_for(notes.waiting.wait(), 5)
        assert notes.newest() == [("task 1", 1, 20, "begun")]
        assert notes.newest() == [] and not notes.waiting.is_set()

    async def test_an_attempt_that_has_ended_has_no_more_notes(self) -> None:
        slots = Parts(4).slots
        notes, one = notes_of(slots), attempt()
        slots.take(one)
        notes.progressed(1, 10, None)
        notes.drop(one)
        assert notes.newest() == []

    async def test_the_last_report_of_what_an_attempt_has_used_counts_for_each_limit(self) -> None:
        slots = Parts(4).slots
        notes, one, ended = notes_of(slots), attempt(), attempt(2, over=True)
        slots.take(one)
        slots.take(ended)
        for token in (1, 2, 99):
            notes.used(token, 3, {"openai": 10, "user": 1})
            notes.used(token, None, {"openai": 830})
        assert vars(one)["used"] == {COST: 3, "openai": 830, "user": 1}
        assert "used" not in vars(ended)


class TestBatchRequests:
    async def test_a_request_settles_and_claims_for_the_slots_that_it_frees(self) -> None:
        parts, one = Parts(1), attempt()
        parts.slots.take(one)
        parts.wake_ups.wake()
        assert parts.requests.next(0) is None, "no slot is free, and nothing has ended"
        parts.outbox.put(settle(), one)
        request = parts.requests.next(0)
        assert request is not None and (len(request.settles), request.claims) == (1, 1)
        assert parts.requests.answered(request, parts.reply("ok"), 0.01) == [one]
        assert parts.slots.empty.is_set() and parts.tally.settles == {4: 1}

    async def test_while_one_is_on_its_way_only_a_full_one_is_sent(self) -> None:
        parts = Parts(4)
        parts.wake_ups.wake()
        first = parts.requests.next(0)
        assert first is not None and first.claims == 2, "half of the slots"
        parts.outbox.put(settle(1), attempt(1))
        assert parts.requests.next(1) is None
        parts.outbox.put(settle(2), attempt(2))
        second = parts.requests.next(1)
        assert second is not None and len(second.settles) == 2

    async def test_a_wake_up_during_a_claim_that_finds_nothing_is_not_lost(self) -> None:
        parts = Parts(4)
        parts.wake_ups.wake()
        request = parts.requests.next(0)
        assert request is not None
        parts.wake_ups.wake()
        parts.requests.answered(request, parts.reply(), 0)
        assert parts.wake_ups.has_work
        request = parts.requests.next(0)
        assert request is not None
        parts.requests.answered(request, parts.reply(), 0)
        assert not parts.wake_ups.has_work

    async def test_a_sleeping_claim_is_small_and_leaves_a_slot(self) -> None:
        large, small = Parts(10), Parts(1)
        request = large.requests.sleeping(2)
        assert request is not None and request.claims == SLEEPING_CLAIMS and large.requests.sleeps_on_slots
        large.requests.answered(request, large.reply(), 0)
        assert not large.requests.sleeps_on_slots and large.slots.empty.is_set()
        assert small.requests.sleeping(2) is None

    async def test_a_claim_for_gpus_needs_a_slot_for_each(self) -> None:
        parts = Parts(2)
        fit = "4096:0 GPU-a 0 4096"
        assert parts.requests.for_gpus([fit] * 3, 3) is None and parts.requests.for_gpus([], 3) is None
        request = parts.requests.for_gpus([fit] * 2, 3)
        assert request is not None and (request.claims, request.fits) == (2, (fit, fit))
        parts.requests.answered(request, parts.reply(), 0)
        assert parts.slots.free == 2

    async def test_batches_leave_the_slots_that_are_kept_for_gpus_and_try_again_when_none_is_kept(self) -> None:
        parts = Parts(2)
        parts.slots.keep_for_gpu(1)
        request = parts.requests.for_batch("embed", "8 50 -", 4)
        assert request is not None
        assert parts.requests.for_batch("embed", "8 50 -", 4) is None
        parts.wake_ups.batch.clear()
        parts.slots.keep_for_gpu(0)
        assert parts.wake_ups.batch.is_set()

    async def test_a_claim_that_finds_nothing_gives_its_slot_to_a_task_that_waits_for_one_and_a_gpu(self) -> None:
        parts = Parts(1)
        for claim in (lambda: parts.requests.for_batch("embed", "8 50 -", 4), lambda: parts.requests.next(0)):
            parts.wake_ups.wake()
            request = claim()
            assert request is not None
            parts.slots.keep_for_gpu(1)
            parts.wake_ups.gpu.clear()
            parts.requests.answered(request, parts.reply(), 0)
            assert parts.wake_ups.gpu.is_set()
            parts.slots.keep_for_gpu(0)


class TestSuspects:
    """A worker with kinds that run in batches, and others: their claims take suspects by turns."""

    def ask(self, suspects: Suspects, *, batch: bool = False, asleep: bool = False) -> BatchRequest:
        may, cohort = suspects.ask([], gpu=False, asleep=asleep, batch=batch)
        return BatchRequest((), 1, may, "1", 1, "", (), cohort, "8 20 -" if batch else "", "embed" if batch else "")

    async def test_a_claim_that_was_refused_is_repeated_and_has_the_next_turn(self) -> None:
        suspects = Suspects(has_both=True)
        first, refused = self.ask(suspects), self.ask(suspects, batch=True)
        assert (first.may_claim_suspect, refused.may_claim_suspect) == (True, False)
        assert suspects.answered(refused) == frozenset()
        assert suspects.answered(first) == {True}
        assert not self.ask(suspects).may_claim_suspect, "the batch has the turn"
        second = self.ask(suspects, batch=True)
        assert second.may_claim_suspect
        assert suspects.answered(second) == {False}
        last = self.ask(suspects)
        assert last.may_claim_suspect
        assert suspects.answered(last) == frozenset(), "nothing is left to repeat"

    async def test_a_turn_that_is_not_taken_passes(self) -> None:
        suspects = Suspects(has_both=True)
        first, _ = self.ask(suspects), self.ask(suspects, batch=True)
        suspects.answered(first)
        assert [self.ask(suspects).may_claim_suspect for _ in range(2)] == [False, True]

    async def test_a_claim_that_sleeps_takes_none_beside_batches(self) -> None:
        assert not self.ask(Suspects(has_both=True), asleep=True).may_claim_suspect
        assert self.ask(Suspects(), asleep=True).may_claim_suspect
