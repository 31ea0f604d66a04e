"""settle.lua, the one script that changes a task's state, and what stands beside it: by real Lua on a virtual clock."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from support import Server, quick_config

from maas_backoff import StorageFullError, TaskEntity, TaskError
from maas_backoff.domain.outcome import Failed
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.store.batch import BatchReply, BatchRequest, Claimed, Settle
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.replies import RenewReply
from maas_backoff.worker.loops.reap import settle_lost

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
"""When these tests begin, in ms."""

LEASE = 3_000

ERROR = TaskError("ValueError", "boom")


class Queue:
    """A store on a virtual clock, with short words for what workers do."""

    def __init__(self, server: Server, **task_options: Any) -> None:
        self.config = quick_config(server.storage)
        for name, value in task_options.items():
            setattr(self.config.task, name, value)
        self.policy = self.config.task.policy
        self.store = QueueStore.of(self.config)
        self.client = server.client
        self.at(0)
        self._requests = 0

    def at(self, ms: float) -> None:
        """Set the clock to so many ms after the start."""
        self.store.connection.clock = f"{START + ms:.3f}".rstrip("0").rstrip(".")

    async def create(self, *ids: str, due: float | datetime = 0, priority: int = 0) -> None:
        tasks = [NewTask(task_id, "{}", priority, due, self.policy, "") for task_id in ids]
        assert await self.store.writer.enqueue(tasks) == ["created"] * len(ids)

    async def exchange(
        self,
        claims: int = 0,
        settles: Sequence[Settle] = (),
        *,
        worker: str = "worker",
        suspect: bool = True,
        request: str | None = None,
        exchange: int = 0,
        **suspicion: Any,
    ) -> BatchReply:
        self._requests += 1
        request = BatchRequest(
            tuple(settles), claims, suspect, request or f"request-{self._requests}", exchange, **suspicion
        )
        return await self.store.exchange.send(request, worker)

    async def claim(self, claims: int = 1, **options: Any) -> list[Claimed]:
        return (await self.exchange(claims, **options)).claimed

    async def settle(self, *settles: Settle, worker: str = "worker") -> list[str]:
        return (await self.exchange(0, settles, worker=worker)).answers

    async def lose(self, *ids: str) -> None:
        """Let the leases of these tasks run out; the clock stands a lease later, and they are suspects."""
        await self.store.lost.look(1e6, 0)
        claimed = await self.claim(len(ids), worker="victim")
        assert sorted(map(name, claimed)) == sorted(ids)
        self.at(float(self.store.connection.clock) - START + LEASE)
        found = (await self.store.lost.look(1e6, 0))[0]
        lost = [one.settle(Settlement.lose(ERROR, Counts(lost=1, suspect=True), self.policy)) for one in found]
        assert await self.store.lost.settle(lost, "reaper") == ["ok"] * len(ids)

    async def lose_together(self, *ids: str, worker: str = "victim", **options: Any) -> None:
        """As `lose`, as the reaper does it: those that were lost before come back in halves."""
        claimed = await self.claim(len(ids), worker=worker, **options)
        assert sorted(map(name, claimed)) == sorted(ids)
        self.at(float(self.store.connection.clock) - START + LEASE)
        await settle_lost(self.store, "reaper", (await self.store.lost.look(1e6, 0))[0])

    async def get(self, task_id: str) -> TaskEntity:
        task = await self.store.reader.get(task_id)
        assert task is not None
        return task

    # The settlements of a claim

    def complete(self, claimed: Claimed) -> Settle:
        return self._settle(claimed, Settlement.complete('"done"', self.policy))

    def release(self, claimed: Claimed) -> Settle:
        return self._settle(claimed, Settlement.release(self.policy))

    def retry(self, claimed: Claimed, delay: float = 0) -> Settle:
        return self._settle(claimed, Settlement.retry(Failed(ERROR), claimed.counts, delay, self.policy))

    def snooze(self, claimed: Claimed, delay: float = 0) -> Settle:
        return self._settle(claimed, Settlement.snooze(delay, claimed.counts, self.policy))

    def fail(self, claimed: Claimed) -> Settle:
        return self._settle(claimed, Settlement.fail(ERROR, self.policy))

    def come_back_lost(self, claimed: Claimed) -> Settle:
        return self._settle(claimed, Settlement.lose(ERROR, Counts(lost=1, suspect=True), self.policy))

    @staticmethod
    def _settle(claimed: Claimed, settlement: Settlement) -> Settle:
        return Settle(name(claimed), "lease", claimed.token, settlement, claimed.counts)

    # Stored fields

    def hash(self, task_id: str) -> dict[bytes, bytes]:
        found = self.client.hgetall(self.store.connection.keys.task(task_id))
        assert isinstance(found, dict)
        return found

    def index(self, index: str) -> list[str]:
        return [member.decode() for member in self.client.zrange(self.store.connection.keys(index), 0, -1)]

    def everything(self) -> dict[bytes, bytes]:
        """Return all keys with what they hold, without the request record that each claim leaves."""
        return {key: self.client.dump(key) for key in self.client.scan_iter() if b"}:req:" not in key}

    def marked(self) -> bool:
        """Take the marker away; say whether it was there."""
        return bool(self.client.zpopmin(self.store.connection.keys("marker")))


def name(claimed: Claimed) -> str:
    return claimed.task.task_id


def names(claimed: list[Claimed]) -> list[str]:
    return [name(one) for one in claimed]


@pytest.fixture
async def queue(any_server: Server) -> AsyncIterator[Queue]:
    queue = Queue(any_server)
    yield queue
    await queue.store.aclose()


# Every call can be repeated


async def test_a_frame_that_is_sent_again_gives_the_same_and_settles_once(queue: Queue) -> None:
    """The same claims with the same tokens; 'already' for what it settled; no count moves twice."""
    await queue.create("old", "failing", *(f"new-{n}" for n in range(5)))
    old, failing = await queue.claim(2)
    settles = (queue.complete(old), queue.retry(failing, 60))
    request = BatchRequest(settles, claims=3, may_claim_suspect=True, request_id="the request", exchange=0)
    first = await queue.store.exchange.send(request, "worker")
    stored = queue.everything()
    for _ in range(3):
        again = await queue.store.exchange.send(request, "worker")
        assert again.answers == ["already", "already"]
        assert [(name(one), one.token, one.task.attempt, one.counts) for one in again.claimed] == [
            (name(one), one.token, one.task.attempt, one.counts) for one in first.claimed
        ]
        assert (again.hit, again.next_due) == (first.hit, first.next_due)
    assert first.answers == ["ok", "ok"]
    assert names(first.claimed) == ["new-0", "new-1", "new-2"]
    assert queue.everything() == stored
    last = b"%d" % first.claimed[-1].token
    assert queue.client.hmget(queue.store.connection.keys("meta"), "completed", "token") == [b"1", last]
    assert (await queue.get("failing")).retry_count == 1


async def test_a_replay_gives_only_what_is_still_held_under_its_token(queue: Queue) -> None:
    """Not what was settled since, nor what somebody else has claimed since, nor what was deleted."""
    await queue.create("held", "settled", "released", "taken", "deleted")
    first = await queue.claim(5, request="first")
    by_name = {name(one): one for one in first}
    assert (
        await queue.settle(
            queue.complete(by_name["settled"]), queue.release(by_name["released"]), queue.release(by_name["taken"])
        )
        == ["ok"] * 3
    )
    queue.client.zrem(queue.store.connection.keys("ready"), "released")
    (taken,) = await queue.claim(1, worker="another", exchange=1)
    assert name(taken) == "taken"
    queue.client.delete(queue.store.connection.keys.task("deleted"))
    again = await queue.claim(5, request="first")
    assert [(name(one), one.token) for one in again] == [("held", by_name["held"].token)]
    assert await queue.settle(queue.complete(by_name["taken"]), worker="third") == ["lost"]
    assert queue.hash("taken")[b"t"] == str(taken.token).encode()


async def test_another_request_of_the_same_lane_claims_anew(queue: Queue) -> None:
    await queue.create("a", "b")
    assert names(await queue.claim(1, request="first")) == ["a"]
    assert names(await queue.claim(1, request="second")) == ["b"]
    assert names(await queue.claim(1, request="second", exchange=1)) == []


async def test_a_claim_that_found_nothing_may_find_something_when_it_is_sent_again(queue: Queue) -> None:
    assert await queue.claim(1, request="first") == []
    await queue.create("a")
    assert names(await queue.claim(1, request="first")) == ["a"]


@pytest.mark.parametrize("external", [False, True])
async def test_a_hand_from_outside_may_send_again_too(queue: Queue, external: bool) -> None:
    """The second reply says what the lost one would have said: it was done, by this very call."""
    await queue.create("a")
    settlement = Settlement.release(queue.policy) if external else Settlement.cancel(queue.policy)
    settle = Settle("a", "pending", None, settlement)
    assert await queue.store.writer.settle(settle, external=external, settle_id="one") == "ok"
    assert await queue.store.writer.settle(settle, external=external, settle_id="one") == "ok"
    state = "external" if external else "cancelled"
    assert await queue.store.writer.settle(settle, external=external, settle_id="two") == state


# Tokens


async def test_tokens_only_grow(queue: Queue) -> None:
    """Over tasks, over releases and re-claims, and when an id is deleted and made anew."""
    await queue.create("a", "b")
    tokens = []
    for _ in range(3):
        claimed = await queue.claim(2)
        tokens += [one.token for one in claimed]
        assert await queue.settle(*map(queue.release, claimed)) == ["ok", "ok"]
    assert await queue.store.writer.delete("a")
    await queue.create("a")
    tokens += [one.token for one in await queue.claim(2)]
    assert tokens == sorted(set(tokens))
    assert len(tokens) == 8


async def test_an_old_token_settles_nothing(queue: Queue) -> None:
    """'lost', whatever it wants to write, and nothing changes; the new holder's outcome counts."""
    await queue.create("a")
    (old,) = await queue.claim(worker="first")
    assert await queue.settle(queue.release(old), worker="first") == ["ok"]
    (new,) = await queue.claim(worker="second")
    stored = queue.everything()
    for late in (queue.complete, queue.fail, queue.retry, queue.snooze, queue.release):
        # A settle id of its own, as if the release had never been sent.
        assert await queue.settle(late(old), worker="third") == ["lost"]
    assert queue.everything() == stored
    assert await queue.settle(queue.complete(new), worker="second") == ["ok"]
    assert await queue.settle(queue.fail(new), worker="third") == ["lost"]
    assert (await queue.get("a")).result == "done"


