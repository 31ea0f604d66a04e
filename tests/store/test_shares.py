"""Tenants and limits as they are read: what waits, what is shut and until when, in calls that stay small."""

import json
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest
from support import Server, quick_config

from maas_backoff import Limit, TenantStats
from maas_backoff.client.creator import TaskCreator
from maas_backoff.client.operations import QueueOperations
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.page import Listing
from maas_backoff.domain.settlement import Settlement, decide
from maas_backoff.domain.shares import LimitStats
from maas_backoff.domain.status import TaskStatus
from maas_backoff.store.batch import BatchRequest, Claimed, Settle
from maas_backoff.store.queue_store import QueueStore

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000


class Queue:
    """A store on a virtual clock, with a worker that a test drives by hand."""

    def __init__(self, server: Server) -> None:
        self.config: TaskBackoffConfig = quick_config(server.storage)
        self.store = QueueStore.of(self.config)
        self.operations = QueueOperations(self.config, self.store)
        self.client = server.client
        self.at(0)
        self._requests = 0

    def at(self, ms: float) -> None:
        self.store.connection.clock = f"{START + ms:.0f}"

    async def create(self, number: int = 1, name: str = "", **options: Any) -> None:
        for n in range(number):
            await TaskCreator(self.config, self.store.writer, None).create({}, f"{name}{n}" if name else None, options)

    async def exchange(self, claims: int, *settles: Settle, **given: Any) -> list[Claimed]:
        self._requests += 1
        request = BatchRequest(settles, claims, True, request_id=f"{self._requests}", exchange=0, **given)
        return (await self.store.exchange.send(request, "worker")).claimed

    async def complete(self, claimed: Claimed, *used: str) -> None:
        settlement = Settlement.complete("1", self.config.task.policy)
        await self.exchange(0, Settle(claimed.task.task_id, "lease", claimed.token, settlement, used=used))

    async def limits(self, most: int = 1000) -> dict[str, LimitStats]:
        return {one.name: one for one in await self.store.shares.limits(most)}


def moment(ms: float) -> datetime:
    return datetime.fromtimestamp((START + ms) / 1000, UTC)


@pytest.fixture
async def queue(any_server: Server) -> AsyncIterator[Queue]:
    queue = Queue(any_server)
    yield queue
    await queue.store.aclose()


async def test_tenants_are_those_with_waiting_tasks_weights_or_pauses(queue: Queue) -> None:
    """Delayed tasks wait, too; running ones do not. Those with most waiting tasks come first."""
    assert await queue.store.shares.tenants() == []
    await queue.create(2, tenant="acme")
    await queue.create(tenant="acme", delay=60)
    await queue.create(4, tenant="bolt")
    await queue.create(2)
    await queue.operations.set_weight("bolt", 2.5)
    await queue.operations.set_weight("calm", 3)
    await queue.operations.pause(on=True, kind=None, tenant="acme")
    await queue.operations.pause(on=True, kind=None, tenant="dull", by="ada")
    assert [one.waiting for one in await queue.store.shares.tenants()] == [4, 3, 0, 0]
    assert len(await queue.exchange(10)) == 6
    assert await queue.store.shares.tenants() == [
        TenantStats("acme", 3, 1, moment(0)),
        TenantStats("bolt", 0, 2.5),
        TenantStats("calm", 0, 3),
        TenantStats("dull", 0, 1, moment(0), "ada"),
    ]
    await queue.operations.pause(on=False, kind=None, tenant="dull")
    await queue.operations.set_weight("calm", 1)
    assert [one.name for one in await queue.store.shares.tenants()] == ["acme", "bolt"]


async def test_limits_are_read_as_they_were_set(queue: Queue) -> None:
    assert await queue.limits() == {}
    limits = {
        "slots": Limit(concurrency=64),
        "starts": Limit(rate=(500, "1m")),
        "units": Limit(tokens=(120_000.5, timedelta(hours=1))),
        "user:*": Limit(1, (3, 7), (1, 0.25)),
    }
    for name, limit in limits.items():
        assert await queue.operations.set_limit(name, limit)
        assert not await queue.operations.set_limit(name, limit)
    found = await queue.limits()
    assert list(found) == ["slots", "starts", "units", "user:*"], "by name"
    assert [one.limit for one in found.values()] == [
        Limit(concurrency=64),
        Limit(rate=(500, 60.0)),
        Limit(tokens=(120_000.5, 3600.0)),
        Limit(1, (3, 7.0), (1.0, 0.25)),
    ]
    assert found["slots"] == LimitStats("slots", Limit(concurrency=64), "slots", most=64)


