"""The real scripts beside a model of a queue, on a virtual clock: whatever is done in whatever order, they agree.

`MAAS_BACKOFF_STEPS=10` makes the runs ten times as long. A failure prints the steps that lead to it.
"""

import asyncio
import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import lanes
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import SERVERS, Server, quick_config

from maas_backoff.domain import jsontext
from maas_backoff.domain.demand import Demand
from maas_backoff.domain.emission import Part, Unsent
from maas_backoff.domain.kind import NAMELESS, ONLY_NAMELESS, Kinds
from maas_backoff.domain.lane import NO_LANE, Lane
from maas_backoff.domain.limit import Limit
from maas_backoff.domain.outcome import Failed
from maas_backoff.domain.settlement import Counts, Settlement, decide
from maas_backoff.domain.task import TaskError
from maas_backoff.store import scripts
from maas_backoff.store.batch import BatchReply, BatchRequest, Claimed, Settle
from maas_backoff.store.codec import counts_of
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.streams import Emitted, Place
from maas_backoff.store.time_limits import NAMES, with_limits

START = 1_800_000_000_000
LEASE = 3_000
LIVE = ("ready", "suspects", "k:of:ready", "k:of:suspects", "scheduled", "leases", "external")
FINISHED = ("completed", "failed", "cancelled")
FACTOR = int(os.environ.get("MAAS_BACKOFF_STEPS", "1"))
ERROR = TaskError("ValueError", "boom")

ids = st.sampled_from([f"t{n}" for n in range(5)])
workers = st.sampled_from(["one", "two"])
delays = st.sampled_from([0, 0, 0.001, 0.5, 10])
kinds = st.sampled_from([NAMELESS, NAMELESS, "of"])
EVERY_KIND = Kinds((NAMELESS, "of"))
able = st.sampled_from([ONLY_NAMELESS, Kinds(("of",)), EVERY_KIND, EVERY_KIND])
"""The kinds of a task, and of a worker."""
deadlines = st.sampled_from([(0, 0), (0, 0), (1, 0), (0, 1), (0.4, 20), (20, 0.4), (12, 0)])
"""Seconds of start_within and complete_within; 0: none."""
tenants = st.sampled_from(["", "a", "b"])
limits_of_tasks = st.sampled_from(
    [{}, {}, {"x": 1.0}, {"user:1": 2.0}, {"x": 3.0, "y": 1.0}, {"user:1": 1.0, "user:2": 1.0, "x": 1.0}]
)
settings_of_limits = st.sampled_from(
    [
        *(None, Limit(concurrency=1), Limit(concurrency=2), Limit(rate=(2, 1)), Limit(tokens=(5, 1))),
        Limit(concurrency=2, rate=(60, "1m"), tokens=(100, "1m")),
    ]
)


@attrs.define
class Known:
    """Check one task."""

    params: str
    kind: str = NAMELESS
    state: str = "pending"
    token: int = 0
    counts: Counts = Counts()
    due: float = 0
    expiry: float = 0
    attempts: int = 0
    demand: int = 0
    """MiB of a GPU; 0: it needs none."""
    accepted: set[int] = attrs.field(factory=set)
    lengths: tuple[float, ...] = ()
    """The lengths of its deadlines, in ms."""
    over: float = math.inf
    """When a pending task has expired, in whole ms, as it is stored."""

    def limit(self, base: float) -> None:
        """Have deadlines of its lengths from then on."""
        self.over = min((math.floor(base + length) for length in self.lengths), default=math.inf)

    expired: bool = False
    lane: Lane = NO_LANE
    parts: list[str] = attrs.field(factory=list)
    """The parts of its stream; `owner` and `base` are the tokens of the attempts with the last and the first ones."""
    owner: int = 0
    base: int = 0
    lines: int = 0

    def is_over(self, moment: float) -> bool:
        return self.over <= moment


def gpu_set(kind: str, demand: int) -> str:
    return f"{kind}/{demand}:0" if kind else f"{demand}:0"