async def test_an_unknown_task_is_not_made_by_settling_it(queue: Queue) -> None:
    settle = Settle("nobody", "lease", 1, Settlement.complete("1", queue.policy))
    assert await queue.settle(settle) == ["unknown"]
    for precondition in ("expired", "pending", "external", "finished"):
        settle = Settle("nobody", precondition, None, Settlement.cancel(queue.policy))
        assert await queue.store.writer.settle(settle) == "unknown"
    assert {key.partition(b":call:")[1] for key in queue.everything()} == {b":call:"}, "but the answers"


async def test_one_bad_item_does_not_stop_the_others_of_its_frame(queue: Queue) -> None:
    await queue.create("a", "b", "c")
    a, b, c = await queue.claim(3)
    queue.client.delete(queue.store.connection.keys.task("a"))
    queue.client.set(queue.store.connection.keys.task("a"), "a key of another type", ex=60)
    assert await queue.settle(queue.complete(b)) == ["ok"]
    settles = [queue.complete(a), queue.retry(b), queue.complete(c)]
    assert await queue.settle(*settles, worker="another") == ["unknown", "lost", "ok"]
    queue.client.delete(queue.store.connection.keys.task("a"))


async def test_a_settlement_that_meets_another_state_hears_of_it(queue: Queue) -> None:
    """The states that stand against a precondition are the answer."""
    await queue.create("pending", "external", "done", "held")
    assert await queue.store.writer.settle(
        Settle("external", "pending", None, Settlement.release(queue.policy)), external=True
    ) == ("ok")
    claimed = {name(one): one for one in await queue.claim(3)}
    assert await queue.settle(queue.complete(claimed["done"]), queue.release(claimed["pending"])) == ["ok", "ok"]
    states = {"pending": "pending", "external": "external", "done": "completed", "held": "processing"}
    for task_id, state in states.items():
        for precondition in ("pending", "external", "finished"):
            if precondition == state:
                continue
            settle = Settle(task_id, precondition, None, Settlement.release(queue.policy))
            assert await queue.store.writer.settle(settle) == state