async def test_a_limit_tells_what_uses_it_and_what_waits(queue: Queue) -> None:
    await queue.operations.set_limit("openai", Limit(concurrency=2))
    await queue.create(5, tenant="acme", limits={"openai": 1})
    await queue.create(3, tenant="bolt", limits={"openai": 1})
    assert (await queue.limits())["openai"].shut == ""
    claimed = await queue.exchange(10)
    assert len(claimed) == 2
    openai = (await queue.limits())["openai"]
    assert (openai.in_use, openai.most, openai.waiting_lanes, openai.waiting_tasks) == (2, 2, 2, 6)
    assert openai.shut == "limit openai: 2 of 2 in use" and openai.opens_at is None
    await queue.complete(claimed[0])
    assert (await queue.limits())["openai"].in_use == 1


async def test_a_shut_rate_tells_when_it_opens(queue: Queue) -> None:
    await queue.operations.set_limit("starts", Limit(rate=(10, "10s")))
    await queue.operations.set_limit("units", Limit(tokens=(100, "10s")))
    await queue.create(2, limits={"starts": 1})
    await queue.create(2, limits={"units": 50})
    assert len(await queue.exchange(10)) == 2
    for after, text in ((0, "room in 1 s"), (500, "room in 1 s")):
        queue.at(after)
        starts = (await queue.limits())["starts"]
        assert (starts.shut, starts.opens_at) == (f"rate starts: {text}", moment(1000))
    units = (await queue.limits())["units"]
    assert units.shut == "tokens units: room in 5 s"
    assert units.opens_at is not None and units.opens_at == moment(50 * 10_000 / 98 - 2 * 10_000 / 98)
    queue.at(1000)
    assert (await queue.limits())["starts"].shut == ""
    assert [one.task.tenant for one in await queue.exchange(10)] == [""]


async def test_a_limit_that_a_task_has_closed_says_until_when(queue: Queue) -> None:
    """Also one that is not set. After that time, one task at a time tries the limit."""
    await queue.create(3, limits={"openai": 1})
    (first,) = await queue.exchange(1)
    await queue.complete(first, "c openai 12000")
    openai = (await queue.limits())["openai"]
    assert (openai.limit, openai.set_by, openai.most) == (None, "", 1)
    assert openai.shut == "limit openai: closed by a task for 12 s more"
    assert openai.closed_until == openai.opens_at == moment(12_000)
    queue.at(12_000)
    assert await queue.limits() == {}, "it is on trial, and not shut"
    assert len(await queue.exchange(2)) == 1
    openai = (await queue.limits())["openai"]
    assert openai.shut == "limit openai: 1 of 1 in use, on trial after a task has closed it"
    assert (openai.closed_until, openai.waiting_tasks) == (None, 1)


async def test_names_of_a_class_are_listed_if_they_are_shut(queue: Queue) -> None:
    """As many as are asked for; it is said how many there are beyond that."""
    await queue.operations.set_limit("user:*", Limit(concurrency=1))
    await queue.operations.set_limit("user:vip", Limit(concurrency=5))
    for n in range(5):
        await queue.create(1 + n, limits={f"user:{n}": 1})
    await queue.create(1, limits={"user:vip": 1})
    assert len(await queue.exchange(100)) == 6
    found = await queue.limits()
    assert list(found) == ["user:*", "user:vip", "user:4", "user:3", "user:2", "user:1"]
    assert (found["user:4"].set_by, found["user:4"].limit, found["user:4"].waiting_tasks) == (
        "user:*",
        Limit(concurrency=1),
        4,
    )
    assert (found["user:*"].in_use, found["user:*"].shut, found["user:vip"].in_use) == (0, "", 1)
    some = await queue.store.shares.limits(3)
    assert ([one.name for one in some[2:]], some.more) == (["user:4", "user:3", "user:2"], 1)


async def test_a_class_holds_for_names_with_a_colon_only(queue: Queue) -> None:
    await queue.operations.set_limit("user:*", Limit(concurrency=1))
    await queue.create(3, limits={"user": 1})
    await queue.create(3, limits={"user:a": 1})
    assert len(await queue.exchange(10)) == 4


