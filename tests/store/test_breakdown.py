"""The history by kind and by tenant: bounded, with the largest names, and free for queues that have neither."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any

import attrs
import pytest
from support import Server, quick_config

from maas_backoff import StorageConfig
from maas_backoff.domain.breakdown import (
    Breakdown,
    SettledAttempts,
    added,
    broken_down,
    column_of,
    settled_line,
    sum_line,
)
from maas_backoff.domain.outcome import Failed
from maas_backoff.domain.settlement import Counts, Settlement
from maas_backoff.domain.task import TaskError
from maas_backoff.domain.waiting import at
from maas_backoff.store.batch import BatchRequest, Claimed, Settle, breakdown_text
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
POLICY = quick_config(StorageConfig()).task.policy
ERROR = TaskError("ValueError", "boom")
SETTLEMENTS = {
    "completed": Settlement.complete("1", POLICY),
    "failed": Settlement.fail(ERROR, POLICY),
    "cancelled": Settlement.cancel(POLICY),
    "retried": Settlement.retry(Failed(ERROR), Counts(), 1000, POLICY),
    "lost": Settlement.lose(ERROR, Counts(lost=1), POLICY),
    "snoozed": Settlement.snooze(1000, Counts(), POLICY),
    "released": Settlement.release(POLICY),
}

End = tuple[str, str]
"""The name of a settlement, and the line of its settle."""


class Queue:
    """A queue on a virtual clock, and one worker that is driven by hand."""

    def __init__(self, server: Server) -> None:
        self.store = QueueStore.of(quick_config(server.storage))
        self.client = server.client
        self._requests = 0
        self.at(0)

    def at(self, seconds: float) -> None:
        self.store.connection.clock = f"{START + seconds * 1000:.0f}"

    async def settle(self, *ends: End) -> Sequence[str]:
        """Run new tasks to their end in one call, and return its answers."""
        names = [f"{self._requests}-{n}" for n in range(len(ends))]
        await self.store.writer.enqueue([NewTask(name, "{}", 0, 0, POLICY, "") for name in names])
        claimed = await self.claim(len(ends))
        settles = [
            Settle(one.task.task_id, "lease", one.token, SETTLEMENTS[how], breakdown=line)
            for one, (how, line) in zip(claimed, ends, strict=True)
        ]
        return await self.store.writer.settle_all(settles)

    async def claim(self, count: int) -> Sequence[Claimed]:
        request = BatchRequest((), count, False, self._id(), 0)
        return (await self.store.exchange.send(request, "w")).claimed

    def _id(self) -> str:
        self._requests += 1
        return f"{self._requests}"

    async def totals(self, by: Any = "kind", steps: int = 60, minutes: int = 1, name: str = "") -> dict[str, Any]:
        found = await self.store.breakdowns.read(by, steps, minutes, name)
        return {name: attrs.astuple(one)[1:] for name, one in found.totals.items()}

    def fields(self) -> set[str]:
        """Return the names that have a place in the last minute."""
        return {name.decode() for key in self.client.scan_iter("*:ht:*") for name in self.client.hkeys(key)}

    def names(self) -> list[bytes]:
        return sorted(key for of in "kt" for key in self.client.scan_iter(f"*:h{of}*"))


@pytest.fixture
async def queue(any_server: Server) -> AsyncIterator[Queue]:
    queue = Queue(any_server)
    yield queue
    await queue.store.aclose()


async def test_settles_count_by_kind_and_by_tenant_in_their_step(queue: Queue) -> None:
    """Each under the state that it leads to. A comeback that is no retry does not count."""
    ends = [("completed", "render acme 1500"), ("retried", "render acme 250"), ("completed", "render acme 750")]
    others = [("lost", "render acme 9"), ("snoozed", "render acme 9"), ("released", "render acme 9")]
    await queue.settle(*ends, *others, ("failed", ""))
    await queue.settle(("completed", "render  500"), ("failed", "upscale  10"), ("cancelled", "render  9000"))
    queue.at(60)
    await queue.settle(*[("failed", "render  500")] * 3)
    queue.at(59 * 60)
    found = await queue.store.breakdowns.read("kind", 60)
    assert list(found.names) == ["render", "upscale"] and found.step == timedelta(minutes=1)
    first, second, third, *_ = found.names["render"]
    assert first == SettledAttempts(at(START), 3, 0, 1, 1, 3)
    assert second == SettledAttempts(at(START + 60_000), 0, 3, 0, 0, 1.5)
    assert third == SettledAttempts(at(START + 120_000)) and third.mean_run_time is None
    assert first.count == 5 and first.mean_run_time == 0.75
    assert await queue.totals("tenant") == {"acme": (2, 0, 0, 1, 2.5)}
    assert await queue.totals(steps=6, minutes=10) == {"render": (3, 3, 1, 1, 4.5), "upscale": (0, 1, 0, 0, 0.01)}
    assert await queue.totals(name="upscale") == {"upscale": (0, 1, 0, 0, 0.01)}
    assert await queue.totals(name="none") == {"none": (0, 0, 0, 0, 0)}
    assert [queue.client.ttl(key) > 7000 for key in queue.names()] == [True] * 5


async def test_a_queue_without_kinds_and_tenants_has_no_key(queue: Queue) -> None:
    await queue.settle(("completed", ""), ("failed", ""), ("released", ""))
    assert queue.names() == [] and await queue.totals() == {}


async def test_a_repeated_request_and_a_refused_settle_count_nothing(queue: Queue) -> None:
    """A refused settle does not count, although others of its request do."""
    writer = queue.store.writer
    await queue.settle(("completed", "render  5"))
    stale = Settle("0-0", "lease", 5, SETTLEMENTS["completed"], breakdown="render  5")
    assert await writer.settle_all([stale]) == ["lost"]
    await writer.enqueue([NewTask("good", "{}", 0, 0, POLICY, "")])
    (good,) = await queue.claim(1)
    settle = Settle("good", "lease", good.token, SETTLEMENTS["completed"], breakdown="upscale  5")
    for _ in range(2):
        assert await writer.settle_all([stale, settle], "one call") == ["lost", "ok"]
    assert await queue.totals() == {"render": (1, 0, 0, 0, 0.005), "upscale": (1, 0, 0, 0, 0.005)}


async def test_the_sums_of_a_worker_count_once_for_all_calls_with_an_id(queue: Queue) -> None:
    sums = "k render 3 1 0 2 1500\nt acme 2 0 1 0 700\nk k 1 0 0 0 7"
    for _ in range(2):
        await queue.store.writer.count_settles(sums, "first")
    await queue.store.writer.count_settles("t acme 1 0 0 0 300", "second")
    assert await queue.totals() == {"render": (3, 1, 0, 2, 1.5), "k": (1, 0, 0, 0, 0.007)}
    assert await queue.totals("tenant") == {"acme": (3, 0, 1, 0, 1)}
    assert [queue.client.ttl(key) > 7000 for key in queue.names()] == [True] * 4


@pytest.mark.parametrize("ms", [0, 1])
async def test_the_names_of_a_step_are_bounded_and_busy_ones_stay(queue: Queue, ms: int) -> None:
    """A name that comes late and is busy gets a place, and the sum of all is kept. In one ms of 32, each name tries."""
    assert START % 32 == 0
    queue.at(ms / 1000)
    for n in range(0, 400, 50):
        few = [("completed", f" few{n + m} 1") for m in range(50)]
        late = [("completed", " late 1")] * 20 + [("failed", " late 0")] * 3 + [("cancelled", " late 0")] * 2
        await queue.settle(*few, *[("completed", " early 1")] * 20, *(late if n >= 100 else ()))
    for key in queue.names():
        assert queue.client.hlen(key) == 33
    found = await queue.store.breakdowns.read("tenant", 1)
    assert list(found.names)[:2] == ["early", "late"] and len(found.names) == 20
    totals = found.totals
    assert totals["early"].completed == 160
    assert ("few399" in queue.fields()) is (ms == 0)
    assert attrs.astuple(totals["late"])[1:4] == (120, 18, 12)
    everything = added([*totals.values(), *found.others])
    assert attrs.astuple(everything)[1:4] == (400 + 160 + 120, 18, 12)


async def test_a_field_that_a_person_has_overwritten_is_begun_anew(queue: Queue) -> None:
    end = ("completed", "render  5")
    await queue.settle(end)
    for key in queue.names():
        queue.client.hset(key, "render", "mine")
    assert await queue.totals() == {"render": (0, 0, 0, 0, 0)}
    await queue.settle(end)
    assert await queue.totals() == {"render": (1, 0, 0, 0, 0.005)}
    for key in queue.names():
        queue.client.set(key, "mine")
    assert await queue.settle(end) == ["ok"]
    queue.client.delete(*queue.names())


@pytest.mark.parametrize(("names", "most_bytes"), [(20, 600_000), (40, 900_000)])
async def test_the_bytes_of_all_steps(queue: Queue, names: int, most_bytes: int) -> None:
    """As docs/data-model.md has them. The numbers are those of a busy queue."""
    await queue.settle(*[("completed", f"kind{n:06} tenant{n:04} 5") for n in range(names)])
    steps = {"hk": 121, "ht": 121, "hk10": 151, "ht10": 151}
    sizes: dict[str, int] = {}
    for key in queue.names():
        for name in queue.client.hkeys(key):
            queue.client.hset(key, name, "12000 140 30 370 54000000")
        sizes[key.decode().split(":")[-2]] = queue.client.memory_usage(key, samples=0)
    assert sizes.keys() == steps.keys()
    assert sum(sizes[of] * number for of, number in steps.items()) < most_bytes


def test_the_line_of_a_settle() -> None:
    assert settled_line("render", "acme", 0.25) == "render acme 250"
    assert (settled_line("render", "", 0), settled_line("", "acme", 1)) == ("render  0", " acme 1000")
    assert settled_line("", "", 1) == ""
    settles = [Settle("x", "lease", 1, SETTLEMENTS["completed"], breakdown=line) for line in ("a b 1", "", "c  2")]
    assert breakdown_text(settles) == "1 a b 1\n3 c  2" and breakdown_text(settles[1:2]) == ""


def test_an_accepted_settle_has_a_column() -> None:
    """A cancel may take the place of a comeback. A comeback that is no retry has none."""
    columns = {
        "completed": 0,
        "failed": 1,
        "cancelled": 2,
        "retried": 3,
        "lost": None,
        "snoozed": None,
        "released": None,
    }
    assert {name: column_of(one, Counts(), "ok") for name, one in SETTLEMENTS.items()} == columns
    assert {column_of(one, Counts(), "cancelled") for one in SETTLEMENTS.values()} == {2}
    assert sum_line("k", "render", [3, 1, 0, 2, 1.5004]) == "k render 3 1 0 2 1500"


def test_twenty_names_are_shown_and_the_others_are_added() -> None:
    row = {f"n{n:02}": f"{n} 0 0 0 1000" for n in range(25)} | {"*": "7 1 2 0 500", "broken": "x", "short": "1 2 3"}
    found = broken_down("kind", timedelta(minutes=1), [(at(0), row), (at(60_000), {})])
    assert list(found.names)[:2] == ["n24", "n23"] and len(found.names) == 20
    assert found.others[0] == SettledAttempts(at(0), 0 + 1 + 2 + 3 + 4 + 7, 1, 2, 0, 5.5)
    assert Breakdown("kind", timedelta(minutes=1)).totals == {}