# Leases that run out


async def test_only_a_lease_that_ran_out_is_taken(queue: Queue) -> None:
    """Refused one ms before, accepted at its end."""
    await queue.create("a")
    (held,) = await queue.claim()
    lose = Settle("a", "expired", held.token, Settlement.lose(ERROR, Counts(lost=1, suspect=True), queue.policy))
    queue.at(LEASE - 1)
    stored = queue.everything()
    assert await queue.store.lost.settle([lose], "reaper") == ["lost"]
    assert queue.everything() == stored
    queue.at(LEASE)
    assert await queue.store.lost.settle([lose], "reaper") == ["ok"]
    assert (await queue.get("a")).lost_count == 1
    assert await queue.settle(queue.complete(held)) == ["lost"]


async def test_of_two_reapers_one_counts_the_loss(queue: Queue) -> None:
    """And one that sends again hears that it was the one."""
    await queue.create("a")
    await queue.claim()
    await queue.store.lost.look(1e6, 0)
    queue.at(LEASE)
    first, second = [(await queue.store.lost.look(1e6, 0))[0] for _ in range(2)]
    settles = [
        [f.settle(Settlement.lose(ERROR, Counts(lost=1, suspect=True), queue.policy)) for f in found]
        for found in (first, second)
    ]
    assert await queue.store.lost.settle(settles[0], "one") == ["ok"]
    assert await queue.store.lost.settle(settles[1], "two") == ["lost"]
    assert await queue.store.lost.settle(settles[0], "one") == ["already"]
    task = await queue.get("a")
    assert (task.status, task.lost_count, task.retry_count) == ("pending", 1, 0)


async def test_a_lease_renewed_after_it_was_listed_is_kept(queue: Queue) -> None:
    await queue.create("a")
    (held,) = await queue.claim()
    await queue.store.lost.look(1e6, 0)
    queue.at(LEASE)
    found = (await queue.store.lost.look(1e6, 0))[0]
    assert (await renew(queue, held))[:2] == ([], [])
    lose = found[0].settle(Settlement.lose(ERROR, Counts(lost=1, suspect=True), queue.policy))
    assert await queue.store.lost.settle([lose], "reaper") == ["lost"]
    queue.at(2 * LEASE - 1)
    assert await queue.settle(queue.complete(held)) == ["ok"]


async def renew(queue: Queue, *held: Claimed) -> RenewReply:
    """Send a heartbeat: tokens that are lost, ids with a cancel request."""
    client = await queue.store.connection.server.connect()
    return await queue.store.registry.renew(client, "worker", "{}", [(name(one), one.token) for one in held])


async def test_a_heartbeat_says_what_is_lost_and_what_is_to_be_cancelled(queue: Queue) -> None:
    """Renewing does not bring back a lease that somebody else took, nor one of a finished or deleted task."""
    await queue.create("kept", "cancel", "finished", "taken", "gone")
    claimed = {name(one): one for one in await queue.claim(5)}
    assert await queue.settle(queue.complete(claimed["finished"]), queue.release(claimed["taken"])) == ["ok", "ok"]
    assert names(await queue.claim(worker="another", exchange=1)) == ["taken"]
    queue.client.delete(queue.store.connection.keys.task("gone"))
    assert await queue.store.writer.request_cancel("cancel") == "processing"
    queue.at(1000)
    lost, cancelled, *_ = await renew(queue, *claimed.values())
    assert sorted(map(int, lost)) == sorted(claimed[one].token for one in ("finished", "taken", "gone"))
    assert cancelled == [b"cancel"]
    scores = dict(queue.client.zrange(queue.store.connection.keys("leases"), 0, -1, withscores=True))
    assert scores[b"kept"] == scores[b"cancel"] == START + 1000 + LEASE
    assert scores[b"taken"] == START + LEASE
    assert b"finished" not in scores


# Cancel requests


@pytest.mark.parametrize("how", ["retry", "snooze", "release", "come_back_lost"])
async def test_a_requested_cancel_takes_the_place_of_a_comeback(queue: Queue, how: str) -> None:
    await queue.create("a")
    (held,) = await queue.claim()
    assert await queue.store.writer.request_cancel("a") == "processing"
    assert await queue.settle(getattr(queue, how)(held)) == ["cancelled"]
    task = await queue.get("a")
    assert (task.status, task.next_execute_time) == ("cancelled", None)
    assert task.finished_at == datetime.fromtimestamp(START / 1000, UTC)
    assert await queue.claim() == []
    assert queue.index("cancelled") == ["a"]
    assert queue.client.ttl(queue.store.connection.keys.task("a")) > 0


