"""The history counts what the server has accepted, once; names of errors that are seen no more make room."""

import secrets
from collections.abc import AsyncIterator
from datetime import timedelta

import attrs
import pytest
from support import Server, quick_config

from maas_backoff import StorageConfig
from maas_backoff.domain.history import step_numbers
from maas_backoff.domain.outcome import Failed, LeaseExpired
from maas_backoff.domain.settlement import Counts, Settlement, decide
from maas_backoff.domain.tally import Tally, tallied
from maas_backoff.domain.task import TaskError
from maas_backoff.store.batch import BatchReply, BatchRequest, Claimed, Settle
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.loops.reap import settle_lost
from maas_backoff.worker.outbox import Outbox
from maas_backoff.worker.requests import BatchRequests
from maas_backoff.worker.slots import Slots
from maas_backoff.worker.sums import SettleSums
from maas_backoff.worker.suspects import Suspects
from maas_backoff.worker.wake_ups import WakeUps

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
ERROR = TaskError("ValueError", "boom")
POLICY = quick_config(StorageConfig()).task.policy


class Queue:
    """A queue on a virtual clock, and one worker that is driven by hand."""

    def __init__(self, server: Server) -> None:
        config = quick_config(server.storage)
        self.policy = config.task.policy
        self.store = QueueStore.of(config)
        self.client = server.client
        self._requests = 0
        self.at(0)

    def at(self, seconds: float) -> None:
        self.store.connection.clock = f"{START + seconds * 1000:.0f}"

    async def claim(self, *ids: str) -> list[Claimed]:
        await self.store.writer.enqueue([NewTask(task_id, "{}", 0, 0, self.policy, "") for task_id in ids])
        return (await self.exchange(claims=len(ids))).claimed

    async def exchange(self, *settles: Settle, claims: int = 0, tally: str = "") -> BatchReply:
        self._requests += 1
        self.last = BatchRequest(settles, claims, True, f"{self._requests}", 0, tally)
        return await self.store.exchange.send(self.last, "w")

    def retry(self, one: Claimed, kind: str = "ValueError") -> Settle:
        failed = Failed(TaskError(kind, "boom"))
        return self.settle(one, Settlement.retry(failed, one.counts, 1, self.policy))

    def settle(self, one: Claimed, settlement: Settlement) -> Settle:
        return Settle(one.task.task_id, "lease", one.token, settlement, one.counts)

    async def total(self) -> dict[str, object]:
        total = (await self.store.reader.history(2)).total
        measured = {"waits", "settles", "runs", "gpu_peaks", "gpu_needs", "batch_sizes", "batch_waits"}
        told = attrs.asdict(total, filter=lambda field, value: bool(value) and field.name not in measured)
        return told | {"runs": total.runs.count}


@pytest.fixture
async def queue(any_server: Server) -> AsyncIterator[Queue]:
    queue = Queue(any_server)
    yield queue
    await queue.store.aclose()


async def test_a_refused_outcome_counts_nothing_and_the_others_of_its_request_do(queue: Queue) -> None:
    a, b, c = await queue.claim("a", "b", "c")
    stale = attrs.evolve(b, token=b.token - 5)
    complete = queue.settle(c, Settlement.complete("1", queue.policy))
    answer = await queue.exchange(queue.retry(a), queue.retry(stale, "OSError"), complete, tally="r1 3")
    assert answer.answers == ["ok", "lost", "ok"]
    again = (await queue.store.exchange.send(queue.last, "w")).answers
    assert again == ["already", "lost", "already"]
    assert await queue.total() == {"completed": 1, "retried": 1, "errors": {"ValueError": 1}, "runs": 3}