class Machine(RuleBasedStateMachine):
    """A queue of five ids and two workers. In half of the runs, tasks have tenants and limits."""

    server: Server
    steps = 0
    always_fair = False
    is_fair = False

    def __init__(self) -> None:
        super().__init__()
        self.server.client.flushall()
        self.runner = asyncio.Runner()
        config = quick_config(self.server.storage)
        config.task.max_lost = 2
        self.policy = config.task.policy
        self.store = QueueStore.of(config)
        self.model: dict[str, Known] = {}
        self.claims: list[Claimed] = []
        self.last: dict[str, tuple[BatchRequest, list[tuple[str, int]]]] = {}
        self.totals = dict.fromkeys(FINISHED, 0)
        self.highest = 0
        self.requests = 0
        self.is_paused = False
        self.paused_tenants: set[str] = set()
        self.limits: dict[str, Limit] = {}
        self.starts: dict[str, list[float]] = {}
        """When tasks of a limit have started, since its last setting."""
        self.now = 0.0
        self.advance(0)
        self.do(self.store.lost.look(1e6, 0))

    def teardown(self) -> None:
        try:
            if self.is_fair:
                self._run_all()
        finally:
            self.do(self.store.aclose())
            self.runner.close()

    def _run_all(self) -> None:
        """Run all tasks when nothing is paused or limited any more: none is stuck, and nothing of lanes is left."""
        for tenant in sorted(self.paused_tenants):
            self.pause_or_resume_a_tenant(tenant)
        for name in sorted(self.limits):
            self.set_limit(name, None)
        if self.is_paused:
            self.pause_or_resume_a_kind()
        for _ in range(12 + len(self.model)):
            self.advance(11_000)
            self.reap()
            self.claim("one", 100, suspect=True)
            for kind in ("", "of"):
                self.claim_on_gpus("one", [1, 2, 3] * 5, suspect=True, run_out=False, kind=kind)
            for one in self.claims:
                if self._holds(one.task.task_id, one.token):
                    self._settle(one, Settlement.complete("1", self.policy), "one")
            if not any(known.state in {"pending", "processing"} for known in self.model.values()):
                break
        else:
            raise AssertionError(f"tasks are stuck: {self.model}")
        self.claim("one", 1, suspect=True)
        assert not lanes.check(self.server.client, START + self.now).lanes

    def do(self, coroutine: Any) -> Any:
        Machine.steps += 1
        done = self.runner.run(coroutine)
        # A claim may meet any of the late tasks: a late task counts as cancelled before and after.
        for task_id, known in self.model.items():
            if self._is_late(known) and self.server.client.hget(f"maas:{{test}}:t:{task_id}", "s") == b"cancelled":
                known.state, known.expired = "cancelled", True
                self.totals["cancelled"] += 1
        return done

    def _is_late(self, known: Known) -> bool:
        return known.state == "pending" and known.is_over(self.now)

    def _is_due(self, known: Known) -> bool:
        return self._state(known) == "pending" and known.due <= self.now

    def _state(self, known: Known) -> str:
        """The state that readers see."""
        return "cancelled" if self._is_late(known) else known.state

    @initialize(is_fair=st.booleans())
    def have_tenants(self, is_fair: bool) -> None:
        self.is_fair = is_fair or self.always_fair

    # Steps of users

    @rule(
        task_ids=st.lists(ids, min_size=1, max_size=3),
        params=st.sampled_from(["{}", "[1]"]),
        delay=delays,
        demand=st.sampled_from([0, 0, 1, 2]),
        limits=deadlines,
        kind=kinds,
        tenant=tenants,
        cost=st.sampled_from([1.0, 1.0, 0.01, 50.0]),
        named=limits_of_tasks,
    )
    def create(self, task_ids: list[str], params: str, delay: float, demand: int, kind: str, **given: Any) -> None:
        limits: tuple[float, float] = given["limits"]
        lane = Lane(given["tenant"], given["cost"], given["named"]) if self.is_fair else NO_LANE
        own: dict[str, Any] = {"min_gpu_memory_gb": demand / 1024} if demand else {}
        policy = self.policy.overridden(own)
        own = with_limits(own, dict(zip(NAMES, (limit or None for limit in limits), strict=True)), policy)
        overrides = jsontext.plain(own) if own else ""
        tasks = [NewTask(task_id, params, 0, delay, policy, overrides, kind, lane.record) for task_id in task_ids]
        expected: list[str] = []
        for task_id in task_ids:
            known = self.model.get(task_id)
            is_same = known is not None and (known.params, known.kind) == (params, kind)
            expected.append("created" if known is None else "exists" if is_same else "conflict")
            if known is None:
                # Those of one call that are due later are so one after the other, by fractions of a ms.
                turn = expected.count("created") - 1 if delay else 0
                due = self.now + delay * 1000
                lengths = tuple(1000 * limit for limit in limits if limit)
                known = Known(params, kind, due=due + turn / 4096, demand=demand, lengths=lengths, lane=lane)
                self.model[task_id] = known
                known.limit(due)
        assert self.do(self.store.writer.enqueue(tasks)) == expected

    @rule(task_id=ids)
    def cancel_pending(self, task_id: str) -> None:
        self._outside(task_id, "pending", Settlement.cancel(self.policy))

    @rule(task_id=ids)
    def mark_processing(self, task_id: str) -> None:
        known = self.model.get(task_id)
        answer = self.do(
            self.store.writer.settle(Settle(task_id, "pending", None, Settlement.release(self.policy)), external=True)
        )
        assert answer == self._answer(known, "pending")
        if answer == "ok":
            assert known is not None
            known.state, known.token = "external", self._next_token()

    @rule(task_id=ids, retry=st.booleans(), delay=delays)
    def mark_external(self, task_id: str, retry: bool, delay: float) -> None:
        known = self.model.get(task_id)
        counts = Counts() if known is None else attrs.evolve(known.counts, retry=known.counts.retry + 1)
        again = attrs.evolve(Settlement.release(self.policy), counts=counts, delay=delay)
        self._outside(task_id, "external", again if retry else Settlement.complete("1", self.policy))

    @rule(task_id=ids)
    def take_up_again(self, task_id: str) -> None:
        self._outside(task_id, "finished", attrs.evolve(Settlement.release(self.policy), counts=Counts()))

    @rule(task_id=ids)
    def delete(self, task_id: str) -> None:
        known = self.model.get(task_id)
        may = known is not None and known.state != "processing"
        assert self.do(self.store.writer.delete(task_id)) == may
        if may:
            del self.model[task_id]

    @rule()
    def pause_or_resume_a_kind(self) -> None:
        self.is_paused = not self.is_paused
        for changed in (True, False):
            assert self.do(self.store.writer.pause(on=self.is_paused, kind="of")) == changed

    @precondition(lambda self: self.is_fair)
    @rule(tenant=st.sampled_from(["a", "b"]))
    def pause_or_resume_a_tenant(self, tenant: str) -> None:
        self.paused_tenants ^= {tenant}
        for changed in (True, False):
            paused = tenant in self.paused_tenants
            assert self.do(self.store.shares.set_tenant(tenant, paused=paused)) == changed

    @precondition(lambda self: self.is_fair)
    @rule(tenant=st.sampled_from(["a", "b"]), weight=st.sampled_from([1.0, 0.1, 1000.0]))
    def weigh(self, tenant: str, weight: float) -> None:
        self.do(self.store.shares.set_tenant(tenant, weight=weight))
        assert not self.do(self.store.shares.set_tenant(tenant, weight=weight))

    @precondition(lambda self: self.is_fair)
    @rule(name=st.sampled_from(["x", "x", "y", "user:*", "user:1"]), limit=settings_of_limits)
    def set_limit(self, name: str, limit: Limit | None) -> None:
        """A new setting counts from now on; tasks that run go on."""
        changed = self.do(self.store.shares.set_limit(name, "" if limit is None else limit.setting))
        assert changed == (self.limits.get(name) != limit)
        self.limits.pop(name, None)
        if limit is not None:
            self.limits[name] = limit
        if changed:
            self.starts.clear()

    def _limit(self, name: str) -> Limit | None:
        return self.limits.get(name) or self.limits.get(f"{name.partition(':')[0]}:*")

    def _open(self, kinds: Kinds) -> list[str]:
        return [kind for kind in kinds.names if kind == NAMELESS or not self.is_paused]

    def _outside(self, task_id: str, kind: Any, settlement: Settlement) -> None:
        known = self.model.get(task_id)
        expected = self._answer(known, kind)
        answer = self.do(self.store.writer.settle(Settle(task_id, kind, None, settlement)))
        assert answer == expected
        if answer == "ok":
            assert known is not None
            self._become(known, settlement)
            if kind == "finished":
                known.limit(self.now)
                known.expired = False
                known.parts, known.owner, known.base = [], 0, 0

    def _answer(self, known: Known | None, kind: str) -> str:
        if known is None:
            return "unknown"
        state = self._state(known)
        return "ok" if (state in {"failed", "cancelled"} if kind == "finished" else state == kind) else state

    # Steps of workers

    @rule(worker=workers, count=st.integers(1, 4), suspect=st.booleans(), kinds=able)
    def claim(self, worker: str, count: int, suspect: bool, kinds: Kinds = EVERY_KIND) -> None:
        if self.is_fair:
            self._claim_fairly(worker, count, kinds, suspect=suspect)
            return
        self.requests += 1
        request = BatchRequest((), count, suspect, f"request-{self.requests}", 0)
        # Suspects that have just become due are put in their index first, and claimed by the next call.
        names = [self.store.connection.keys.of_kind(kind, "suspects") for kind in self._open(kinds)]
        listed = [i.decode() for name in names for i in self.server.client.zrange(f"maas:{{test}}:{name}", 0, -1)]
        expected = self._suspects_for(listed, request)
        late = any(map(self._is_late, self.model.values()))
        answer: BatchReply = self.do(self.store.exchange.send(request, worker, kinds))
        due = {i for i, k in self.model.items() if self._is_due(k) and not k.demand and k.kind in self._open(kinds)}
        suspects = {i for i in due if self.model[i].counts.suspect}
        claimed = [one.task.task_id for one in answer.claimed]
        innocent = len(due - suspects)
        assert len(set(claimed)) == len(claimed) and set(claimed) <= due
        assert [i for i in claimed if i in suspects] == expected
        taken = len(expected)
        # A late task takes the place of another one in the claim that meets it.
        assert late or len(claimed) - taken == min(count - taken, innocent)
        assert len(claimed) - taken <= min(count - taken, innocent)
        self._take(answer, worker, request)

    @rule(
        worker=workers,
        size=st.integers(1, 4),
        wait=st.sampled_from([0, 0.3, 400, 11_000]),
        suspect=st.booleans(),
        kind=st.just("of"),  # only kinds with a name have batches
        new=st.lists(ids, max_size=3, unique=True),
        ms=st.sampled_from([0, 0, 1, 500]),
    )
    def claim_batch(self, worker: str, size: int, wait: float, suspect: bool, kind: str, **given: Any) -> None:
        """A batch that is full, or old enough, is claimed as a whole, and no part of another one."""
        new: list[str] = given["new"]
        if new:
            lane: dict[str, Any] = {"tenant": "a", "cost": 1.0, "named": {}}
            self.create(new, "{}", delay=0, demand=0, kind=kind, limits=(0, 0), **lane)
            self.advance(given["ms"])
        for _ in range(20):
            self.requests += 1
            # `wait` is in ms. The number of claims is only read by the model.
            request = BatchRequest(
                (), size, suspect, f"request-{self.requests}", 0, batch=f"{size} {wait:g} -", kind=kind
            )
            index = f"maas:{{test}}:{self.store.connection.keys.of_kind(kind, 'suspects')}"
            listed = [task_id.decode() for task_id in self.server.client.zrange(index, 0, -1)]
            suspects = self._suspects_for(listed, request) if self._open(Kinds((kind,))) else []
            late = any(map(self._is_late, self.model.values()))
            answer: BatchReply = self.do(self.store.exchange.send(request, worker))
            claimed = [one.task.task_id for one in answer.claimed]
            due = {
                task_id: known
                for task_id, known in self.model.items()
                if self._is_due(known) and not known.demand and known.kind == kind and self._open(Kinds((kind,)))
            }
            assert set(claimed) <= set(due) and len(claimed) <= size
            self._check_starts(answer, suspect=suspect)
            if not late and not self.is_fair and not answer.hit:
                innocent = [known.due for known in due.values() if not known.counts.suspect]
                self._check_batch(claimed, suspects, innocent, size, wait)
            self._take(answer, worker, request)
            if claimed or not answer.hit:
                return
        raise AssertionError("claims without an end")

    def _check_batch(
        self, claimed: list[str], suspects: list[str], innocent: list[float], size: int, wait: float
    ) -> None:
        left = min(innocent, default=math.inf) + wait - self.now
        if suspects:
            assert claimed == suspects
        elif len(innocent) >= size or left < -1:
            assert len(claimed) == min(size, len(innocent))
        elif left > 1:
            assert not claimed

    def _claim_fairly(self, worker: str, count: int, kinds: Kinds, *, suspect: bool) -> None:
        """Claim until no more is announced. Then no task waits whose tenant goes on and whose limits have room."""
        for _ in range(20):
            self.requests += 1
            request = BatchRequest((), count, suspect, f"request-{self.requests}", 0)
            answer: BatchReply = self.do(self.store.exchange.send(request, worker, kinds))
            for one in answer.claimed:
                known = self.model[one.task.task_id]
                assert self._is_due(known) and not known.demand and known.kind in self._open(kinds)
            self._check_starts(answer, suspect=suspect)
            self._take(answer, worker, request)
            if not answer.hit or len(answer.claimed) == count:
                break
        else:
            raise AssertionError("claims without an end")
        if answer.hit:
            return
        found = lanes.Lanes.read(self.server.client)
        for task_id, known in self.model.items():
            if (
                self._is_due(known)
                and known.kind in self._open(kinds)
                and not known.demand
                and not known.counts.suspect
            ):
                assert not self._may_start(found, known), f"{task_id} waits for nothing"

    def _may_start(self, found: lanes.Lanes, known: Known) -> bool:
        now = START + self.now
        return known.lane.tenant not in self.paused_tenants and all(
            found.limit(name).opens(now) <= now for name in known.lane.limits
        )

    def _check_starts(self, answer: BatchReply, *, suspect: bool) -> None:
        """No task of a paused tenant starts, and no more tasks than a limit allows. Suspects are of one cohort."""
        claimed = {one.task.task_id: self.model[one.task.task_id] for one in answer.claimed}
        assert len(claimed) == len(answer.claimed)
        assert not {known.lane.tenant for known in claimed.values()} & self.paused_tenants
        cohorts = {known.counts.cohort or task_id for task_id, known in claimed.items() if known.counts.suspect}
        assert len(cohorts) <= suspect
        names = Counter(name for known in claimed.values() for name in known.lane.limits)
        running = [known for known in self.model.values() if known.state == "processing"]
        for name, number in names.items():
            limit, starts = self._limit(name), self.starts.setdefault(name, [])
            starts += [self.now] * number
            if limit is not None and limit.concurrency is not None:
                assert number + sum(name in known.lane.limits for known in running) <= limit.concurrency
            if limit is not None and limit.rate is not None:
                most, seconds = limit.rate
                assert lanes.windows(starts, {1: 1000, "1m": 60_000}[seconds]) <= most

    def _suspects_for(self, listed: list[str], request: BatchRequest) -> list[str]:
        """Those of one cohort, of which all wait if there is one."""

        def cohort_of(task_id: str) -> str:
            return self.model[task_id].counts.cohort or task_id

        if not request.may_claim_suspect or not listed:
            return []
        listed = [task_id for task_id in listed if not self._is_late(self.model[task_id])]
        if not listed:
            return []
        waiting = Counter(map(cohort_of, listed))
        whole = [i for i in listed if waiting[cohort_of(i)] >= self.model[i].counts.cohort_size]
        cohort = cohort_of((whole or listed)[0])
        return [i for i in listed if cohort_of(i) == cohort][: request.claims]

    @rule(
        worker=workers,
        fits=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3),
        suspect=st.booleans(),
        run_out=st.booleans(),
        kind=kinds,
    )
    def claim_on_gpus(self, worker: str, fits: list[int], suspect: bool, run_out: bool, kind: str) -> None:
        """As many of each demand as fit, suspects of one cohort. Tasks that are due just now come with the next one."""
        for turn in range(2):
            self.requests += 1
            places = tuple(f"{gpu_set(kind, memory)} GPU-{number} 0 {memory}" for number, memory in enumerate(fits))
            request = BatchRequest((), len(fits), suspect, f"request-{self.requests}", 0, fits=places)
            answer: BatchReply = self.do(self.store.exchange.send(request, worker, Kinds((kind,))))
            is_open = self._open(Kinds((kind,))) == [kind]
            due = {i: k for i, k in self.model.items() if is_open and self._is_due(k) and k.demand and k.kind == kind}
            claimed = {one.task.task_id: one for one in answer.claimed}
            assert set(claimed) <= set(due)
            self._check_starts(answer, suspect=suspect)
            assert len({one.fit for one in answer.claimed}) == len(answer.claimed)
            for task_id, one in claimed.items():
                assert one.demand == Demand(due[task_id].demand)
                assert fits[one.fit] == due[task_id].demand
            lost = {due[i].counts.cohort or i for i in claimed if due[i].counts.suspect}
            assert len(lost) <= suspect
            for memory in set(fits) if turn else ():
                innocent = [
                    *(i for i, k in due.items() if k.demand == memory and not k.counts.suspect and not k.lane.limits)
                ]
                innocent = [i for i in innocent if due[i].lane.tenant not in self.paused_tenants]
                assert sum(due[i].demand == memory for i in claimed) >= min(fits.count(memory), len(innocent))
            self._take(answer, worker, request)
            for one in answer.claimed if run_out else ():
                self._settle(one, self._ran_out(one.counts), worker)

    def _next_token(self) -> int:
        """One more than the last, and never below the clock."""
        self.highest = max(self.highest, math.floor(float(self.store.connection.clock) * 1000)) + 1
        return self.highest

    def _take(self, answer: BatchReply, worker: str, request: BatchRequest) -> None:
        for one in answer.claimed:
            known = self.model[one.task.task_id]
            known.attempts += 1
            assert (one.token, one.task.attempt) == (self._next_token(), known.attempts)
            # Only the reaper reads the rest of the blame.
            left = known.counts if known.counts.suspect else attrs.evolve(known.counts, blame=known.counts.lost)
            assert one.counts == left
            assert one.has_stream == (known.owner > 0)
            known.state, known.token, known.expiry = "processing", one.token, self.now + LEASE
        self.claims += answer.claimed
        self.last[worker] = request, [(one.task.task_id, one.token) for one in answer.claimed]

    @rule(worker=workers)
    def claim_again(self, worker: str) -> None:
        """The answer was lost: the same claims come again, if they are still held, and none besides."""
        request, pairs = self.last.get(worker, (None, []))
        # A request that got nothing left nothing to repeat: it is a new one.
        if request is not None and pairs:
            again = [
                (one.task.task_id, one.token) for one in self.do(self.store.exchange.send(request, worker)).claimed
            ]
            assert again == [pair for pair in pairs if self._holds(*pair)]

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        how=st.sampled_from(["complete", "retry", "fail", "snooze", "release", "cancel", "out of memory"]),
        delay=delays,
        worker=workers,
        used=st.sampled_from(["", "", "u", "c x 300", "c y 20000"]),
    )
    def settle(self, data: st.DataObject, how: str, delay: float, worker: str, used: str) -> None:
        """By whoever claimed it once: accepted once, and only under the last token."""
        one: Claimed = data.draw(st.sampled_from(self.claims))
        self._settle(one, self._settlement(one, how, delay), worker, used)

    def _settlement(self, one: Claimed, how: str, delay: float) -> Settlement:
        counts = one.counts
        made: dict[str, Callable[[], Settlement]] = {
            "complete": lambda: Settlement.complete("1", self.policy),
            "retry": lambda: attrs.evolve(
                Settlement.release(self.policy),
                delay=delay,
                counts=counts.cleared(retry=counts.retry + 1),
            ),
            "fail": lambda: Settlement.fail(ERROR, self.policy),
            "snooze": lambda: Settlement.snooze(delay, counts, self.policy),
            "release": lambda: Settlement.release(self.policy),
            "cancel": lambda: Settlement.cancel(self.policy),
            # A task that needs no GPU is never settled so.
            "out of memory": lambda: self._ran_out(counts) if one.demand else Settlement.release(self.policy),
        }
        return made[how]()

    def _settle(self, one: Claimed, settlement: Settlement, worker: str, used: str = "") -> None:
        known = self.model.get(one.task.task_id)
        self.requests += 1
        settle = self._settle_of(one, settlement, used)
        request = BatchRequest((settle,), 0, may_claim_suspect=False, request_id=f"settle-{self.requests}", exchange=1)
        first = self.do(self.store.exchange.send(request, worker)).answers
        again = self.do(self.store.exchange.send(request, worker)).answers
        if self._holds(one.task.task_id, one.token):
            answer = self._accept(one, settlement)
            assert (first, again) == ([answer], ["cancelled" if answer == "cancelled" else "already"])
        elif known is None:
            assert first == again == ["unknown"]
        else:
            assert first == again and first[0] in {"lost", "already"} | ({"cancelled"} & {known.state})

    def _settle_of(self, one: Claimed, settlement: Settlement, used: str) -> Settle:
        settle = Settle(one.task.task_id, "lease", one.token, settlement, one.counts)
        known = self.model.get(one.task.task_id)
        if known is not None and known.lane.record and used:
            more = known.lane.changed(70, dict.fromkeys(known.lane.limits, 0.5))
            settle.used = [f"u {more}" if used == "u" else used]
        return settle

    def _accept(self, one: Claimed, settlement: Settlement) -> str:
        """Note the settlement of an attempt that has its lease; return the answer."""
        known = self.model[one.task.task_id]
        ends = settlement.status == "pending" and known.is_over(self.now + settlement.delay * 1000)
        assert one.token not in known.accepted
        known.accepted.add(one.token)
        counts = settlement.counts
        if counts is not None:  # a worker does not know what is left of the blame: see _take
            settlement = attrs.evolve(settlement, counts=attrs.evolve(counts, blame=known.counts.blame))
        self._become(known, settlement, ends=ends)
        return "cancelled" if ends else "ok"

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), keeps=st.booleans(), number=st.integers(0, 3), lines=st.integers(0, 1), lost=st.booleans())
    def emit(self, data: st.DataObject, keeps: bool, number: int, lines: int, lost: bool) -> None:
        """By whoever claimed it once: written under the last token only, and once if the reply was lost."""
        one: Claimed = data.draw(st.sampled_from(self.claims))
        known = self.model.get(one.task.task_id)
        is_held = known is not None and self._holds(one.task.task_id, one.token)
        goes_on = known is not None and (known.owner == one.token or (keeps and known.owner > 0))
        before = len(known.parts) if known is not None and goes_on else 0
        parts = [Part("t", f"{one.token} {before + n} ") for n in range(number)]
        line = 1 if known is None else known.lines + 1
        unsent = Unsent(keeps, before + 1, parts, line, [f"{self.now:.0f} line"] * lines)
        emitted = Emitted(one.task.task_id, one.token, one.task.attempt, unsent)
        for _ in range(1 + lost):
            (length,) = self.do(self.store.streams.emit([emitted]))
            assert length == (None if not is_held else before + number if parts or keeps else 0)
        if not is_held:
            return
        assert known is not None
        known.lines += lines
        if parts or keeps:
            if not goes_on:
                known.parts, known.base = [], one.token
            known.parts += [part.text for part in parts]
            known.owner = one.token

    def _ran_out(self, counts: Counts) -> Settlement:
        again = counts.cleared(oom=counts.oom + 1)
        return Settlement.retry_on_gpu(Failed(ERROR), again, 0, Demand(3), "GPU-0", self.policy)

    @rule(worker=workers)
    def settle_too_late(self, worker: str) -> None:
        """A zombie's word counts for nothing while another attempt runs."""
        for one in self.claims:
            known = self.model.get(one.task.task_id)
            if known is not None and known.state == "processing" and known.token != one.token:
                settle = Settle(one.task.task_id, "lease", one.token, Settlement.complete("0", self.policy))
                assert self.do(self.store.lost.settle([settle], worker)) == ["lost"]

    @rule(worker=workers)
    def claim_what_was_lost(self, worker: str) -> None:
        """A worker stands still until its leases are over; another takes up its tasks."""
        self.advance(LEASE)
        self.reap()
        for _ in range(3):
            self.claim(worker, 3, suspect=True)

    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        held = [one for one in self.claims if self._holds(one.task.task_id, one.token)]
        keys = self.store.connection.keys.all(scripts.RENEW.keys, info=self.store.connection.keys.info(worker))
        args: list[Any] = [self.store.connection.clock, self.store.connection.keys.prefix, worker, "{}", str(LEASE), ""]
        stale = [one for one in self.claims[-5:] if one not in held]
        for one in [*held, *stale]:
            args += one.task.task_id, one.token
        lost, *_ = self.do(self.store.connection.server.run(scripts.RENEW, keys, args))
        assert sorted(int(token) for token in lost) == sorted(one.token for one in stale)
        for one in held:
            self.model[one.task.task_id].expiry = self.now + LEASE

    @rule()
    def reap(self) -> None:
        found, _ = self.do(self.store.lost.look(1e6, 0))
        expired = {i for i, k in self.model.items() if k.state == "processing" and k.expiry <= self.now}
        assert {one.task_id for one in found} == expired
        for one in found:
            known = self.model[one.task_id]
            assert one.counts == known.counts
            with_it = [other for other in found if other.info.worker == one.info.worker]
            of_its_kind = [other for other in with_it if other.counts.suspect == one.counts.suspect]
            assert one.loss.together >= (len(of_its_kind) if one.counts.suspect else len(with_it))
            settlement = decide(one.loss, one.task_id, one.counts, one.policy, one.policy.backoff())
            assert settlement is not None
            assert settlement.counts is not None
            settle = one.settle(settlement)
            ends = settlement.status == "pending" and known.is_over(self.now)
            assert self.do(self.store.lost.settle([settle], "reaper")) == ["cancelled" if ends else "ok"]
            assert self.do(self.store.lost.settle([settle], "another")) == ["lost"]
            blame = known.counts.blame + 1 / one.loss.together
            assert settlement.counts.blame == pytest.approx(blame, abs=1e-3)
            assert settlement.status == ("failed" if blame > self.policy.max_lost - 0.01 else "pending")
            self._become(known, settlement, ends=ends)
        assert not any(map(self._is_late, self.model.values())), "a look ends them"

    @rule(ms=st.sampled_from([0.3, 1, 400, LEASE, 11_000]))
    def advance(self, ms: float) -> None:
        self.now += ms
        self.store.connection.clock = f"{START + self.now:.3f}"

    def _holds(self, task_id: str, token: int) -> bool:
        known = self.model.get(task_id)
        return known is not None and known.state == "processing" and known.token == token

    def _become(self, known: Known, settlement: Settlement, *, ends: bool = False) -> None:
        """`ends`: its deadline takes the place of the comeback."""
        known.state, known.expired = ("cancelled", True) if ends else (str(settlement.status), False)
        known.due = self.now + settlement.delay * 1000
        known.counts = settlement.counts or known.counts
        if settlement.gpu is not None:
            known.demand = settlement.gpu[0].memory
        if known.state in FINISHED:
            self.totals[known.state] += 1

    # Checks after every step

    @invariant()
    def every_task_is_in_one_index(self) -> None:
        found = lanes.check(self.server.client, START + self.now)
        indexes = {*LIVE, *FINISHED, *filter(lanes.is_index, found.zsets)}
        where = sorted((member, name) for name in indexes for member in found.zset(name))
        assert [task_id for task_id, _ in where] == sorted(self.model)
        for task_id, name in where:
            known = self.model[task_id]
            ready = "suspects" if known.counts.suspect else "ready"
            ready = self.store.connection.keys.of_kind(known.kind, ready)
            ready = f"gpu:{gpu_set(known.kind, known.demand)}" if known.demand else ready
            lane = "" if known.counts.suspect else lanes.name_of(known.lane)
            waiting = name in {f"{ready}|{lane}" if lane else ready, "scheduled"}
            assert name == {"processing": "leases", "external": "external"}.get(known.state, known.state) or (
                known.state == "pending" and waiting
            ), (task_id, name, known.state)

    @invariant()
    def hashes_agree(self) -> None:
        client = self.server.client
        keys = {key.decode() for key in client.keys("maas:{test}:t:*")}
        assert keys == {f"maas:{{test}}:t:{task_id}" for task_id in self.model}
        pipe = client.pipeline(transaction=False)
        for task_id in self.model:
            pipe.hmget(f"maas:{{test}}:t:{task_id}", "s", "t", "k", "c").ttl(f"maas:{{test}}:t:{task_id}")
        answers = pipe.execute()
        for known, fields, ttl in zip(self.model.values(), answers[::2], answers[1::2], strict=True):
            state, token, counts, suspicion = fields
            assert (state or b"pending").decode() == known.state
            assert int(token or 0) == known.token <= self.highest
            assert counts_of(counts, suspicion) == known.counts
            assert (ttl >= 0) == (known.state in FINISHED)
        meta = client.hmget("maas:{test}:meta", "token", *FINISHED)
        assert [int(number or 0) for number in meta] == [self.highest, *self.totals.values()]

    @invariant()
    def streams_agree(self) -> None:
        """They have the parts of the model, and go with their tasks. A finished task has those of its last attempt."""
        client, keys = self.server.client, self.store.connection.keys
        there = {key.decode() for pattern in ("parts", "log") for key in client.keys(f"maas:{{test}}:{pattern}:*")}
        wanted = {keys.stream(i) for i, k in self.model.items() if k.parts}
        wanted |= {keys.log(i) for i, k in self.model.items() if k.lines}
        assert there == wanted
        # An attempt before, or one that was lost with its stream.
        lasts = [(max(1, known.token - 1), 1) for known in self.model.values()]
        reads = self._read([""] * len(lasts)), self._read(["{}-{}".format(*last) for last in lasts])
        for (task_id, known), last, whole, read in zip(self.model.items(), lasts, *reads, strict=True):
            for key in {keys.stream(task_id), keys.log(task_id)} & there:
                wanted_ttl = client.ttl(keys.task(task_id)) if known.state in FINISHED else 30 * 86_400
                assert wanted_ttl - 60 <= client.ttl(key) <= wanted_ttl
            is_void = known.state in FINISHED and known.owner != known.token
            assert [text for _, _, text in whole.items] == ([] if is_void else known.parts)
            # A text begins with its token.
            numbers = [(int(text.split()[0]), place) for place, text in enumerate(known.parts, 1)]
            following = [number for number in numbers if number > last]
            is_gap = following[0][1] != 2 if following else known.state in FINISHED and len(numbers) != 1
            assert bool(read.restart) == (is_void or known.owner == 0 or last[0] < known.base or is_gap)

    def _read(self, after: list[str]) -> list[Any]:
        """Read all streams behind these places, in one call: they are small."""
        places = [Place("parts", *pair) for pair in zip(self.model, after, strict=True)]
        return self.do(self.store.streams.read_first(places)) if places else []

    @invariant()
    def deadlines_hold(self) -> None:
        """They are listed while a task is pending, and readers know at once that they have passed."""
        listed = dict(self.server.client.zrange("maas:{test}:deadlines", 0, -1, withscores=True))
        pending = {i: k.over for i, k in self.model.items() if k.state == "pending" and k.lengths}
        assert listed == {task_id.encode(): START + over for task_id, over in pending.items()}
        for task_id, known in self.model.items():
            if known.lengths:
                task = self.do(self.store.reader.get(task_id))
                assert task.status == self._state(known).replace("external", "processing")
                expired = known.expired or self._is_late(known)
                assert task.cancel_reason == (
                    None if task.status != "cancelled" else "expired" if expired else "requested"
                )

    @invariant()
    def the_counts_add_up(self) -> None:
        stats = self.do(self.store.reader.stats())
        assert list(stats.paused_kinds) == (["of"] if self.is_paused else [])
        states = [self._state(known) for known in self.model.values()]
        assert stats.pending_count == states.count("pending")
        assert stats.processing_count == states.count("processing") + states.count("external")
        finished = [stats.completed_count, stats.failed_count, stats.cancelled_count]
        assert finished == [states.count(state) for state in FINISHED]