@pytest.mark.parametrize(("how", "status"), [("complete", "completed"), ("fail", "failed")])
async def test_an_end_that_comes_before_the_cancel_wins(queue: Queue, how: str, status: str) -> None:
    await queue.create("a")
    (held,) = await queue.claim()
    await queue.store.writer.request_cancel("a")
    assert await queue.settle(getattr(queue, how)(held)) == ["ok"]
    assert (await queue.get("a")).status == status


async def test_a_cancel_request_does_not_outlive_its_task(queue: Queue) -> None:
    """Cancelled, made pending again and claimed: the old request is forgotten."""
    await queue.create("a")
    (held,) = await queue.claim()
    await queue.store.writer.request_cancel("a")
    assert await queue.settle(queue.release(held)) == ["cancelled"]
    again = Settle("a", "finished", None, Settlement.release(queue.policy))
    assert await queue.store.writer.settle(again) == "ok"
    (held,) = await queue.claim()
    assert (await renew(queue, held))[:2] == ([], [])
    assert await queue.settle(queue.retry(held)) == ["ok"]
    assert (await queue.get("a")).status == "pending"


async def test_a_cancel_is_asked_only_of_who_runs_it(queue: Queue) -> None:
    """The state is the answer; nothing is noted for a task that is not processing."""
    await queue.create("a")
    assert await queue.store.writer.request_cancel("nobody") is None
    assert await queue.store.writer.request_cancel("a") == "pending"
    assert b"x" not in queue.hash("a")
    (held,) = await queue.claim(worker="me")
    assert await queue.store.writer.request_cancel("a") == "processing"
    assert queue.index("ctl:me") == ["a"]
    await queue.settle(queue.complete(held), worker="me")
    assert await queue.store.writer.request_cancel("a") == "completed"


# Suspects


async def test_suspects_are_claimed_one_at_a_time_and_beside_others(queue: Queue) -> None:
    """At most one per claim, none when the worker may not; nobody else waits for them."""
    await queue.create("s1", "s2", "s3")
    await queue.lose("s1", "s2", "s3")
    await queue.create("a", "b")
    assert names(await queue.claim(1, suspect=False)) == ["a"]
    assert names(await queue.claim(10)) == ["s1", "b"]
    assert names(await queue.claim(10, suspect=False)) == []
    (second,) = await queue.claim(10)
    assert (name(second), second.counts.lost) == ("s2", 1)
    # Handed back, it is still a suspect.
    assert await queue.settle(queue.release(second)) == ["ok"]
    assert names(await queue.claim(10, suspect=False)) == []
    assert queue.index("suspects") == ["s3", "s2"] or queue.index("suspects") == ["s2", "s3"]


async def test_what_an_older_release_has_lost_comes_back_one_by_one(queue: Queue) -> None:
    """It names no cohort. The worker that runs one of these tasks names the task itself, whatever its id."""
    await queue.create("s 1", "s 2")
    await queue.lose("s 1", "s 2")
    (first,) = await queue.claim(10)
    assert (first.counts.cohort, first.counts.blame) == ("", 1)
    assert await queue.claim(10, cohort=f"!{name(first)}") == []
    assert names(await queue.claim(10, cohort="!s 2")) == ["s 2"]


HALVES = ["a0", "a2"], ["a1", "a3"]


@pytest.fixture
async def halved(queue: Queue) -> Queue:
    """Four tasks that were lost together, twice."""
    await queue.store.lost.look(1e6, 0)
    await queue.create("a0", "a1", "a2", "a3")
    await queue.lose_together("a0", "a1", "a2", "a3", worker="the first victim")
    await queue.lose_together("a0", "a1", "a2", "a3")
    return queue


async def test_what_was_lost_together_twice_is_claimed_in_halves(halved: Queue) -> None:
    """The other half comes when the first one has ended, or to another worker; ordinary tasks beside."""
    await halved.create("b")
    first = await halved.claim(10)
    assert names(first) == [*HALVES[0], "b"]
    counts = first[0].counts
    assert (counts.suspect, counts.lost, counts.blame, counts.cohort_size) == (True, 2, 0.5, 2)
    # The cohort that it holds has no more tasks; without one, it may take the next.
    assert await halved.claim(10, cohort=counts.cohort) == []
    assert names(await halved.claim(10, worker="another")) == HALVES[1]


async def test_a_worker_with_few_slots_goes_on_with_its_half_and_another_takes_the_other_one(halved: Queue) -> None:
    (first,) = await halved.claim(1)
    assert name(first) == "a0"
    # One task of that half is left, which comes before the other half; but another worker begins with a whole one.
    assert names(await halved.claim(10, worker="another")) == HALVES[1]
    assert names(await halved.claim(10, cohort=first.counts.cohort)) == ["a2"]


async def test_half_of_a_half_is_handed_back_and_stays_what_it_is(halved: Queue) -> None:
    first = await halved.claim(10)
    await halved.settle(*map(halved.release, first))
    again = await halved.claim(10, cohort=first[0].counts.cohort)
    assert [one.counts for one in again] == [one.counts for one in first]
    assert names(again) == HALVES[0]


async def test_a_reply_that_is_repeated_tells_of_the_cohorts_again(halved: Queue) -> None:
    first = await halved.claim(10, request="same")
    again = await halved.claim(10, request="same")
    assert [one.counts for one in again] == [one.counts for one in first]