async def test_a_comeback_that_a_cancel_takes_the_place_of_is_none(queue: Queue) -> None:
    """The attempt has failed, so its error counts; the task was not retried."""
    a, b = await queue.claim("a", "b")
    for task_id in "ab":
        await queue.store.writer.request_cancel(task_id)
    answer = await queue.exchange(queue.retry(a), queue.settle(b, Settlement.release(queue.policy)))
    assert answer.answers == ["cancelled", "cancelled"]
    assert await queue.total() == {"cancelled": 2, "errors": {"ValueError": 1}, "runs": 0}


async def test_two_reapers_that_list_the_same_losses_count_each_once(queue: Queue) -> None:
    await queue.store.lost.look(1e6, 0)
    await queue.claim("a", "b", "c")
    queue.at(4)
    first, second = (await queue.store.lost.look(1e6, 0, limit=2))[0], (await queue.store.lost.look(1e6, 0))[0]
    assert (len(first), len(second)) == (2, 3)
    await settle_lost(queue.store, "one", first)
    await settle_lost(queue.store, "two", second)
    await settle_lost(queue.store, "two", second)
    assert await queue.total() == {"lost": 3, "errors": {"lease_lost": 3}, "runs": 0}


async def test_what_was_not_counted_goes_with_the_next_request() -> None:
    """A request of which everything was refused: durations of other attempts went with it."""
    tally, outbox, wake_ups = Tally(), Outbox(), WakeUps()
    requests = BatchRequests(Slots(2, wake_ups), outbox, wake_ups, Suspects(), tally, SettleSums(), batch_size=2)
    tally.runs[3] += 2
    tally.waits[5] += 1
    tally.settles[40] += 1
    outbox.put(Settle("a", "lease", 1, Settlement.complete("1", POLICY)), _Ended())  # type: ignore[arg-type] - only its token is looked at
    request = requests.next(0)
    assert request is not None and tally.take(0) == ""
    requests.answered(request, BatchReply(["lost"], [], None, hit=False), 0)
    told = ["r3 2", "s23 1", "w5 1"]
    assert sorted(request.tally.splitlines()) == told
    assert sorted(tally.take(0).splitlines()) == sorted([*told, "s0 1"])


@attrs.define
class _Ended:
    token: int = 1

    @property
    def claimed(self) -> "_Ended":
        return self

    counts: Counts = Counts()
    kind: str = ""
    tenant: str = ""
    ran: float = 0

    @property
    def task(self) -> "_Ended":
        return self


def test_a_tally_that_is_put_back_is_added() -> None:
    tally = Tally()
    tally.runs[1] += 1
    tally.put_back("r1 2\nw3 4")
    assert sorted(tally.take(0).splitlines()) == ["r1 3", "w3 4"]


def test_what_came_of_an_attempt_in_names() -> None:
    policy, counts = POLICY, Counts()
    lost = decide(LeaseExpired(), "a", Counts(lost=1), policy, policy.backoff())
    assert lost is not None
    assert tallied(Settlement.complete("1", policy), counts) == ""
    assert tallied(Settlement.cancel(policy), counts) == ""
    assert tallied(Settlement.release(policy), counts) == "released"
    assert tallied(Settlement.snooze(1, counts, policy), counts) == "snoozed"
    assert tallied(Settlement.retry(Failed(ERROR), counts, 1, policy), counts) == "retried e:ValueError"
    assert tallied(Settlement.fail(TaskError("an error\nof mine", ""), policy), counts) == " e:anerrorofmine"
    assert tallied(lost, Counts(lost=1)) == "lost e:lease_lost"


async def fail_all(queue: Queue, kinds: list[str]) -> None:
    for start in range(0, len(kinds), 100):
        some = kinds[start : start + 100]
        claimed = await queue.claim(*(secrets.token_hex(8) for _ in some))
        ends = (Settlement.fail(TaskError(kind, ""), queue.policy) for kind in some)
        answer = await queue.exchange(*(queue.settle(one, end) for one, end in zip(claimed, ends, strict=True)))
        assert set(answer.answers) == {"ok"}