class FairMachine(Machine):
    """The same queue with more tasks, all of tenants or with limits, and workers that settle and claim at once."""

    always_fair = True

    def _create(self, **given: Any) -> None:
        number = given.pop("number")
        task_ids = [f"n{len(self.model) + len(self.claims)}-{self.requests}-{n}" for n in range(number)]
        self.create([i for i in task_ids if i not in self.model] or ["t0"], "{}", limits=(0, 0), **given)

    _lane = {  # noqa: RUF012 - strategies, by the parameters of `create`
        "tenant": tenants,
        "named": limits_of_tasks,
        "kind": kinds,
        "cost": st.sampled_from([1.0, 0.01, 50.0]),
        "number": st.integers(1, 5),
        "delay": st.sampled_from([0, 0, 0, 0.5]),
        "demand": st.sampled_from([0, 0, 0, 0, 2]),
    }
    _work = {  # noqa: RUF012 - as above
        "data": st.data(),
        "worker": workers,
        "count": st.integers(0, 8),
        "kinds": able,
        "how": st.sampled_from(["complete", "complete", "complete", "retry", "fail", "release"]),
        "used": st.sampled_from(["", "", "u", "c x 300"]),
    }

    @initialize(x=settings_of_limits, user=settings_of_limits)
    def have_limits(self, x: Limit | None, user: Limit | None) -> None:
        self.set_limit("x", x)
        self.set_limit("user:*", user)

    @rule(**_lane)
    def create_in_lane(self, **given: Any) -> None:
        self._create(**given)

    @rule(**_lane)
    def create_in_another_lane(self, **given: Any) -> None:
        self._create(**given)

    @rule(**_work)
    def work(self, **given: Any) -> None:
        self._work_for(**given)

    @rule(**_work)
    def work_on(self, **given: Any) -> None:
        self._work_for(**given)

    @rule(worker=workers, count=st.integers(1, 20), ms=st.sampled_from([0, 1, 20, 400, 1000]))
    def claim_many(self, worker: str, count: int, ms: float) -> None:
        self.advance(ms)
        self._claim_fairly(worker, count, EVERY_KIND, suspect=True)

    @rule(worker=workers)
    def lose_all(self, worker: str) -> None:
        self._claim_fairly(worker, 3, EVERY_KIND, suspect=True)
        self.advance(LEASE)
        self.reap()

    def _work_for(self, data: st.DataObject, worker: str, count: int, kinds: Kinds, how: str, used: str) -> None:
        """One request settles some attempts and claims for the slots that they leave."""
        held = [one for one in self.claims if self._holds(one.task.task_id, one.token)]
        places = data.draw(st.lists(st.integers(0, len(held) - 1), unique=True, max_size=5)) if held else []
        settlements = [(held[n], self._settlement(held[n], how, 0)) for n in places]
        settles = tuple(self._settle_of(*pair, used) for pair in settlements)
        self.requests += 1
        request = BatchRequest(settles, count, True, f"work-{self.requests}", 0)
        answer: BatchReply = self.do(self.store.exchange.send(request, worker, kinds))
        assert answer.answers == [self._accept(*pair) for pair in settlements]
        for one in answer.claimed:
            known = self.model[one.task.task_id]
            assert self._is_due(known) and not known.demand and known.kind in self._open(kinds)
        self._check_starts(answer, suspect=True)
        self._take(answer, worker, request)


@pytest.mark.long
@pytest.mark.timeout(600 * FACTOR)
@pytest.mark.parametrize(
    ("machine", "name"),
    [
        *((Machine, name) for name in SERVERS),
        (FairMachine, SERVERS[0]),
        *(pytest.param(FairMachine, name, marks=pytest.mark.rare) for name in SERVERS[1:]),
    ],
)
def test_the_scripts_agree_with_the_model(name: str, machine: type[Machine], servers: Callable[[str], Server]) -> None:
    """2,000 steps and more on the first server, fewer on the others."""
    Machine.server = servers(name)
    Machine.steps = 0
    examples = (100 if name == SERVERS[0] else 20) * FACTOR
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],  # a server is asked at each step
        ),
    )
    print(f"{name}: {Machine.steps} calls of the store")
    Machine.server.client.flushall()