async def test_a_half_that_is_lost_is_halved_and_blamed_the_more(halved: Queue) -> None:
    await halved.lose_together(*HALVES[0], worker="the next victim")
    task = await halved.get("a0")
    assert (task.lost_count, task.error and task.error.message) == (
        3,
        "its worker stopped renewing the lease; lost with 1 other task; that adds up to 1 of 3 losses",
    )
    # Those of which all are there come first, by their ids, as they came back at the same time.
    claims = [names(await halved.claim(10, worker=f"worker {n}")) for n in range(3)]
    assert sorted(claims) == [["a0"], HALVES[1], ["a2"]]
    assert await halved.claim(10) == []


async def test_what_was_lost_for_the_first_time_comes_back_as_any_other_task(queue: Queue) -> None:
    await queue.store.lost.look(1e6, 0)
    await queue.create("a0", "a1", "a2", "a3")
    await queue.lose_together("a0", "a1", "a2", "a3")
    await queue.create("b")
    found = await queue.claim(10, suspect=False)
    assert names(found) == ["a0", "a1", "a2", "a3", "b"]
    assert [one.counts.lost for one in found] == [1, 1, 1, 1, 0]


async def test_what_a_dead_worker_left_is_counted_once_however_it_is_listed(queue: Queue) -> None:
    """Its last claims run out later than the others, and more are lost than a look lists."""
    await queue.store.lost.look(1e6, 0)
    ids = [f"{n:02}" for n in range(9)]
    await queue.create(*ids)
    await queue.lose_together(*ids, worker="the first victim")
    await queue.claim(6, worker="victim")
    queue.at(LEASE + LEASE / 3 - 10)
    await queue.claim(3, worker="victim")
    losses: list[tuple[int, int]] = []
    for at in (2 * LEASE, 2 * LEASE, 3 * LEASE):
        queue.at(at)
        found = (await queue.store.lost.look(2 * LEASE / 3000, 0, 4))[0]
        losses += [(one.loss.together, one.loss.size) for one in found]
        await settle_lost(queue.store, "reaper", found)
    assert losses == [(9, size) for size in (5, 4) * 4 + (5,)]
    cohorts = [len(await queue.claim(20, worker=f"worker {n}")) for n in range(3)]
    assert cohorts == [5, 4, 0]


async def test_new_tasks_beside_suspects_share_the_blame(halved: Queue) -> None:
    await halved.create("b0", "b1")
    await halved.lose_together(*HALVES[0], "b0", "b1", worker="the next victim")
    blame = {one: float(halved.hash(one)[b"c"].split()[0]) for one in ("a0", "a1", "a2", "a3", "b0", "b1")}
    # Two suspects died: each is half to blame. For the new ones four tasks may be to blame.
    assert blame == {"a0": 1, "a2": 1, "a1": 0.5, "a3": 0.5, "b0": 0.25, "b1": 0.25}
    assert names(await halved.claim(9, suspect=False)) == ["b0", "b1"]


async def test_many_suspects_do_not_hide_what_waits_behind_them_for_the_same_gpu(queue: Queue) -> None:
    """They may not be claimed now: no memory is to be reserved for them, and whoever is behind gets it."""
    policy = queue.policy.overridden({"min_gpu_memory_gb": 1})

    async def create(*ids: str) -> None:
        await queue.store.writer.enqueue([NewTask(one, "{}", 0, 0, policy, '{"min_gpu_memory_gb":1}') for one in ids])

    await create(*(f"lost-{n:03}" for n in range(300)))
    await queue.store.lost.look(1e6, 0)
    fits = ("1024:0 GPU-a 0 1024",) * 300
    for time in (1, 2):
        assert len(await queue.claim(300, fits=fits, worker=f"victim {time}")) == 300
        queue.at(time * LEASE)
        while found := (await queue.store.lost.look(1e6, 0))[0]:
            await settle_lost(queue.store, "reaper", found)
    await create("behind")
    queue.client.zadd(queue.store.connection.keys("gpu:1024:0"), {"behind": 1e18})
    waiting, _, _ = await queue.store.reader.demands("0 -")
    assert [one.rank for one in waiting] == [1e18]
    assert names(await queue.claim(1, fits=fits[:1], suspect=False)) == ["behind"]
    assert (await queue.store.reader.demands("0 -"))[0] == []
    assert len((await queue.store.reader.demands("1 -"))[0]) == 1
    stats = await queue.store.reader.stats()
    assert (stats.gpu_count, stats.suspect_count) == (300, 100)  # the first hundred are looked at
    first = await queue.claim(300, fits=fits)
    assert {one.counts.cohort_size for one in first} == {150}
    assert len(first) == 150


async def test_a_repeated_claim_has_nothing_of_a_claim_on_gpus_before(queue: Queue) -> None:
    """Both may come over one exchange: what is kept of a request for its repetition is that of the last one only."""
    policy = queue.policy.overridden({"min_gpu_memory_gb": 1})
    await queue.store.writer.enqueue([NewTask("needs a GPU", "{}", 0, 0, policy, '{"min_gpu_memory_gb":1}')])
    assert names(await queue.claim(1, fits=("1024:0 GPU-a 0 1024",))) == ["needs a GPU"]
    await queue.create("a", "b")
    first = await queue.claim(2, request="again")
    again = await queue.claim(2, request="again")
    assert [(name(one), one.token, one.fit) for one in again] == [(name(one), one.token, -1) for one in first]


@pytest.mark.parametrize("how", ["retry", "snooze"])
async def test_a_suspect_that_ends_otherwise_than_by_a_loss_is_none_any_more(queue: Queue, how: str) -> None:
    """Else all tasks that a dead worker left would run one at a time, as often as they come back."""
    await queue.create("s")
    await queue.lose("s")
    (held,) = await queue.claim(10)
    assert held.counts == Counts(lost=1, suspect=True)
    assert await queue.settle(getattr(queue, how)(held, 1)) == ["ok"]
    queue.at(LEASE + 1000)
    (again,) = await queue.claim(10, suspect=False)
    assert (again.counts.lost, again.counts.suspect) == (1, False)


