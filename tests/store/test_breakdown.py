"""The history by kind and by tenant: bounded, with the largest names, and free for queues that have neither."""

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from support import Server, quick_config

from maas_backoff import StorageConfig
from maas_backoff.domain.breakdown import Breakdown, SettledAttempts, added, broken_down, lines_of
from maas_backoff.domain.lane import Lane
from maas_backoff.domain.outcome import Failed, Snoozed
from maas_backoff.domain.settlement import Counts, Settlement, decide
from maas_backoff.domain.task import TaskError
from maas_backoff.domain.waiting import at
from maas_backoff.store.batch import BatchReply, BatchRequest, Settle
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
POLICY = quick_config(StorageConfig()).task.policy


class Queue:
    """A queue on a virtual clock, and one worker that is driven by hand."""

    def __init__(self, server: Server) -> None:
        self.store = QueueStore.of(quick_config(server.storage))
        self.client = server.client
        self._requests = 0
        self.at(0)

    def at(self, seconds: float) -> None:
        self.store.connection.clock = f"{START + seconds * 1000:.0f}"

    async def settle(self, lines: str, count: int = 1) -> BatchReply:
        """Run new tasks to their end in one batch request, with lines of the breakdown."""
        names = [f"{self._requests}-{n}" for n in range(count)]
        await self.store.writer.enqueue([NewTask(name, "{}", 0, 0, POLICY, "") for name in names])
        claimed = (await self._send(BatchRequest((), count, False, self._id(), 0))).claimed
        ends = [Settle(one.task.task_id, "lease", one.token, Settlement.complete("1", POLICY)) for one in claimed]
        self.last = BatchRequest(tuple(ends), 0, False, self._id(), 0, breakdown=lines)
        return await self._send(self.last)

    async def _send(self, request: BatchRequest) -> BatchReply:
        return await self.store.exchange.send(request, "w")

    def _id(self) -> str:
        self._requests += 1
        return f"{self._requests}"

    async def totals(self, by: Any = "kind", steps: int = 60, minutes: int = 1, name: str = "") -> dict[str, Any]:
        found = await self.store.breakdowns.read(by, steps, minutes, name)
        return {name: (one.completed, one.failed, one.retried, one.run_time) for name, one in found.totals.items()}

    def names(self) -> list[bytes]:
        return sorted(key for of in "kt" for key in self.client.scan_iter(f"*:h{of}*"))


@pytest.fixture
async def queue(any_server: Server) -> AsyncIterator[Queue]:
    queue = Queue(any_server)
    yield queue
    await queue.store.aclose()


async def test_settles_count_by_kind_and_by_tenant_in_their_step(queue: Queue) -> None:
    await queue.settle("k render 2 0 1 2500\nt acme 2 0 1 2500")
    await queue.settle("k render 1 0 0 500\nk upscale 0 1 0 10")
    queue.at(60)
    await queue.settle("k render 0 3 0 1500")
    queue.at(59 * 60)
    found = await queue.store.breakdowns.read("kind", 60)
    assert list(found.names) == ["render", "upscale"] and found.step == timedelta(minutes=1)
    first, second, third, *_ = found.names["render"]
    assert first == SettledAttempts(at(START), 3, 0, 1, 3) and second == SettledAttempts(
        at(START + 60_000), 0, 3, 0, 1.5
    )
    assert third == SettledAttempts(at(START + 120_000)) and third.mean_run_time is None
    assert first.count == 4 and first.mean_run_time == 0.75
    assert await queue.totals("tenant") == {"acme": (2, 0, 1, 2.5)}
    assert await queue.totals(steps=6, minutes=10) == {"render": (3, 3, 1, 4.5), "upscale": (0, 1, 0, 0.01)}
    assert await queue.totals(name="upscale") == {"upscale": (0, 1, 0, 0.01)}
    assert await queue.totals(name="none") == {"none": (0, 0, 0, 0)}
    assert [queue.client.ttl(key) > 7000 for key in queue.names()] == [True] * 5