async def test_many_tenants_and_limits_are_read_in_many_calls(queue: Queue) -> None:
    """Each call is bounded, and nothing is left out."""
    shares = queue.store.shares
    await queue.operations.set_limit("all", Limit(concurrency=1))
    await queue.create(1, limits={"all": 1})
    assert len(await queue.exchange(1)) == 1
    creator = TaskCreator(queue.config, queue.store.writer, None)
    for n in range(1300):
        await creator.create({}, f"{n}", {"tenant": f"t{n}", "limits": {"all": 1}})
    for n in range(250):
        await queue.operations.set_limit(f"l{n}", Limit(concurrency=1))
    for _ in range(30):  # each claim parks lanes
        await queue.exchange(50)
    prefix = queue.store.connection.keys.prefix
    assert queue.client.zcard(f"{prefix}shut:all") == 1300, "a tenant each"
    before = queue.client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)
    assert {one.name for one in await shares.tenants()} == {f"t{n}" for n in range(1300)}
    assert queue.client.info("commandstats")["cmdstat_evalsha"]["calls"] - before >= 3
    found = await queue.limits()
    assert len(found) == 251 and (found["all"].waiting_lanes, found["all"].waiting_tasks) == (1300, 1300)


async def test_a_setting_that_somebody_has_written_over_is_no_limit(queue: Queue) -> None:
    prefix = queue.store.connection.keys.prefix
    for setting in ("nonsense", "1 2 3 4 x 5/0 -", "1 0 0 0 0"):
        queue.client.hset(f"{prefix}limits", "openai", setting)
        assert (await queue.limits())["openai"].limit is None


async def why(queue: Queue, task_id: str, *, listed: bool = True) -> str | None:
    """Return what a task waits for, alone and in a list; a list does not know its place."""
    task = await queue.store.reader.get(task_id)
    assert task is not None
    page = await queue.store.reader.page(TaskStatus.PENDING, Listing())
    (same,) = [one for one in page.tasks if one.task_id == task_id]
    assert not listed or same.waiting_for == task.waiting_for
    return task.waiting_for


async def test_a_task_says_which_limit_it_waits_for(queue: Queue) -> None:
    """Whether a worker has looked at its lane or not."""
    await queue.operations.set_limit("openai", Limit(concurrency=2, rate=(3, "9s")))
    await queue.create(5, "x", tenant="acme", limits={"openai": 1})
    await queue.create(1, "y", tenant="bolt", limits={"openai": 1, "another": 1})
    assert len(await queue.exchange(1)) == 1
    for name in ("x4", "y0"):
        assert await why(queue, name) == "rate openai: room in 3 s"
    queue.at(3000)
    assert len(await queue.exchange(1)) == 1
    assert await why(queue, "x4") == "limit openai: 2 of 2 in use"
    await queue.operations.set_limit("openai", Limit(concurrency=20))
    assert await why(queue, "x4") == "worker: none is running"


async def test_a_task_says_that_its_tenant_is_paused(queue: Queue) -> None:
    await queue.create(1, "x", tenant="acme")
    await queue.create(1, "y", tenant="bolt", limits={"openai": 1})
    await queue.operations.pause(on=True, kind=None, tenant="acme")
    assert await why(queue, "x0") == "tenant acme is paused"
    assert await why(queue, "y0") == "worker: none is running"
    await queue.operations.pause(on=False, kind=None, tenant="acme")
    assert await why(queue, "x0") == "worker: none is running"


def register_worker(queue: Queue) -> None:
    prefix = queue.store.connection.keys.prefix
    queue.client.zadd(f"{prefix}workers", {"w": START + 60_000})
    queue.client.set(f"{prefix}w:w", json.dumps({"host": "h", "slots": 8, "kinds": [""]}), ex=60)


async def test_a_task_says_how_many_come_before_it(queue: Queue) -> None:
    """Those of its own tenant in all of its lanes, and about how many of others, by their weights."""
    register_worker(queue)

    async def create(number: int, name: str, **options: Any) -> None:
        queue.at(float(queue.store.connection.clock) - START + 1)
        await queue.create(number, name, **options)

    await create(1, "alone", tenant="acme")
    assert await why(queue, "alone0", listed=False) == "tenant acme: next in line"
    await create(3, "x", tenant="acme", limits={"openai": 1})
    await create(1, "last", tenant="acme")
    assert await why(queue, "last0", listed=False) == "tenant acme: 4 of its own tasks first"
    await create(2, "y", tenant="bolt")
    await create(100, "z", tenant="calm")
    await create(1, "plain")
    await queue.operations.set_weight("calm", 3)
    expected = "tenant acme: 4 of its own tasks and about 15 of others first"
    assert await why(queue, "last0", listed=False) == expected, "2 of bolt, 12 of calm, 1 without a tenant"
    assert await why(queue, "y0", listed=False) == "tenant bolt: next of its tasks, 4 tenants take turns"
    assert await why(queue, "plain0", listed=False) == "slot: next in line"
    await create(1, "first", tenant="acme", priority=-5)
    assert await why(queue, "first0", listed=False) == "tenant acme: next of its tasks, 4 tenants take turns"