@pytest.mark.parametrize("how", ["retry", "snooze"])
async def test_a_task_that_comes_back_by_itself_is_no_suspect(queue: Queue, how: str) -> None:
    """Retries and snoozes, with a delay or without, are claimed all at once: no worker died of them."""
    ids = [f"task-{n}" for n in range(6)]
    await queue.create(*ids)
    claimed = await queue.claim(6)
    settles = [getattr(queue, how)(one, delay) for one, delay in zip(claimed, [0, 0, 0, 1, 1, 1], strict=True)]
    assert await queue.settle(*settles) == ["ok"] * 6
    assert names(await queue.claim(10, suspect=False)) == ids[:3]
    queue.at(1000)
    again = await queue.claim(10, suspect=False)
    assert sorted(names(again)) == ids[3:]
    # A worker that drains hands them back; a worker that waits for a GPU, too.
    assert await queue.settle(*map(queue.release, again)) == ["ok"] * 3
    assert sorted(names(await queue.claim(10, suspect=False))) == ids[3:]


async def test_a_failed_task_that_was_lost_starts_anew_without_suspicion(queue: Queue) -> None:
    await queue.create("a")
    await queue.lose("a")
    (held,) = await queue.claim()
    assert await queue.settle(queue.fail(held)) == ["ok"]
    again = Settle("a", "finished", None, Settlement(Settlement.release(queue.policy).status, 60, counts=Counts()))
    assert await queue.store.writer.settle(again) == "ok"
    assert names(await queue.claim(suspect=False)) == ["a"]


# Claims, hits and wake-ups


async def test_a_claim_takes_no_more_than_its_count_and_says_when_it_was_met(queue: Queue) -> None:
    """`hit` means that there may be more; the marker is set again only if there is."""
    await queue.create(*(f"task-{n}" for n in range(5)))
    assert queue.marked()
    answer = await queue.exchange(3)
    assert (names(answer.claimed), answer.hit, queue.marked()) == (["task-0", "task-1", "task-2"], True, True)
    answer = await queue.exchange(2)
    assert (len(answer.claimed), answer.hit, queue.marked()) == (2, True, False)
    answer = await queue.exchange(2)
    assert (len(answer.claimed), answer.hit, queue.marked()) == (0, False, False)
    answer = await queue.exchange(0)
    assert (len(answer.claimed), answer.hit, queue.marked()) == (0, False, False)


async def test_what_becomes_ready_sets_the_marker(queue: Queue) -> None:
    """A comeback at once, one that is the earliest to come, a loss; an end of a task does not."""
    await queue.create("a", "b", "c")
    a, b, c = await queue.claim(3)
    queue.marked()
    for settle, sets in [
        (queue.retry(a), True),
        (queue.retry(b, 60), True),
        (queue.retry(c, 61), False),
        (None, False),
    ]:
        await queue.settle(*([settle] if settle else []))
        assert queue.marked() is sets
    (a,) = await queue.claim()
    await queue.settle(queue.complete(a))
    assert not queue.marked()


async def test_each_answer_says_when_the_next_task_is_due(queue: Queue) -> None:
    """In seconds from now, None when none is scheduled, and never less than nothing."""
    assert (await queue.exchange(1)).next_due is None
    await queue.create("later", due=9)
    await queue.create("sooner", due=5)
    assert (await queue.exchange(1)).next_due == 5
    queue.at(4250)
    assert (await queue.exchange(0)).next_due == 0.75
    queue.at(5000)
    answer = await queue.exchange(1)
    assert (names(answer.claimed), answer.next_due) == (["sooner"], 4)
    queue.at(10_000)
    assert (await queue.exchange(0)).next_due == 0
    assert (await queue.exchange(1)).next_due is None


async def test_a_scheduled_task_is_claimable_exactly_when_it_is_due(queue: Queue) -> None:
    """Not one ms before; by delay, by moment and after a retry alike."""
    await queue.create("delayed", due=5)
    await queue.create("planned", due=datetime.fromtimestamp(START / 1000 + 5, UTC))
    await queue.create("retried")
    (held,) = await queue.claim()
    await queue.settle(queue.retry(held, 5))
    assert (await queue.get("retried")).next_execute_time == datetime.fromtimestamp(START / 1000 + 5, UTC)
    queue.at(4999)
    assert await queue.claim(10) == []
    assert (await queue.store.reader.stats()).scheduled_count == 3
    queue.at(5000)
    assert (await queue.store.reader.stats()).scheduled_count == 0
    assert sorted(names(await queue.claim(10))) == ["delayed", "planned", "retried"]


async def test_due_tasks_beyond_the_count_stay_in_order(queue: Queue) -> None:
    """Ready, scheduled and prioritised tasks are claimed by rank, however small the claims are."""
    await queue.create("s1", due=1)
    await queue.create("s2", due=2)
    queue.at(1500)
    await queue.create("r1", "r2")
    queue.at(2500)
    await queue.create("r3")
    await queue.create("urgent", priority=-1)
    order = []
    while claimed := await queue.claim(1):
        order += names(claimed)
    assert order == ["urgent", "s1", "r1", "r2", "s2", "r3"]


# Data that somebody has changed by hand