async def test_a_queue_without_kinds_and_tenants_has_no_key(queue: Queue) -> None:
    await queue.settle("")
    assert queue.names() == [] and await queue.totals() == {}


async def test_a_repeated_request_and_a_refused_one_count_nothing(queue: Queue) -> None:
    await queue.settle("k render 1 0 0 5")
    assert (await queue._send(queue.last)).answers == ["already"]
    assert await queue.totals() == {"render": (1, 0, 0, 0.005)}
    stale = Settle("1-0", "lease", 5, Settlement.complete("1", POLICY))
    await queue._send(BatchRequest((stale,), 0, False, queue._id(), 0, breakdown="k render 1 0 0 5"))
    assert await queue.totals() == {"render": (1, 0, 0, 0.005)}


async def test_the_names_of_a_step_are_bounded_and_busy_ones_stay(queue: Queue) -> None:
    """A name that comes late and is busy gets a place, and the sum of all is kept."""
    for n in range(0, 400, 50):
        few = "\n".join(f"t few{n + m} 1 0 0 1" for m in range(50))
        await queue.settle(f"{few}\nt early 20 0 0 20" + ("\nt late 20 5 0 20" if n >= 100 else ""))
    for key in queue.names():
        assert queue.client.hlen(key) == 33
    found = await queue.store.breakdowns.read("tenant", 1)
    assert list(found.names)[:2] == ["early", "late"] and len(found.names) == 20
    totals = found.totals
    assert totals["early"].completed == 160 and (totals["late"].completed, totals["late"].failed) == (120, 30)
    everything = added([*totals.values(), *found.others])
    assert (everything.completed, everything.failed) == (400 + 160 + 120, 30)


async def test_a_field_that_a_person_has_overwritten_is_begun_anew(queue: Queue) -> None:
    await queue.settle("k render 1 0 0 5")
    for key in queue.names():
        queue.client.hset(key, "render", "mine")
    assert await queue.totals() == {"render": (0, 0, 0, 0)}
    await queue.settle("k render 1 0 0 5")
    assert await queue.totals() == {"render": (1, 0, 0, 0.005)}
    for key in queue.names():
        queue.client.set(key, "mine")
    assert (await queue.settle("k render 1 0 0 5")).answers == ["ok"]
    queue.client.delete(*queue.names())


def test_the_lines_of_settled_attempts() -> None:
    before, error = Counts(), TaskError("ValueError", "boom")
    retry = Settlement.retry(Failed(error), before, 1, POLICY)
    snooze = decide(Snoozed(1), "a", before, POLICY, POLICY.backoff())
    assert snooze is not None
    done, failed = Settlement.complete("1", POLICY), Settlement.fail(error, POLICY)
    ended = [
        ("render", "", done, before, 0.25),
        ("render", "acme", retry, before, 0.5),
        ("", "acme", failed, before, 1),
        ("render", "acme", snooze, before, 9),
        ("render", "acme", Settlement.cancel(POLICY), before, 9),
        ("render", "acme", Settlement.release(POLICY), before, 9),
    ]
    assert lines_of(ended).splitlines() == ["k render 1 0 1 750", "t acme 0 1 1 1500"]
    assert lines_of([]) == "" and Lane().tenant == ""


def test_twenty_names_are_shown_and_the_others_are_added() -> None:
    row = {f"n{n:02}": f"{n} 0 0 1000" for n in range(25)} | {"*": "7 1 0 500", "broken": "x"}
    found = broken_down("kind", timedelta(minutes=1), [(at(0), row), (at(60_000), {})])
    assert list(found.names)[:2] == ["n24", "n23"] and len(found.names) == 20
    assert found.others[0] == SettledAttempts(at(0), 0 + 1 + 2 + 3 + 4 + 7, 1, 0, 5.5)
    assert Breakdown("kind", timedelta(minutes=1)).totals == {}