async def test_many_waiting_tasks_are_read_together(queue: Queue) -> None:
    """Each with its own reason."""
    await queue.operations.set_limit("user:*", Limit(concurrency=1))
    names = [f"{n % 50}" for n in range(100)]
    for n, name in enumerate(names):
        await queue.create(1, f"{n}-", tenant=f"t{name}", limits={f"user:{name}": 1})
    claimed = {one.task.task_id for one in await queue.exchange(100)}
    assert len(claimed) == 50
    ids = [f"{n}-0" for n in range(100) if f"{n}-0" not in claimed]
    looks = await queue.store.reader.get_first(ids)
    assert [look.task.waiting_for for look in looks if look.task] == [
        f"limit user:{names[int(task_id[:-2])]}: 1 of 1 in use" for task_id in ids
    ]


async def lose(queue: Queue, **given: Any) -> None:
    """Claim one task and lose it, twice: then it is a suspect, and waits outside of lanes."""
    for _ in range(2):
        assert len(await queue.exchange(1, **given)) == 1
        queue.at(float(queue.store.connection.clock) - START + 1000 * queue.config.scheduler.lease)
        for one in (await queue.store.lost.look(1e6, 0))[0]:
            settlement = decide(one.loss, one.task_id, one.counts, one.policy, one.policy.backoff())
            assert settlement is not None
            again = attrs.evolve(settlement.counts or one.counts, suspect=True)
            await queue.store.lost.settle([one.settle(attrs.evolve(settlement, delay=0, counts=again))], "reaper")


async def test_a_suspect_of_a_paused_tenant_waits(queue: Queue) -> None:
    """The end of the pause wakes a worker for it."""
    await queue.create(1, "x", tenant="acme")
    await lose(queue)
    assert (await queue.store.reader.stats()).suspect_count == 1
    await queue.operations.pause(on=True, kind=None, tenant="acme")
    assert await why(queue, "x0") == "tenant acme is paused"
    assert await queue.exchange(5) == []
    marker = f"{queue.store.connection.keys.prefix}marker"
    queue.client.delete(marker)
    await queue.operations.pause(on=False, kind=None, tenant="acme")
    assert queue.client.exists(marker)
    assert [one.task.task_id for one in await queue.exchange(5)] == ["x0"]


async def test_no_gpu_is_reserved_for_a_suspect_of_a_paused_tenant(queue: Queue) -> None:
    await queue.create(1, "x", tenant="acme", min_gpu_memory_gb=1)
    place = ("1024:0 GPU-a 0 1024",)
    await lose(queue, fits=place)
    await queue.operations.pause(on=True, kind=None, tenant="acme")
    assert (await queue.store.reader.demands("1 -"))[0] == []
    assert await queue.exchange(1, fits=place) == []
    await queue.operations.pause(on=False, kind=None, tenant="acme")
    assert len((await queue.store.reader.demands("1 -"))[0]) == 1
    assert len(await queue.exchange(1, fits=place)) == 1


async def test_a_queue_says_which_tenants_are_paused_and_which_limits_are_shut(queue: Queue) -> None:
    register_worker(queue)
    await queue.operations.set_limit("openai", Limit(concurrency=1))
    await queue.create(4, tenant="acme", limits={"openai": 1})
    await queue.create(2, tenant="bolt")
    assert len(await queue.exchange(1)) == 1
    queue.at(500)
    await queue.operations.pause(on=True, kind=None, tenant="bolt")
    assert await queue.exchange(1) == []
    stats = await queue.store.reader.stats()
    assert (stats.tenant_count, stats.paused_tenants, stats.pending_count) == (2, {"bolt": moment(500)}, 5)
    assert await queue.store.reader.explain() == (
        "5 tasks due, 1 task running; tenant bolt is paused: 2 tasks wait; limit openai is shut: 3 tasks wait."
    )
    await queue.operations.pause(on=False, kind=None, tenant="bolt")
    assert (await queue.store.reader.stats()).paused_tenants == {}
    assert "1 of 8 slots of 1 worker are busy; limit openai is shut" in await queue.store.reader.explain()