async def test_names_that_are_seen_no_more_make_room(queue: Queue) -> None:
    """At most 400 names and "other"; what is seen again and again keeps its name, and nothing is counted less."""
    await fail_all(queue, ["Often"])
    for hour in range(3):
        queue.at(hour * 3600)
        await fail_all(queue, [f"Failed_{hour}_{n}" for n in range(300)])
        await fail_all(queue, ["Often"])
    history = await queue.store.reader.history(60)
    errors = history.total.errors
    assert sum(errors.values()) == 904 and errors["Often"] == 4
    assert len(errors) == 401 and errors["other"] == 904 - 4 - 399
    assert history.recent.errors["Often"] == 1 and sum(history.recent.errors.values()) == 301
    queue.at(4 * 3600)
    await fail_all(queue, [f"Failed_4_{n}" for n in range(900)])
    recent = (await queue.store.reader.history(1)).recent.errors
    assert sum(recent.values()) == 900 and len(recent) <= 401
    assert queue.client.hlen("maas:{test}:totals") < 500 and queue.client.zcard("maas:{test}:errors") == 400


async def test_longer_steps_have_what_their_minutes_have(queue: Queue) -> None:
    """Each number is in one step of ten minutes, and in one hour, also after hours in which nothing happened."""
    ended: list[tuple[int, int]] = []
    for number, minute in enumerate((0, 1, 11, 12, 55, 61, 400, 401)):
        queue.at(60 * minute)
        (claimed,) = await queue.claim(f"t{number}")
        await queue.exchange(queue.settle(claimed, Settlement.complete("1", queue.policy)), tally=f"r{number} 2")
        ended.append((minute, number))
    begin = START // 60_000
    for length, steps in ((1, 402), (10, 60), (60, 24)):
        history = await queue.store.reader.history(steps, length)
        assert history.step == timedelta(minutes=length) and len(history.steps) == steps
        found = {
            int(one.start.timestamp()) // 60 // length: (one.completed, one.runs.count)
            for one in history.steps
            if one.start is not None and one.runs.count
        }
        expected: dict[int, tuple[int, int]] = {}
        for minute, _ in ended:
            step = (begin + minute) // length
            completed, runs = expected.get(step, (0, 0))
            expected[step] = completed + 1, runs + 2
        assert found == expected
        assert history.recent.completed == history.total.completed == len(ended)
    assert queue.client.ttl(f"maas:{{test}}:h10:{(begin + 401) // 10}") > 86_400
    assert queue.client.ttl(f"maas:{{test}}:h60:{(begin + 401) // 60}") > 7 * 86_400


async def test_a_first_failed_task_is_in_its_step(queue: Queue) -> None:
    """Also on the general path, which counts the end of the task before the step begins."""
    await fail_all(queue, ["Boom", "Boom"])
    for length in (10, 60):
        (step,) = (await queue.store.reader.history(1, length)).steps
        assert (step.failed, step.errors) == (2, {"Boom": 2})


def test_the_numbers_of_a_step_after_a_name_was_dropped() -> None:
    before = {"completed": 3, "e:Old": 7, "e:other": 1, "e:Same": 2}
    after = {"completed": 5, "e:other": 8 + 2, "e:Same": 2, "e:New": 4}
    assert step_numbers(before, after) == {"completed": 2, "e:other": 2, "e:New": 4}


async def test_names_from_before_they_were_aged_make_room_too(queue: Queue) -> None:
    """A hash of totals that an earlier release has filled, and then counted only "other"."""
    queue.client.hset("maas:{test}:totals", mapping={f"e:Old_{n}": 2 for n in range(400)} | {"e:other": 7, "w1": 3})
    await fail_all(queue, ["New", "Newer", "Old_399"])
    errors = (await queue.store.reader.history(1)).total.errors
    assert (errors["New"], errors["Newer"], errors["Old_399"]) == (1, 1, 3)
    assert len(errors) == 401 and sum(errors.values()) == 400 * 2 + 7 + 3