@pytest.mark.parametrize("wrong_type", [False, True])
@pytest.mark.parametrize("index", ["ready", "scheduled", "suspects"])
async def test_an_entry_without_its_task_is_dropped_and_stops_nobody(
    queue: Queue, index: str, wrong_type: bool
) -> None:
    """Its hash deleted by hand, or another type: the others behind it are found, at once."""
    if index == "suspects":
        await queue.create("ghost", "other")
        await queue.lose("ghost", "other")
    else:
        delay = 1 if index == "scheduled" else 0
        await queue.create("ghost", due=delay)
        await queue.create("other", due=delay)
        queue.at(delay * 1000)
    key = queue.store.connection.keys.task("ghost")
    queue.client.delete(key)
    if wrong_type:
        queue.client.set(key, "not a hash", ex=60)
    queue.marked()
    claimed: list[Claimed] = []
    for _ in range(10):
        answer = await queue.exchange(1)
        claimed += answer.claimed
        if not (answer.hit or queue.marked() or answer.next_due == 0):
            break  # a worker would sleep now
    assert names(claimed) == ["other"]
    assert "ghost" not in queue.index(index)
    queue.client.delete(key)


@pytest.mark.parametrize("wrong_type", [False, True])
async def test_a_lease_without_its_task_stops_no_heartbeat_and_no_reaper(queue: Queue, wrong_type: bool) -> None:
    await queue.create("ghost", "other")
    ghost, other = await queue.claim(2)
    await queue.store.lost.look(1e6, 0)
    key = queue.store.connection.keys.task("ghost")
    queue.client.delete(key)
    if wrong_type:
        queue.client.set(key, "not a hash", ex=60)
    assert (await renew(queue, ghost, other))[:2] == ([str(ghost.token).encode()], [])
    assert await queue.store.writer.report_progress(
        [("ghost", ghost.token, 1, None), ("other", other.token, 2, None)]
    ) == [
        False,
        True,
    ]
    queue.at(LEASE)
    found = (await queue.store.lost.look(1e6, 0))[0]
    assert [one.task_id for one in found] == ["other"]
    assert queue.index("leases") == ["other"]
    queue.client.delete(key)


# Finished tasks that are kept


async def test_finished_tasks_get_their_time_to_live_and_lose_it_by_a_retry(queue: Queue) -> None:
    queue.config.task.result_ttl, queue.config.task.failed_ttl = 100, 200
    policy = queue.config.task.policy
    await queue.create("done", "failed", "cancelled")
    done, failed, cancelled = await queue.claim(3)
    ends = [
        (done, Settlement.complete("1", policy), 100),
        (failed, Settlement.fail(ERROR, policy), 200),
        (cancelled, Settlement.cancel(policy), 100),
    ]
    for held, settlement, ttl in ends:
        key = queue.store.connection.keys.task(name(held))
        assert queue.client.ttl(key) == -1
        assert await queue.settle(Settle(name(held), "lease", held.token, settlement)) == ["ok"]
        assert ttl - 2 <= queue.client.ttl(key) <= ttl
        scores = queue.client.zrange(queue.store.connection.keys(settlement.status), 0, -1, withscores=True)
        assert [score for _, score in scores] == [START + ttl * 1000]
    for task_id in ("failed", "cancelled"):
        again = Settle(task_id, "finished", None, Settlement.release(policy))
        assert await queue.store.writer.settle(again) == "ok"
        assert queue.client.ttl(queue.store.connection.keys.task(task_id)) == -1
        task = await queue.get(task_id)
        assert (task.status, task.finished_at, task.error) == ("pending", None, None)
    assert (queue.index("failed"), queue.index("cancelled")) == ([], [])
    refused = Settle("done", "finished", None, Settlement.release(policy))
    assert await queue.store.writer.settle(refused) == "completed"
    assert queue.client.ttl(queue.store.connection.keys.task("done")) > 0


async def test_indexes_of_finished_tasks_lose_what_has_expired(queue: Queue) -> None:
    """Each settle trims twice what it adds; the reaper trims the rest; counts leave out what has expired."""
    await queue.create(*(f"task-{n}" for n in range(9)))
    claimed = await queue.claim(9)
    assert await queue.settle(*map(queue.complete, claimed[:8])) == ["ok"] * 8
    assert (await queue.store.reader.stats()).completed_count == 8
    queue.at(600_001)
    assert (await queue.store.reader.stats()).completed_count == 0
    assert await queue.settle(queue.complete(claimed[8])) == ["ok"]
    assert len(queue.index("completed")) == 8 - 2 + 1
    await queue.store.lost.look(1e6, 0)
    assert queue.index("completed") == ["task-8"]


async def test_the_number_of_finished_tasks_is_bounded(any_server: Server) -> None:
    """The oldest go first, with their hashes; other states have bounds of their own."""
    queue = Queue(any_server, max_finished=3)
    await queue.create(*(f"task-{n}" for n in range(8)))
    claimed = await queue.claim(8)
    await queue.settle(queue.fail(claimed[7]))
    for n in range(7):
        queue.at(n)
        assert await queue.settle(queue.complete(claimed[n])) == ["ok"]
    kept = ["task-4", "task-5", "task-6"]
    assert queue.index("completed") == kept
    assert [f"task-{n}" for n in range(8) if queue.hash(f"task-{n}")] == [*kept, "task-7"]
    assert queue.client.hget(queue.store.connection.keys("meta"), "completed") == b"7"
    await queue.store.aclose()


async def test_many_at_once_do_not_stay_above_the_bound(any_server: Server) -> None:
    """A batch request may bring more than the bound; the next ones take it back."""
    queue = Queue(any_server, max_finished=3)
    await queue.create(*(f"task-{n:02}" for n in range(20)))
    claimed = await queue.claim(20)
    assert await queue.settle(*map(queue.complete, claimed[:10])) == ["ok"] * 10
    for n in range(10, 20):
        queue.at(n)
        await queue.settle(queue.complete(claimed[n]))
    assert queue.index("completed") == ["task-17", "task-18", "task-19"]
    await queue.store.aclose()