@pytest.mark.parametrize(
    "options",
    [{"tenant": "acme"}, {"tenant": "acme", "limits": {"openai": 1}}, {"tenant": "a", "min_gpu_memory_gb": 1}],
)
async def test_tasks_in_lanes_count_for_the_oldest_one(queue: Queue, options: dict[str, Any]) -> None:
    await queue.create(1, "old", **options)
    queue.at(3000)
    await queue.create(1, "new", **options)
    assert (await queue.store.reader.stats()).oldest_pending_age == 3


async def test_tasks_that_wait_for_a_limit_count_for_the_oldest_one(queue: Queue) -> None:
    await queue.operations.set_limit("openai", Limit(concurrency=1))
    await queue.create(2, limits={"openai": 1})
    assert len(await queue.exchange(5)) == 1
    queue.at(3000)
    assert (await queue.store.reader.stats()).oldest_pending_age == 3


@pytest.mark.parametrize("lanes", [1, 2, 20, 100])
async def test_a_tenant_with_many_lanes_gets_no_more_of_a_shut_limit(queue: Queue, lanes: int) -> None:
    """Such as one for each of its users. Its own tasks start in their order, whichever lane they wait in."""
    await queue.operations.set_limit("openai", Limit(concurrency=1))
    await queue.operations.set_weight("cora", 2)
    for n in range(120):
        queue.at(n)
        await queue.create(1, f"a{n}-", tenant="acme", limits={"openai": 1})
        limits = {"openai": 1, f"user:{n % lanes}": 1}
        await queue.create(1, f"b{n}-", tenant="beta", limits=limits)
        await queue.create(1, f"c{n}-", tenant="cora", limits=limits)
    order: list[str] = []
    for _ in range(160):
        for one in await queue.exchange(10):
            order.append(one.task.task_id.removesuffix("-0"))
            await queue.complete(one)
    counts = Counter(name[0] for name in order)
    assert sum(counts.values()) == 160
    assert counts["a"] == pytest.approx(40, abs=4) and counts["c"] == pytest.approx(80, abs=6), counts
    # A claim looks at some lanes only: among 100, the first ones start before all of them wait for the limit.
    for tenant in "abc" if lanes < 100 else "a":
        numbers = [int(name[1:]) for name in order if name[0] == tenant]
        assert numbers == sorted(numbers)


async def test_an_urgent_task_of_a_tenant_comes_first_when_a_limit_opens(queue: Queue) -> None:
    """Also in another lane than the tasks before it, which waits for the limit since before."""
    await queue.operations.set_limit("openai", Limit(concurrency=1))
    for n in range(6):
        queue.at(n)
        await queue.create(1, f"t{n}-", tenant="acme", limits={"openai": 1, f"user:{n % 3}": 1})
    (first,) = await queue.exchange(5)
    await queue.create(1, "urgent", tenant="acme", limits={"openai": 1, "user:2": 1}, priority=-10)
    await queue.create(1, "more", tenant="acme", limits={"openai": 1, "user:9": 1}, priority=-20)
    order: list[str] = []
    claimed = first
    for _ in range(4):
        await queue.complete(claimed)
        (claimed,) = await queue.exchange(5)
        order.append(claimed.task.task_id)
    assert order == ["more0", "urgent0", "t1-0", "t2-0"]


async def test_nothing_is_left_of_a_lane_that_is_deleted_while_it_waits_for_a_limit(queue: Queue) -> None:
    await queue.operations.set_limit("openai", Limit(concurrency=1))
    await queue.create(1, "x", tenant="acme", limits={"openai": 1})
    (running,) = await queue.exchange(1)
    await queue.create(1, "y", tenant="acme", limits={"openai": 1, "user:1": 1})
    await queue.create(1, "z", tenant="bolt", limits={"openai": 1})
    assert await queue.exchange(5) == []
    assert (await queue.limits())["openai"].waiting_lanes == 2
    assert await queue.store.writer.delete("y0")
    assert (await queue.limits())["openai"].waiting_lanes == 1
    await queue.store.writer.purge(TaskStatus.PENDING)
    assert (await queue.limits())["openai"].waiting_lanes == 0
    assert not queue.client.keys(f"{queue.store.connection.keys.prefix}shut*")
    await queue.complete(running)