async def test_an_old_entry_of_an_id_does_not_cost_its_new_task(any_server: Server) -> None:
    """An id whose finished task has expired, made anew, while its old entry is still in the index: it is kept."""
    queue = Queue(any_server, max_finished=1)
    await queue.create("again")
    await queue.settle(*map(queue.complete, await queue.claim()))
    any_server.client.delete(queue.store.connection.keys.task("again"))  # its time to live has ended
    await queue.create("again", due=60)
    await queue.create("other")
    queue.at(1)
    await queue.settle(*map(queue.complete, await queue.claim()))
    assert queue.index("completed") == ["other"]
    assert (await queue.get("again")).status == "pending"
    await queue.store.aclose()


# A server whose memory is full


@contextmanager
def full(server: Server) -> Iterator[None]:
    """Let the server refuse whatever takes memory."""
    server.client.config_set("maxmemory-policy", "noeviction")
    server.client.config_set("maxmemory", server.client.info("memory")["used_memory"] - 1000)
    try:
        yield
    finally:
        server.client.config_set("maxmemory", 0)


async def test_a_full_server_refuses_new_tasks_whole(any_server: Server, queue: Queue) -> None:
    """StorageFullError, and not one key written: also for a queue that it does not know yet."""
    stored = queue.everything()
    with full(any_server):
        with pytest.raises(StorageFullError):
            await queue.create("a", "b")
        assert queue.everything() == stored == {}
    await queue.create("known")
    stored = queue.everything()
    with full(any_server), pytest.raises(StorageFullError):
        await queue.create("a", "b")
    assert queue.everything() == stored


async def test_a_full_server_lets_existing_tasks_go_on(any_server: Server, queue: Queue) -> None:
    """Claims, heartbeats, outcomes of every kind, losses, marks, deletes: nothing of a running task is refused."""
    await queue.create("done", "failed", "retried", "lost", "released", "waits", "by hand")
    await queue.store.lost.look(1e6, 0)
    with full(any_server):
        claimed = {name(one): one for one in await queue.claim(5)}
        assert list(claimed) == ["done", "failed", "retried", "lost", "released"]
        assert (await renew(queue, *claimed.values()))[:2] == ([], [])
        result = Settlement.complete('"' + 10_000 * "x" + '"', queue.policy)
        assert (
            await queue.settle(
                Settle("done", "lease", claimed["done"].token, result),
                queue.fail(claimed["failed"]),
                queue.retry(claimed["retried"], 60),
                queue.release(claimed["released"]),
            )
            == ["ok"] * 4
        )
        external = Settle("by hand", "pending", None, Settlement.release(queue.policy))
        assert await queue.store.writer.settle(external, external=True) == "ok"
        assert (await queue.get("done")).result == 10_000 * "x"
        again = Settle("failed", "finished", None, Settlement.release(queue.policy))
        assert await queue.store.writer.settle(again) == "ok"
        queue.at(LEASE)
        (found,) = (await queue.store.lost.look(1e6, 0))[0]
        lose = found.settle(Settlement.lose(ERROR, Counts(lost=1, suspect=True), queue.policy))
        assert await queue.store.lost.settle([lose], "reaper") == ["ok"]
        assert (
            await queue.store.writer.settle(Settle("waits", "pending", None, Settlement.cancel(queue.policy))) == "ok"
        )
        assert await queue.store.writer.delete("waits")
        await queue.store.registry.leave("worker")


async def test_a_full_server_lets_running_tasks_be_watched_and_stopped(any_server: Server, queue: Queue) -> None:
    """Progress, cancel requests and waiting write little, to tasks that exist: they are not refused either."""
    await queue.create("a")
    (held,) = await queue.claim()
    with full(any_server):
        assert await queue.store.writer.report_progress([("a", held.token, 50, "half way")]) == [True]
        task = await queue.store.reader.get("a", watch=10)
        assert task is not None
        assert task.progress == 50
        assert queue.client.zscore("maas:{test}:watched", "a") == START + 10_000
        assert await queue.store.writer.request_cancel("a") == "processing"
        assert queue.index("ctl:worker") == ["a"]


# Tokens


async def test_tokens_grow_from_call_to_call_whatever_the_clock_does(queue: Queue) -> None:
    """One more than the last, and at least the clock in us: a counter that is behind catches up, one ahead goes on."""
    await queue.create(*"abcdef")
    queue.client.hset(queue.store.connection.keys("meta"), "token", 41)  # of a release that only counted
    tokens = [one.token for one in await queue.claim(2)]
    assert tokens == [START * 1000 + 1, START * 1000 + 2]
    queue.at(-60_000)
    tokens += [one.token for one in await queue.claim(1)]
    assert tokens[-1] == START * 1000 + 3
    queue.at(1)
    tokens += [one.token for one in await queue.claim(1)]
    assert tokens[-1] == START * 1000 + 1001
    queue.client.delete(queue.store.connection.keys("meta"))
    queue.at(2)
    tokens += [one.token for one in await queue.claim(2)]
    assert tokens == sorted(set(tokens))
    assert all(token < 2**53 for token in tokens)


async def test_a_task_that_is_marked_by_hand_has_a_token_of_its_own(queue: Queue) -> None:
    await queue.create("marked", "claimed")
    marked = Settle("marked", "pending", None, Settlement.release(queue.policy))
    assert await queue.store.writer.settle(marked, external=True) == "ok"
    (claimed,) = await queue.claim(1)
    task = await queue.get("marked")
    assert START * 1000 < task.token < claimed.token
