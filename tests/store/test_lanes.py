"""Tenants and limits in the scripts: shares, limits that hold, and nothing that is stuck. On a virtual clock.

After each call, `lanes.check` compares all keys of the queue.
"""

import itertools
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import anyio
import attrs
import lanes
import pytest
from support import Server, quick_config

from maas_backoff import QueueFullError, TaskBackoffScheduler, TaskSpec
from maas_backoff.client.bulk import BulkOperations
from maas_backoff.client.creator import TaskCreator
from maas_backoff.client.operations import QueueOperations
from maas_backoff.domain.batching import Batching
from maas_backoff.domain.kind import NAMELESS, ONLY_NAMELESS, Kinds
from maas_backoff.domain.lane import Lane
from maas_backoff.domain.limit import Limit
from maas_backoff.domain.outcome import Failed
from maas_backoff.domain.page import Listing
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskError
from maas_backoff.errors import TenantFullError
from maas_backoff.store import scripts
from maas_backoff.store.batch import BatchReply, BatchRequest, Claimed, Settle
from maas_backoff.store.creation import NewTask
from maas_backoff.store.orphans import find_orphans
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.loops.reap import settle_lost

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
LEASE = 3_000
ERROR = TaskError("ValueError", "boom")
KINDS = Kinds((NAMELESS, "render"))
(BURST,) = (int(found) for found in re.findall(r"local BURST, FEW = (\d+)", scripts.SETTLE.text))
"""Mean costs for which a tenant may be ahead of its turn."""


class Queue:
    """A store on a virtual clock. Each call is followed by a check of all keys."""

    def __init__(self, server: Server) -> None:
        self.config = quick_config(server.storage)
        self.policy = self.config.task.policy
        self.store = QueueStore.of(self.config)
        self.operations = QueueOperations(self.config, self.store)
        self.bulk = BulkOperations(self.config, self.store)
        self.client = server.client
        self.now = 0.0
        self._looks = 0
        self.at(0)
        self._requests = itertools.count()
        self._ids = itertools.count()

    def at(self, ms: float) -> None:
        self.now = ms
        self.store.connection.clock = f"{START + ms:.3f}"

    def check(self) -> lanes.Lanes:
        return lanes.check(self.client, START + self.now)

    def look(self) -> None:
        """Check all keys; with thousands of keys, after few calls only."""
        self._looks += 1
        if self.client.dbsize() < 300 or self._looks % 25 == 0:
            self.check()

    async def create(self, tenant: str = "", number: int = 1, *, kind: str = NAMELESS, **given: Any) -> list[str]:
        """Create tasks of one lane. `given`: cost, limits, due, priority, gpu (in GB), ids."""
        lane = Lane(tenant, given.get("cost", 1), given.get("limits", {}))
        ids = given.get("ids") or [f"{tenant or 'plain'}-{next(self._ids)}" for _ in range(number)]
        own = {"min_gpu_memory_gb": given["gpu"]} if "gpu" in given else {}
        policy = self.policy.overridden(own)
        overrides = f'{{"min_gpu_memory_gb":{given["gpu"]}}}' if own else ""
        due, priority = given.get("due", 0), given.get("priority", 0)
        tasks = [NewTask(task_id, "{}", priority, due, policy, overrides, kind, lane.record) for task_id in ids]
        for start in range(0, len(tasks), 1000):
            some = tasks[start : start + 1000]
            assert await self.store.writer.enqueue(some) == ["created"] * len(some)
        self.look()
        return ids

    async def mixed(self, tenant: str, costs: Iterable[float], **given: Any) -> None:
        """Create tasks of one tenant, one for each cost, in this order."""
        tasks = [
            NewTask(f"{tenant}-{next(self._ids)}", "{}", 0, 0, self.policy, "", NAMELESS, Lane(tenant, cost).record)
            for cost in costs
        ]
        assert set(await self.store.writer.enqueue(tasks)) == {"created"}

    async def exchange(self, claims: int, *settles: Settle, kinds: Kinds = ONLY_NAMELESS, **given: Any) -> BatchReply:
        given.setdefault("may_claim_suspect", True)
        given.setdefault("request_id", f"{next(self._requests)}")
        worker = given.pop("worker", "worker")
        request = BatchRequest(settles, claims, exchange=0, **given)
        reply = await self.store.exchange.send(request, worker, kinds)
        self.look()
        return reply

    async def claim(self, claims: int = 100, **given: Any) -> list[Claimed]:
        return (await self.exchange(claims, **given)).claimed

    async def claim_all(self, **given: Any) -> list[Claimed]:
        """Claim until a claim finds nothing and announces nothing."""
        found: list[Claimed] = []
        for _ in range(1000):
            reply = await self.exchange(100, **given)
            found += reply.claimed
            if not reply.claimed and not reply.hit:
                return found
        raise AssertionError("claims without an end")

    async def settle(self, *settles: Settle) -> list[str]:
        return (await self.exchange(0, *settles)).answers

    async def complete(self, claimed: Sequence[Claimed]) -> None:
        assert await self.settle(*map(self.completed, claimed)) == ["ok"] * len(claimed)

    async def limit(self, name: str, **given: Any) -> bool:
        changed = await self.store.shares.set_limit(name, Limit(**given).setting if given else "")
        self.look()
        return changed

    async def pause(self, tenant: str, *, on: bool = True) -> bool:
        changed = await self.store.shares.set_tenant(tenant, paused=on)
        self.look()
        return changed

    async def weigh(self, tenant: str, weight: float) -> None:
        assert await self.store.shares.set_tenant(tenant, weight=weight)
        self.look()

    async def lose(self) -> None:
        """Let the leases of all running tasks run out; the reaper settles them."""
        await self.store.lost.look(1e6, 0)
        self.at(self.now + LEASE)
        lost = (await self.store.lost.look(1e6, 0))[0]
        self.look()
        await settle_lost(self.store, "reaper", lost)
        self.look()

    def markers(self) -> set[str]:
        """Return the markers that are there, and take them."""
        prefix = self.store.connection.keys.prefix
        found = {key.decode().removeprefix(prefix) for key in self.client.scan_iter("*marker")}
        for name in found:
            self.client.delete(prefix + name)
        return found

    # Settles of an attempt

    def completed(self, one: Claimed, *used: str) -> Settle:
        return self._settle(one, Settlement.complete("1", self.policy), used)

    def failed(self, one: Claimed) -> Settle:
        return self._settle(one, Settlement.fail(ERROR, self.policy))

    def retried(self, one: Claimed, delay: float = 0) -> Settle:
        return self._settle(one, Settlement.retry(Failed(ERROR), one.counts, delay, self.policy))

    def snoozed(self, one: Claimed) -> Settle:
        return self._settle(one, Settlement.snooze(0, one.counts, self.policy))

    def released(self, one: Claimed) -> Settle:
        return self._settle(one, Settlement.release(self.policy))

    @staticmethod
    def _settle(one: Claimed, settlement: Settlement, used: Sequence[str] = ()) -> Settle:
        return Settle(one.task.task_id, "lease", one.token, settlement, one.counts, used=used)


@pytest.fixture
async def queue(server: Server) -> AsyncIterator[Queue]:
    queue = Queue(server)
    yield queue
    await queue.store.aclose()
    queue.check()


def ids(claimed: Iterable[Claimed]) -> list[str]:
    return [one.task.task_id for one in claimed]


def tenants(claimed: Iterable[Claimed]) -> list[str]:
    return [one.task.tenant for one in claimed]


# Shares


class Served:
    """The cost that each tenant was served, divided by its weight, while all of them have waiting tasks."""

    def __init__(self, weights: dict[str, float], largest: dict[str, float], burst: int = 4) -> None:
        self.weights = weights
        self.shares = dict.fromkeys(weights, 0.0)
        self.costs = [1.0]
        self.largest = max(largest[tenant] / weight for tenant, weight in weights.items())
        self.burst = burst

    def add(self, claimed: Iterable[Claimed], cost_of: Callable[[Claimed], float]) -> None:
        """Add tasks in the order in which they were taken; no tenant may be far behind another at any time."""
        for one in claimed:
            cost = cost_of(one)
            self.costs.append(cost)
            self.shares[one.task.tenant] += cost / self.weights[one.task.tenant]
            most = self.largest + self.burst * sum(self.costs) / len(self.costs)
            assert max(self.shares.values()) - min(self.shares.values()) <= most, self.shares


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1, marks=[pytest.mark.long, pytest.mark.rare]),
        pytest.param(2, marks=[pytest.mark.long, pytest.mark.rare]),
        7,
        100,
    ],
)
async def test_tenants_get_shares_by_weight(queue: Queue, size: int) -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 5.0}
    served = Served(weights, dict.fromkeys(weights, 1))
    for tenant, weight in weights.items():
        await queue.create(tenant, int(100 + 120 * weight))
        if weight != 1:
            await queue.weigh(tenant, weight)
    for _ in range(800 // size):
        claimed = await queue.claim(size)
        assert len(claimed) == size
        served.add(claimed, lambda one: 1)
        await queue.complete(claimed)


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(1, marks=[pytest.mark.long, pytest.mark.rare]),
        pytest.param(2, marks=[pytest.mark.long, pytest.mark.rare]),
        7,
        100,
    ],
)
async def test_shares_are_of_the_costs(queue: Queue, size: int) -> None:
    """One tenant has tasks a hundred times as large, one has both sorts."""
    weights = {"large": 1.0, "small": 1.0, "both": 2.0, "heavy": 0.5}
    costs = {"large": [100.0] * 30, "small": [1.0] * 2500, "heavy": [100.0] * 15}
    chance = random.Random(size)
    costs["both"] = [chance.choice([1.0, 100.0]) for _ in range(120)]
    for tenant, own in costs.items():
        for start in range(0, len(own), 1000):
            await queue.mixed(tenant, own[start : start + 1000])
        if weights[tenant] != 1:
            await queue.weigh(tenant, weights[tenant])
    served, of_task = Served(weights, {tenant: max(own) for tenant, own in costs.items()}), {}
    for key in queue.client.scan_iter("*}:t:*", count=5000):
        fields = {"p": queue.client.hget(key, "p").decode()}
        of_task[key.decode().partition("}:t:")[2]] = lanes.lane_of(fields).cost
    taken, left = 0.0, {tenant: sum(own) for tenant, own in costs.items()}
    while taken < 4000:
        claimed = await queue.claim(size)
        assert len(claimed) == size
        served.add(claimed, lambda one: of_task[one.task.task_id])
        for one in claimed:
            taken += of_task[one.task.task_id]
            left[one.task.tenant] -= of_task[one.task.task_id]
        assert min(left.values()) > 0, "each tenant must have waiting tasks"


@pytest.mark.parametrize("size", [pytest.param(1, marks=[pytest.mark.long, pytest.mark.rare]), 7, 100])
async def test_shares_among_many_tenants(queue: Queue, size: int) -> None:
    """Their tasks are taken in bursts."""
    weights = {f"t{n}": [1.0, 2.0, 4.0][n % 3] for n in range(30)}
    served = Served(weights, dict.fromkeys(weights, 1), BURST + 1)
    for tenant, weight in weights.items():
        await queue.create(tenant, int(40 * weight))
        if weight != 1:
            await queue.weigh(tenant, weight)
    for _ in range(1000 // size):
        claimed = await queue.claim(size)
        assert len(claimed) == size
        served.add(claimed, lambda one: 1)


async def test_heavy_weights_and_small_costs_are_paid(queue: Queue) -> None:
    await queue.create("heavy", 300)
    await queue.create("light", 300, cost=0.001)
    await queue.create("usual", 300)
    await queue.weigh("heavy", 100_000)
    await queue.weigh("light", 0.001)
    claimed = Counter(tenants(await queue.claim(100)) + tenants(await queue.claim(100)))
    assert claimed["heavy"] > claimed["light"] > 0 < claimed["usual"], claimed


@pytest.mark.parametrize("size", [1, 3, 20, 100])
async def test_a_quiet_tenant_is_among_the_next_claims(queue: Queue, size: int) -> None:
    await queue.create("busy", 3000)
    await queue.create("busy", 200, limits={"free": 1})
    for n in range(3):
        await queue.claim(size)
        (quiet,) = await queue.create(f"quiet{n}")
        found = list(itertools.chain(*[ids(await queue.claim(size)) for _ in range(2)]))
        assert quiet in found[: max(2, BURST + 2)], found


async def test_a_tenant_that_comes_back_has_no_credit(queue: Queue) -> None:
    """A tenant that had no tasks for a while gets its share from then on, and no more."""
    await queue.create("busy", 1000)
    await queue.create("guest", 2)
    for _ in range(20):
        await queue.complete(await queue.claim(20))
    await queue.create("guest", 300)
    count = Counter(tenants(itertools.chain(*[await queue.claim(20) for _ in range(10)])))
    assert abs(count["busy"] - count["guest"]) <= 2 * (BURST + 1), count


async def test_a_tenant_that_gets_no_task_moves_no_time(queue: Queue) -> None:
    """Its limit is shut. If the time went on to its place, others would begin there, and it would owe them nothing."""
    await queue.limit("few", concurrency=1)
    await queue.create("ahead", cost=50, limits={"few": 1})
    await queue.create("ahead", cost=1, limits={"few": 1})
    (first,) = await queue.claim(1)
    before = queue.client.hget("maas:{test}:meta", "turn").split()[0]
    assert await queue.claim(1) == [] and queue.client.zcard("maas:{test}:shut:few") == 1
    assert queue.client.hget("maas:{test}:meta", "turn").split()[0] == before
    await queue.complete([first])


async def test_plain_tasks_take_turns_with_tenants(queue: Queue) -> None:
    await queue.create("", 300)
    await queue.create("a", 300)
    await queue.create("", 300, limits={"free": 1})
    await queue.weigh("a", 3)
    count = Counter(tenants(itertools.chain(*[await queue.claim(20) for _ in range(10)])))
    assert abs(count["a"] - 150) <= 2 * (BURST + 1), count


async def test_kinds_of_a_tenant_share_one_place(queue: Queue) -> None:
    """A tenant with tasks of two kinds gets no more than one with tasks of one kind."""
    for kind in (NAMELESS, "render"):
        await queue.create("both", 300, kind=kind)
    await queue.create("one", 300)
    claimed: list[Claimed] = []
    for n in range(20):
        claimed += await queue.claim(1 + n, kinds=KINDS)
    count = Counter(tenants(claimed))
    assert abs(count["both"] - count["one"]) <= 2 * (BURST + 1), count
    assert {one.task.kind for one in claimed if one.task.tenant == "both"} == {NAMELESS, "render"}


@pytest.mark.long
@pytest.mark.rare
async def test_weights_hold_in_an_index_that_is_served_less(queue: Queue) -> None:
    """The worker of one kind is a hundred times as fast as that of the other."""
    for tenant in ("a", "b", "c"):
        await queue.create(tenant, 400, kind="render")
    await queue.weigh("a", 6)
    await queue.create("", 3000)
    slow = []
    for _ in range(60):
        for _ in range(3):
            await queue.complete(await queue.claim(15))
        slow += await queue.claim(2, kinds=Kinds(("render",)))
    count = Counter(tenants(slow))
    assert count["a"] > 3 * count["b"] > 0 < count["c"], count


@pytest.mark.long
async def test_what_was_used_is_paid(queue: Queue) -> None:
    """Tasks tell what they have used: the shares are of that, not of the cost at their creation."""
    for tenant, cost in (("honest", 10.0), ("modest", 1.0), ("greedy", 100.0)):
        await queue.create(tenant, 600, cost=cost)
    count: Counter[str] = Counter()
    used = Lane(cost=10)
    for _ in range(200):
        claimed = await queue.claim(2)
        settles = [
            queue.completed(one, f"u {attrs.evolve(Lane(one.task.tenant), cost=cost).changed(used.cost, {})}")
            for one in claimed
            for cost in [{"honest": 10.0, "modest": 1.0, "greedy": 100.0}[one.task.tenant]]
        ]
        assert await queue.settle(*settles) == ["ok"] * len(claimed)
        count.update(tenants(claimed))
    assert max(count.values()) - min(count.values()) <= 30, count


async def test_a_tenant_pays_once_for_a_repeated_settle(queue: Queue) -> None:
    await queue.create("a", 5, limits={"some": 1})
    await queue.limit("some", tokens=(1000, "1m"))
    (one,) = await queue.claim(1)
    settle = queue.completed(one, "u a|some 50,7")
    assert await queue.settle(settle) == ["ok"]
    before = queue.check()
    assert await queue.settle(settle) == ["already"]
    after = queue.check()
    for name in ("virtual", "arrivals"):
        assert after.zset(name) == before.zset(name)


# Order


async def test_order_within_a_tenant_is_by_priority_and_due_time(queue: Queue) -> None:
    """Also over lanes with different limits."""
    expected: list[tuple[int, int, str]] = []
    chance = random.Random(1)
    for n in range(40):
        queue.at(n)
        priority, limits = chance.choice([0, 0, -2, 3]), chance.choice([{}, {}, {"x": 1}, {"y": 1}, {"x": 1, "y": 1}])
        (task_id,) = await queue.create("a", priority=priority, limits=limits)
        expected.append((priority, n, task_id))
    step = queue.policy.priority_step * 1000
    order = [task_id for *_, task_id in sorted(expected, key=lambda one: one[0] * step + one[1])]
    for size in (1, 2, 7, 100):
        assert ids(await queue.claim(size)) == order[:size]
        order = order[size:]


async def test_a_batch_of_tasks_keeps_its_order_in_each_lane(queue: Queue, server: Server) -> None:
    scheduler = TaskBackoffScheduler(queue.config)
    creator = TaskCreator(queue.config, queue.store.writer, None)
    specs = [TaskSpec({"n": n}, tenant="ab"[n % 2]) for n in range(20)]
    made = await creator.create_many(specs)
    await scheduler.shutdown()
    found = ids(await queue.claim())
    for parity in range(2):
        own = made[parity::2]
        assert [task_id for task_id in found if task_id in own] == own


# The life of tasks in lanes

Step = Callable[[Queue], Any]


async def retry_at_once(queue: Queue) -> None:
    claimed = await queue.claim(3)
    assert await queue.settle(*map(queue.retried, claimed)) == ["ok"] * len(claimed)


async def retry_later(queue: Queue) -> None:
    claimed = await queue.claim(3)
    assert await queue.settle(*(queue.retried(one, 5) for one in claimed)) == ["ok"] * len(claimed)


async def snooze(queue: Queue) -> None:
    claimed = await queue.claim(2)
    assert await queue.settle(*map(queue.snoozed, claimed)) == ["ok"] * len(claimed)


async def release(queue: Queue) -> None:
    claimed = await queue.claim(4)
    assert await queue.settle(*map(queue.released, claimed)) == ["ok"] * len(claimed)


async def fail_and_redrive(queue: Queue) -> None:
    claimed = await queue.claim(3)
    assert await queue.settle(*map(queue.failed, claimed)) == ["ok"] * len(claimed)
    for one in claimed:
        assert await queue.operations.retry(one.task.task_id)
        queue.check()


async def cancel(queue: Queue) -> None:
    for task_id in await first_pending(queue, 4):
        assert await queue.operations.cancel(task_id, running=False)
        queue.check()


async def cancel_and_redrive(queue: Queue) -> None:
    some = await first_pending(queue, 3)
    for task_id in some:
        assert await queue.operations.cancel(task_id, running=False)
    cancelled = Selection(status="cancelled")
    assert await queue.bulk.retry(cancelled, dry_run=False, on_progress=None) >= len(some)
    queue.check()


async def change_many(queue: Queue) -> None:
    """Each of a call with others of its tenant, or of any."""
    for conditions, options in (
        ({"tenant": "a"}, {"priority": 5}),
        ({}, {"delay": 3}),
        ({"tenant": "b"}, {"delay": 0}),
    ):
        await queue.bulk.update(Selection(**conditions), options, dry_run=False, on_progress=None)
        queue.check()
    await queue.bulk.cancel(Selection(tenant="a"), running=True, dry_run=False, on_progress=None)
    queue.check()
    await queue.bulk.delete(Selection(tenant="b"), dry_run=False, on_progress=None)
    queue.check()


async def update(queue: Queue) -> None:
    for options in ({"priority": 5}, {"priority": -5}, {"delay": 3}, {"delay": 0}, {"priority": 1, "delay": 1}):
        for task_id in await first_pending(queue, 3):
            assert await queue.operations.update(task_id, options)
            queue.check()


async def delete(queue: Queue) -> None:
    for task_id in await first_pending(queue, 5):
        assert await queue.store.writer.delete(task_id)
        queue.check()


async def mark(queue: Queue) -> None:
    """From outside: one is completed, one comes back, one stays."""
    done, again, _ = await first_pending(queue, 3)
    for task_id in (done, again, _):
        assert await queue.operations.mark_processing(task_id)
        queue.check()
    assert await queue.operations.mark_completed(done, None)
    assert await queue.operations.mark_failed(again, "x", retry=True, code=None)
    queue.check()


async def mark_running(queue: Queue) -> None:
    """The attempt of a worker is settled from outside."""
    one, other = await queue.claim(2)
    assert await queue.operations.mark_completed(one.task.task_id, None)
    queue.check()
    assert await queue.operations.mark_failed(other.task.task_id, "x", retry=True, code=None)
    assert await queue.settle(queue.completed(one), queue.completed(other)) == ["lost", "lost"]


async def lose_once(queue: Queue) -> None:
    await queue.claim(3)
    await queue.lose()


async def lose_twice(queue: Queue) -> None:
    """The second loss makes suspects. They are claimed one cohort at a time."""
    for _ in range(3):
        await queue.claim(3)
        await queue.lose()


async def purge(queue: Queue) -> None:
    await queue.store.writer.purge(TaskStatus.PENDING)
    queue.check()
    await queue.create("a", 2)


async def wait(queue: Queue) -> None:
    queue.at(queue.now + 20_000)
    await queue.claim(1)


async def pause_and_resume(queue: Queue) -> None:
    for tenant in ("a", "b"):
        assert await queue.pause(tenant)
    await queue.claim(5)
    for tenant in ("a", "b"):
        assert await queue.pause(tenant, on=False)


STEPS: list[Step] = [
    *(retry_at_once, retry_later, snooze, release, fail_and_redrive, cancel, cancel_and_redrive, update, delete, mark),
    change_many,
    *(mark_running, lose_once, lose_twice, purge, wait, pause_and_resume),
]


async def first_pending(queue: Queue, number: int) -> list[str]:
    page = await queue.store.reader.page(TaskStatus.PENDING, Listing(limit=number))
    return [task.task_id for task in page.tasks]


async def fill(queue: Queue) -> None:
    """Tasks of each sort: in lanes, limited, plain, delayed."""
    for tenant in ("a", "b", ""):
        await queue.create(tenant, 4)
        await queue.create(tenant, 4, limits={"x": 1}, cost=3)
        await queue.create(tenant, 2, limits={"x": 2, "y": 1})
        await queue.create(tenant, 2, due=4)


async def empty(queue: Queue) -> None:
    """Run everything that is left. Nothing of lanes is then left."""
    running = [*map(str, lanes.Lanes.read(queue.client).zset("leases"))]
    assert not running or await queue.lose() is None
    for _ in range(200):
        queue.at(queue.now + 70_000)
        reply = await queue.exchange(100)
        await queue.complete(reply.claimed)
        found = queue.check()
        if not any(lanes._state(fields) == "pending" for fields in found.tasks.values()):
            break
    else:
        raise AssertionError("tasks are stuck")
    await queue.exchange(1)
    await queue.exchange(1)
    found = queue.check()
    assert not found.hash("held") and not found.hash("use") and not found.hash("waiting")
    assert not [name for name in found.zsets if name in {"opens", "lanes"}]


@pytest.mark.parametrize(
    "limits", [{}, {"concurrency": 2}, {"concurrency": 3, "rate": (30, "1m")}, {"tokens": (40, "1m")}]
)
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_a_step_keeps_the_keys_true(queue: Queue, step: Step, limits: dict[str, Any]) -> None:
    await fill(queue)
    if limits:
        await queue.limit("x", **limits)
    await step(queue)
    await step(queue)
    await empty(queue)


@pytest.mark.long
async def test_all_steps_in_any_order(queue: Queue) -> None:
    chance = random.Random(7)
    await queue.limit("x", concurrency=3, rate=(600, "1m"))
    await queue.limit("y", concurrency=1)
    for _ in range(3):
        await fill(queue)
        steps = [*STEPS, *STEPS]
        chance.shuffle(steps)
        for step in steps:
            if len(await first_pending(queue, 6)) < 6:
                await fill(queue)
            queue.at(queue.now + chance.choice([0, 10, 400]))
            if step is mark_running:
                await queue.lose()
                await queue.create("free", 4)
            await step(queue)
    await empty(queue)


async def test_a_purge_leaves_nothing_of_lanes(queue: Queue) -> None:
    """Also of lanes that wait for a limit. A pause finds the tasks that come afterwards."""
    await queue.limit("x", concurrency=1)
    await queue.create("a", 5, limits={"x": 1})
    await queue.create("b", 5)
    await queue.create("b", 5, limits={"x": 1, "y": 1})
    await queue.complete(await queue.claim(2))
    await queue.claim(1)
    assert await queue.store.writer.purge(TaskStatus.PENDING) == (12, False)
    assert not queue.check().zset("lanes")
    await queue.pause("b")
    await queue.create("b", 3)
    assert await queue.claim() == []


# Pauses of tenants


async def test_a_paused_tenant_gives_no_claims(queue: Queue) -> None:
    """Waiting, delayed and limited tasks, and those that come while it is paused, wait for the resume."""
    await queue.limit("x", concurrency=1)
    await queue.create("a", 2)
    await queue.create("a", 1, due=1)
    await queue.create("a", 2, limits={"x": 1})
    await queue.create("a", 1, gpu=1)
    await queue.create("b", 2)
    assert await queue.pause("a") and not await queue.pause("a")
    assert tenants(await queue.claim()) == ["b", "b"]
    queue.at(2000)
    await queue.create("a", 1)
    assert await queue.claim_all() == []
    assert await queue.claim(1, fits=("1024:0 GPU-a 0 1024",)) == []
    queue.markers()
    assert await queue.pause("a", on=False) and not await queue.pause("a", on=False)
    assert queue.markers() == {"marker", "gpu_marker"}
    assert len(await queue.claim_all()) == 5, "two waiting, one delayed, one new, one of two with the limit"
    assert len(await queue.claim(1, fits=("1024:0 GPU-a 0 1024",))) == 1


async def test_a_running_task_of_a_paused_tenant_comes_back_and_waits(queue: Queue) -> None:
    await queue.create("a", 4)
    one, other, third, fourth = await queue.claim()
    await queue.pause("a")
    settles = [queue.completed(one), queue.retried(other), queue.released(third), queue.retried(fourth, 1)]
    assert await queue.settle(*settles) == ["ok"] * 4
    queue.at(5000)
    assert await queue.claim_all() == []
    await queue.pause("a", on=False)
    assert len(await queue.claim_all()) == 3


async def test_a_lane_that_waits_for_a_limit_through_a_pause(queue: Queue) -> None:
    await queue.limit("x", concurrency=1)
    await queue.create("a", 3, limits={"x": 1})
    await queue.create("b", 3, limits={"x": 1})
    (first,) = await queue.claim()
    assert first.task.tenant == "a"
    await queue.pause("a")
    await queue.complete([first])
    (second,) = await queue.claim()
    assert second.task.tenant == "b"
    await queue.pause("a", on=False)
    await queue.complete([second])
    assert len(await queue.claim()) == 1
    await queue.lose()
    order = []
    for _ in range(4):
        (one,) = await queue.claim_all()
        order.append(one.task.tenant)
        await queue.complete([one])
    assert sorted(order) == ["a", "a", "b", "b"]


@pytest.mark.parametrize("gpu", [{}, {"gpu": 1}])
async def test_suspects_of_a_paused_tenant_wait(queue: Queue, gpu: dict[str, float]) -> None:
    fits = ("1024:0 GPU-a 0 1024",) * 2 if gpu else ()
    await queue.create("a", 2, **gpu)
    for _ in range(2):
        assert len(await queue.claim(2, fits=fits)) > 0
        await queue.lose()
        queue.at(queue.now + 600_000)
        await queue.claim(1, kinds=Kinds(("other",)))  # moves those that are due
    found = queue.check()
    assert any(fields.get("k", "").endswith(" 1") for fields in found.tasks.values())
    await queue.pause("a")
    assert await queue.claim_all(fits=fits) == []
    queue.markers()
    await queue.pause("a", on=False)
    assert queue.markers() >= {"gpu_marker" if gpu else "marker"}
    claimed: list[Claimed] = []
    for _ in range(2):
        claimed += await queue.claim(2, fits=fits)
    assert len(claimed) == 2


@pytest.mark.parametrize("paused", [True, False])
async def test_suspects_that_may_not_start_are_not_in_the_way_of_those_of_other_workers(
    queue: Queue, paused: bool
) -> None:
    """Tenants `a` and `b` were each lost with a worker of their own, `a` first. `a` is paused, or its limit is shut."""
    await queue.limit("x", concurrency=3)
    for tenant, limits in (("a", {"x": 1}), ("b", {})):
        await queue.create(tenant, 2, limits=limits)
        for _ in range(2):
            assert len(await queue.claim(2, may_claim_suspect=False, worker=f"worker of {tenant}")) == 2
            await queue.lose()
            queue.at(queue.now + 600_000)
            await queue.claim(1, kinds=Kinds(("other",)))  # moves those that are due
    if paused:
        await queue.pause("a")
    else:
        await queue.limit("x", concurrency=1)
        await queue.create("c", 1, limits={"x": 1}, priority=-9)
        assert len(await queue.claim(1, may_claim_suspect=False)) == 1
    assert {one.task.tenant for one in await queue.claim_all()} == {"b"}


async def test_a_claim_plans_one_wait_for_all_suspects_of_a_shut_limit(queue: Queue) -> None:
    """However many cohorts they are of: each was lost with a worker of its own."""
    number = 20
    await queue.limit("x", concurrency=number)
    await queue.create("a", number, limits={"x": 1})
    for _ in range(2):
        for n in range(number):
            assert len(await queue.claim(1, may_claim_suspect=False, worker=f"worker {n}")) == 1
        await queue.lose()
        queue.at(queue.now + 600_000)
        await queue.claim(1, kinds=Kinds(("other",)))  # moves those that are due
    await queue.limit("x", concurrency=1)
    await queue.create("c", 1, limits={"x": 1}, priority=-9)
    assert len(await queue.claim(1, may_claim_suspect=False)) == 1
    before = calls(queue)
    assert await queue.claim() == []
    assert calls(queue) - before < number


def calls(queue: Queue) -> int:
    """Return how many commands the server has run that plan a wait for a limit."""
    found = queue.client.info("commandstats")
    return sum(found.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("zcard", "zadd"))


# Limits


async def test_no_more_tasks_run_than_a_limit_allows(queue: Queue) -> None:
    """Over claims of several sizes, and with each way to end an attempt."""
    await queue.limit("x", concurrency=5)
    for tenant in ("a", "b", ""):
        await queue.create(tenant, 60, limits={"x": 1})
    ends = itertools.cycle([queue.completed, queue.failed, queue.retried, queue.snoozed, queue.released])
    running: list[Claimed] = []
    chance = random.Random(2)
    done: Counter[str] = Counter()
    for _ in range(80):
        running += await queue.claim(chance.choice([1, 2, 7, 100]))
        assert len(running) <= 5
        chance.shuffle(running)
        number = chance.randrange(1, 1 + len(running)) if running else 0
        settles = [next(ends)(one) for one in running[:number]]
        assert await queue.settle(*settles) == ["ok"] * number
        done.update(tenants(running[:number]))
        running = running[number:]
    assert min(done.values()) > 30


async def test_a_settle_that_frees_a_limit_claims_for_it_at_once(queue: Queue) -> None:
    await queue.limit("x", concurrency=2)
    await queue.create("a", 10, limits={"x": 1})
    claimed = await queue.claim()
    assert len(claimed) == 2
    for _ in range(4):
        claimed = (await queue.exchange(10, *map(queue.completed, claimed))).claimed
        assert len(claimed) == 2


async def test_a_full_worker_lets_another_one_know_when_a_rate_opens(queue: Queue) -> None:
    """The other one has looked before, and would sleep until its next look."""
    await queue.limit("x", rate=(1, 10))
    await queue.create("a", 2, limits={"x": 1})
    assert len(await queue.claim(1)) == 1
    while not queue.check().zset("opens"):
        await queue.create()
        queue.markers()
        assert len(await queue.claim(1)) == 1
    assert queue.check().zset("opens") == {"x": 10_000 + START}
    assert queue.markers() == {"marker"}


async def test_a_settle_wakes_workers_for_a_limit(queue: Queue) -> None:
    await queue.limit("x", concurrency=1)
    await queue.create("a", 1, limits={"x": 1})
    await queue.create("a", 1, kind="render", limits={"x": 1})
    await queue.create("a", 1, gpu=1, limits={"x": 1})
    (plain,) = await queue.claim()
    assert await queue.claim(kinds=Kinds(("render",))) == await queue.claim(1, fits=("1024:0 GPU-a 0 1024",)) == []
    queue.markers()
    await queue.complete([plain])
    woken = queue.markers()
    assert woken & {"k:render:marker", "gpu_marker"}
    first = await queue.claim(kinds=Kinds(("render",))) + await queue.claim(1, fits=("1024:0 GPU-a 0 1024",))
    assert len(first) == 1
    queue.markers()
    await queue.complete(first)
    assert queue.markers()
    last = await queue.claim(kinds=Kinds(("render",))) + await queue.claim(1, fits=("1024:0 GPU-a 0 1024",))
    assert len(last) == 1


async def test_all_limits_of_a_task_are_looked_at_before_one_is_charged(queue: Queue) -> None:
    await queue.limit("a", concurrency=3, rate=(6000, "1m"))
    await queue.limit("z", concurrency=1)
    await queue.create("t", 4, limits={"a": 1, "z": 1})
    await queue.create("t", 4, limits={"a": 1})
    claimed = await queue.claim_all()
    assert sorted(len(lanes.limits_of(text.partition(" ")[0])) for text in queue.check().hash("held").values()) == [
        1,
        1,
        2,
    ]
    found = queue.check()
    assert (found.limit("a").use, found.limit("z").use) == (3, 1)
    (both,) = (one for one in claimed if "z" in found.hash("held")[one.task.task_id])
    (single, _) = (one for one in claimed if one is not both)
    await queue.complete([single])
    assert len(await queue.claim_all()) == 1, "`a` has room, `z` has none"
    await queue.complete([both])
    assert len(await queue.claim_all()) == 1
    found = queue.check()
    assert (found.limit("a").use, found.limit("z").use) == (3, 1)


async def test_a_replayed_request_charges_nothing(queue: Queue) -> None:
    await queue.limit("x", concurrency=3, rate=(600, "1m"), tokens=(900, "1m"))
    await queue.create("a", 5, limits={"x": 7})
    first = await queue.exchange(2, request_id="same")
    before = queue.check()
    for _ in range(2):
        again = await queue.exchange(2, request_id="same")
        assert ids(again.claimed) == ids(first.claimed) and first.claimed
        assert queue.check() == before


async def test_a_repeated_settle_gives_back_once(queue: Queue) -> None:
    await queue.limit("x", concurrency=2)
    await queue.create("a", 5, limits={"x": 1})
    one, other = await queue.claim()
    settle = queue.completed(one)
    assert await queue.settle(settle) == ["ok"]
    assert len(await queue.claim()) == 1
    for _ in range(2):
        assert await queue.settle(settle) == ["already"]
        assert queue.check().limit("x").use == 2
        assert await queue.claim() == []
    assert await queue.settle(queue.failed(other)) == ["ok"]
    assert queue.check().limit("x").use == 1


async def test_a_lost_lease_gives_back_once(queue: Queue) -> None:
    await queue.limit("x", concurrency=2)
    await queue.create("a", 5, limits={"x": 1})
    first = await queue.claim()
    await queue.lose()
    assert queue.check().limit("x").use == 0
    assert len(await queue.claim_all()) == 2
    assert await queue.settle(*map(queue.completed, first)) == ["lost", "lost"]
    assert queue.check().limit("x").use == 2


async def test_suspects_wait_for_their_limits(queue: Queue) -> None:
    await queue.limit("x", concurrency=3)
    await queue.create("a", 2, limits={"x": 1})
    for _ in range(2):
        await queue.claim(2)
        await queue.lose()
        queue.at(queue.now + 600_000)
    await queue.claim(1, kinds=Kinds(("other",)))  # moves those that are due
    await queue.limit("x", concurrency=1)
    await queue.create("b", 1, limits={"x": 1}, priority=-9)
    (other,) = await queue.claim(1, may_claim_suspect=False)
    assert await queue.claim_all() == []
    queue.markers()
    await queue.complete([other])
    assert "marker" in queue.markers()
    for _ in range(2):
        (one,) = await queue.claim_all()
        assert one.counts.suspect
        await queue.complete([one])


@pytest.mark.parametrize("is_lost", [True, False])
async def test_a_running_task_whose_key_is_deleted_gives_its_place_back(queue: Queue, is_lost: bool) -> None:
    """When its worker settles it, or when its lease has run out."""
    await queue.limit("x", concurrency=1)
    await queue.create("a", 2, limits={"x": 1})
    (one,) = await queue.claim()
    await queue.store.lost.look(1e6, 0)
    queue.client.delete(queue.store.connection.keys.task(one.task.task_id))
    if not is_lost:
        request = BatchRequest((queue.completed(one),), 0, may_claim_suspect=False, request_id="gone", exchange=0)
        assert (await queue.store.exchange.send(request, "worker")).answers == ["unknown"]
    queue.at(LEASE)
    assert await queue.store.lost.look(1e6, 0) == ([], None)
    assert len(await queue.claim_all()) == 1


@pytest.mark.parametrize(
    "rate", [(3, 1.0), (50, "10s"), pytest.param((500, "1m"), marks=[pytest.mark.long, pytest.mark.rare]), (7, "1m")]
)
@pytest.mark.parametrize("step", ["at the time it is told", "by chance"])
async def test_a_rate_is_kept_and_reached(queue: Queue, rate: tuple[int, Any], step: str) -> None:
    """No stretch of the period has more starts. By the times that the replies tell, the rate is reached."""
    most, period = rate
    ms = {1.0: 1000, "10s": 10_000, "1m": 60_000}[period]
    await queue.limit("x", rate=rate)
    number = min(1100, 4 * most + 2)
    for tenant in ("a", "b"):
        for start in range(0, number, 1000):
            await queue.create(tenant, min(1000, number - start), limits={"x": 1})
    chance = random.Random(3)
    starts: list[float] = []
    end = (number / most - 0.5) * ms
    while queue.now < end:
        request = BatchRequest((), 100, may_claim_suspect=True, request_id=f"r{queue.now}", exchange=0)
        reply = await queue.store.exchange.send(request, "worker")
        starts += [queue.now] * len(reply.claimed)
        if reply.claimed:
            settles = tuple(map(queue.completed, reply.claimed))
            done = BatchRequest(settles, 0, may_claim_suspect=True, request_id=f"d{queue.now}", exchange=0)
            await queue.store.exchange.send(done, "worker")
        if step == "by chance":
            queue.at(queue.now + chance.choice([0.25, 1, ms / most, 3 * ms / most, ms / 3]) * chance.random())
        else:
            assert reply.next_due is not None or reply.hit
            queue.at(queue.now + max(1, 1000 * (reply.next_due or 0)))
        if chance.random() < 0.05:
            queue.check()
    assert lanes.windows(starts, ms) <= most
    if step != "by chance":
        assert len(starts) >= 0.95 * most * queue.now / ms - 1


@pytest.mark.long
@pytest.mark.rare
async def test_units_are_kept_and_reached(queue: Queue) -> None:
    """No stretch of the period has more units than the limit and the last task that starts in it."""
    await queue.limit("x", tokens=(1000, "10s"))
    chance = random.Random(4)
    units: dict[str, float] = {}
    for n in range(300):
        number = chance.choice([1, 10, 120.5])
        (task_id,) = await queue.create("a" if n % 2 else "b", limits={"x": number}, ids=[f"{n}"])
        units[task_id] = number
    starts: list[tuple[float, float]] = []
    while queue.now < 60_000:
        reply = await queue.exchange(100)
        starts += [(queue.now, units[task_id]) for task_id in ids(reply.claimed)]
        await queue.complete(reply.claimed)
        assert reply.next_due is not None or reply.hit
        queue.at(queue.now + max(1, 1000 * (reply.next_due or 0)))
    for n, (moment, _) in enumerate(starts):
        window = [number for at, number in starts[n:] if at < moment + 10_000]
        assert sum(window[:-1]) <= 1000
    assert sum(number for _, number in starts) >= 0.95 * 1000 * queue.now / 10_000


async def test_units_that_were_not_used_are_given_back(queue: Queue) -> None:
    await queue.limit("x", tokens=(1000, "10s"))
    await queue.create("a", 5, limits={"x": 900})
    (one,) = await queue.claim()
    assert await queue.claim_all() == []
    used = Lane("a", 1, {"x": 900}).changed(None, {"x": 1})
    assert await queue.settle(queue.completed(one, f"u {used}")) == ["ok"]
    assert len(await queue.claim_all()) == 1


async def test_units_that_were_used_besides_are_charged(queue: Queue) -> None:
    await queue.limit("x", tokens=(1000, "10s"))
    await queue.create("a", 5, limits={"x": 1})
    (one,) = await queue.claim(1)
    used = Lane("a", 1, {"x": 1}).changed(None, {"x": 900})
    assert await queue.settle(queue.completed(one, f"u {used}")) == ["ok"]
    assert await queue.claim_all() == []
    queue.at(9500)
    assert len(await queue.claim_all()) > 0


async def test_a_limit_of_a_class_counts_each_name(queue: Queue) -> None:
    await queue.limit("user:*", concurrency=1)
    await queue.limit("user:3", concurrency=2)
    for name in ("user:1", "user:2", "user:3", "other:1"):
        await queue.create("", 3, limits={name: 1})
    await queue.claim_all()
    use = {"user:1": 1, "user:2": 1, "user:3": 2, "other:1": 3}
    assert {name: queue.check().limit(name).use for name in use} == use
    queue.markers()
    await queue.limit("user:*", concurrency=2)
    assert queue.markers()
    await queue.claim_all()
    assert {name: queue.check().limit(name).use for name in use} == {**use, "user:1": 2, "user:2": 2}
    assert await queue.limit("user:3")
    assert await queue.claim_all() == [], "the limit of its class holds"
    assert await queue.limit("user:*")
    assert len(await queue.claim_all()) == 3


@pytest.mark.parametrize("wait", [{"concurrency": 1}, {"rate": (1, "1h")}, {"tokens": (1, "1h")}])
@pytest.mark.parametrize("more", [{}, {"concurrency": 50}, {"rate": (1000, "1s")}])
async def test_a_new_setting_wakes_what_waits(queue: Queue, wait: dict[str, Any], more: dict[str, Any]) -> None:
    await queue.limit("x", **wait)
    await queue.create("a", 3, limits={"x": 1})
    await queue.create("b", 3, limits={"x": 1}, kind="render")
    assert len(await queue.claim_all(kinds=KINDS)) == 1
    queue.markers()
    assert await queue.limit("x", **more)
    assert queue.markers() >= {"marker", "k:render:marker"}
    claimed = []
    for n in range(20):
        queue.at(n)
        claimed += await queue.claim_all(kinds=KINDS)
    assert len(claimed) == 5


@pytest.mark.parametrize("name", ["user:7", pytest.param("user:*", marks=[pytest.mark.long, pytest.mark.rare])])
async def test_another_rate_counts_what_has_started_before(queue: Queue, name: str) -> None:
    """A rate that goes up and down gives no more starts than the higher one in any stretch of its period."""
    rates = [(100, "10s"), (90, "10s"), (50, "10s")]
    await queue.limit(name, rate=rates[0])
    await queue.create("a", 300, limits={"user:7": 1})
    starts: list[float] = []
    for n in range(400):
        claimed = await queue.claim()
        starts += [queue.now] * len(claimed)
        await queue.complete(claimed)
        await queue.limit(name, rate=rates[n % 3])
        queue.at(queue.now + 50)
    assert lanes.windows(starts, 10_000) <= 100
    assert len(starts) >= 0.95 * 2 * 70


async def test_other_units_count_what_has_started_before(queue: Queue) -> None:
    await queue.limit("x", tokens=(10, "1h"))
    await queue.create("a", 300, limits={"x": 5})
    assert len(await queue.claim_all()) == 1
    await queue.limit("x", tokens=(100, "10s"))
    assert await queue.claim_all() == []
    queue.at(600)
    assert len(await queue.claim_all()) == 1
    await queue.limit("x", concurrency=100)
    assert len(await queue.claim_all()) > 9
    await queue.limit("x", tokens=(100, "10s"))
    assert len(await queue.claim_all()) == 1, "what started without a rate is not known"


async def test_a_lower_setting_lets_running_tasks_end(queue: Queue) -> None:
    await queue.create("a", 8, limits={"x": 1})
    running = await queue.claim(4)
    await queue.limit("x", concurrency=2)
    assert await queue.claim_all() == []
    for one in running[:2]:
        await queue.complete([one])
        assert await queue.claim_all() == []
    await queue.complete([running[2]])
    assert len(await queue.claim_all()) == 1


async def test_a_closed_limit_opens_by_trials(queue: Queue) -> None:
    """After its time one task may start, and each one that completes lets one more."""
    await queue.create("a", 300, limits={"x": 1})
    first, *others = await queue.claim(3)
    settle = queue.completed(first, "c x 5000")
    assert await queue.settle(settle) == ["ok"]
    reply = await queue.exchange(100)
    assert (reply.claimed, reply.next_due) == ([], 5.0)
    assert await queue.settle(*map(queue.failed, others)) == ["ok", "ok"]
    queue.at(4999)
    assert await queue.claim_all() == []
    queue.at(5000)
    for number in range(1, 10):
        claimed = await queue.claim_all()
        assert len(claimed) == number
        assert await queue.settle(queue.completed(claimed[0]), *map(queue.failed, claimed[1:])) == ["ok"] * number
    for _ in range(20):
        claimed = await queue.claim_all()
        if not claimed:
            break
        await queue.complete(claimed)
    assert not queue.check().hash("closed")


async def test_a_limit_that_is_closed_again_and_again_opens_more_slowly(queue: Queue) -> None:
    """One trial more for each completed task; for each second, fourth and eighth one after further closings."""
    await queue.create("a", 300, limits={"x": 1})
    now = 0
    (running,) = await queue.claim(1)
    for needed in (1, 2, 4, 8, 8):
        assert await queue.settle(queue.completed(running, "c x 5000")) == ["ok"]
        now += 5000
        queue.at(now)
        for _ in range(needed):
            (one,) = await queue.claim_all()
            await queue.complete([one])
        running, other = await queue.claim_all()
        await queue.complete([other])
    await queue.settle(queue.completed(running))
    queue.at(now + 599_999)
    assert queue.check().hash("closed")
    queue.at(now + 600_000)
    assert len(await queue.claim_all()) > 10, "the trial is over"
    assert not queue.check().hash("closed")


async def test_a_repeated_close_counts_once(queue: Queue) -> None:
    await queue.create("a", 5, limits={"x": 1})
    (one,) = await queue.claim(1)
    settle = queue.completed(one, "c x 5000")
    assert await queue.settle(settle) == ["ok"]
    queue.at(3000)
    assert await queue.settle(settle) == ["already"]
    queue.at(5000)
    assert len(await queue.claim_all()) == 1


async def test_setting_a_limit_opens_a_closed_one(queue: Queue) -> None:
    await queue.create("a", 5, limits={"x": 1})
    (one,) = await queue.claim(1)
    assert await queue.settle(queue.completed(one, "c x 5000000")) == ["ok"]
    assert await queue.claim_all() == []
    await queue.limit("x", concurrency=3)
    assert len(await queue.claim_all()) == 3


@pytest.mark.long
@pytest.mark.rare
async def test_many_lanes_that_wait_for_one_limit(queue: Queue) -> None:
    """More lanes than a call rouses, in two indexes, of tenants of which some are paused."""
    await queue.limit("x", concurrency=1)
    for n in range(150):
        await queue.create(f"t{n}", limits={"x": 1}, kind="render" if n % 3 else NAMELESS)
    assert len(await queue.claim_all(kinds=KINDS)) == 1
    for n in range(0, 150, 5):
        await queue.pause(f"t{n}")
    await queue.limit("x", concurrency=1000)
    assert len(await queue.claim_all(kinds=KINDS)) in {119, 120}
    for n in range(0, 150, 5):
        await queue.pause(f"t{n}", on=False)
    await queue.claim_all(kinds=KINDS)
    assert not queue.check().zset("lanes")


async def test_a_tenant_with_many_limited_lanes(queue: Queue) -> None:
    """More lanes than a visit looks at; most of them wait for a limit. No task is claimed twice."""
    await queue.limit("user:*", concurrency=1)
    for n in range(40):
        await queue.create("a", 3, limits={f"user:{n}": 1, "all": 1})
    await queue.create("b", 3)
    await queue.limit("all", concurrency=35)
    claimed = await queue.claim_all()
    assert len(set(ids(claimed))) == len(claimed) == 35 + 3
    await queue.complete(claimed)
    seen = set(ids(claimed))
    for _ in range(20):
        claimed = await queue.claim_all()
        assert not seen & set(ids(claimed))
        assert len(set(ids(claimed))) == len(claimed) <= 35
        seen |= set(ids(claimed))
        await queue.complete(claimed)
    assert len(seen) == 123


@pytest.mark.long
async def test_lanes_of_two_limits_whose_rooms_change(queue: Queue) -> None:
    """Lanes move from one limit to the other. Each claim takes what fits, and no task twice."""
    chance = random.Random(5)
    pairs = [{"x": 1}, {"y": 1}, {"x": 1, "y": 1}, {"x": 1, "y": 1, "z": 1}, {"y": 1, "z": 1}]
    for n in range(150):
        limits = dict.fromkeys(chance.choice(pairs), 1.0)
        await queue.create(chance.choice("abc"), limits=limits, ids=[f"{n}"])
    running: dict[str, Claimed] = {}
    rooms = {"x": 3, "y": 2, "z": 1}
    for name, number in rooms.items():
        await queue.limit(name, concurrency=number)
    done = 0
    while done < 150:
        claimed = await queue.claim(chance.choice([1, 3, 20]))
        assert len({*ids(claimed)}) == len(claimed) and not running.keys() & {*ids(claimed)}
        running |= {one.task.task_id: one for one in claimed}
        found = queue.check()
        for name, number in rooms.items():
            assert found.limit(name).use <= max(number, 3)
        if chance.random() < 0.1:
            name = chance.choice("xyz")
            rooms[name] = chance.choice([1, 2, 3])
            await queue.limit(name, concurrency=rooms[name])
        some = chance.sample(sorted(running), min(len(running), chance.choice([0, 1, 2, 5])))
        if not claimed and not some and running:
            some = [min(running)]
        await queue.complete([running.pop(task_id) for task_id in some])
        done += len(some)


async def test_what_has_room_is_claimed_by_a_large_claim(queue: Queue) -> None:
    """A lane whose limits have room is taken in the same claim as others, also if those were roused for nothing."""
    await queue.limit("x", concurrency=2)
    await queue.create("a", 2, limits={"x": 1})
    first = await queue.claim()
    await queue.create("b", 1, limits={"x": 1})
    await queue.create("c", 1, limits={"x": 1, "y": 1})
    await queue.limit("y", concurrency=1)
    await queue.create("d", 2, limits={"y": 1})
    (running,) = await queue.claim()
    assert running.task.tenant == "d"
    await queue.complete(first)
    found = await queue.claim_all()
    assert sorted(tenants(found)) == ["b"]
    await queue.complete([running])
    assert len(await queue.claim_all()) == 1


# Sizes


async def test_a_tenant_has_at_most_so_many_waiting_tasks(queue: Queue, server: Server) -> None:
    queue.config.task.max_tenant_queue_size = 5
    scheduler = TaskBackoffScheduler(queue.config)
    answers: list[Any] = []

    async def create(tenant: str) -> None:
        try:
            answers.append(await scheduler.create_task({}, tenant=tenant))
        except TenantFullError as error:
            answers.append((error.tenant, error.limit))

    async with anyio.create_task_group() as group:
        for n in range(18):
            group.start_soon(create, "ab"[n % 2])
    assert Counter(answer for answer in answers if isinstance(answer, tuple)) == {("a", 5): 4, ("b", 5): 4}
    found = queue.check()
    assert found.hash("waiting") == {"a": "5", "b": "5"}
    with pytest.raises(TenantFullError):
        await scheduler.create_task({}, tenant="a", delay=60)
    await scheduler.create_task({}, tenant="c", delay=60)
    await scheduler.create_task({})
    await scheduler.shutdown()
    queue.check()


async def test_create_tasks_creates_none_of_a_full_tenant(queue: Queue) -> None:
    queue.config.task.max_tenant_queue_size = 5
    creator = TaskCreator(queue.config, queue.store.writer, None)
    specs = [TaskSpec({"n": n}, f"{n}", tenant="ab"[n % 2]) for n in range(10)]
    assert len(await creator.create_many(specs)) == 10
    with pytest.raises(TenantFullError) as caught:
        await creator.create_many([TaskSpec({}, "new", tenant="c"), TaskSpec({"n": 0}, "0", tenant="a"), *more("a", 1)])
    assert (caught.value.tenant, caught.value.created) == ("a", ["0"])
    assert await queue.store.reader.get("new") is None
    queue.check()
    (one, *_) = await queue.claim(10)
    assert len(await creator.create_many(more("a", 5))) == 5
    assert await queue.settle(queue.retried(one)) == ["ok"], "a task that comes back is never refused"


def more(tenant: str, number: int) -> list[Any]:
    return [TaskSpec({}, tenant=tenant) for _ in range(number)]


async def test_the_size_of_the_queue_counts_tasks_in_lanes(queue: Queue) -> None:
    await queue.create("a", 3)
    await queue.create("a", 2, limits={"x": 1})
    await queue.create("", 1)
    await queue.create("a", 1, gpu=2)
    stats = await queue.store.reader.stats()
    assert (stats.pending_count, stats.gpu_count) == (7, 1)
    queue.config.task.max_queue_size = 8
    assert len(await TaskCreator(queue.config, queue.store.writer, None).create_many(more("b", 1))) == 1
    with pytest.raises(QueueFullError):
        await TaskCreator(queue.config, queue.store.writer, None).create_many(more("c", 1))


async def test_the_oldest_task_may_be_in_a_lane(queue: Queue) -> None:
    await queue.create("a")
    await queue.create("a", gpu=2)
    queue.at(7000)
    stats = await queue.store.reader.stats()
    assert stats.oldest_pending_age == 7


# GPUs


async def test_tasks_of_tenants_on_gpus(queue: Queue) -> None:
    for tenant in ("a", "b"):
        await queue.create(tenant, 20, gpu=1)
    await queue.create("c", 20, gpu=1, limits={"x": 1})
    await queue.limit("x", concurrency=1)
    await queue.weigh("b", 3)
    fits = ("1024:0 GPU-a 0 1024", "1024:0 GPU-b 1 1024")
    running: list[Claimed] = []
    count: Counter[str] = Counter()
    for _ in range(12):
        claimed = await queue.claim(2, fits=fits)
        assert sorted(one.fit for one in claimed) == [0, 1]
        assert sum(one.task.tenant == "c" for one in claimed) <= 1
        count.update(tenants(claimed))
        await queue.complete(claimed)
    assert count["b"] > count["a"] > 0 < count["c"]
    assert not running


async def test_a_task_too_large_for_a_place_stays(queue: Queue) -> None:
    """Demands that share a set: the first task of a tenant does not fit, the next one does."""
    for n in range(12):
        await queue.create("", gpu=0.001 * (n + 1))  # each demand has a set of its own
    await queue.create("a", gpu=3.9)
    await queue.create("a", gpu=2.5)
    await queue.create("b", gpu=3.8)
    shared = next(name for name in queue.check().hash("demands") if name.startswith("~"))
    small, large = f"{shared} GPU-a 0 2600", f"{shared} GPU-b 0 4000"
    assert [one.task.tenant for one in await queue.claim(1, fits=(small,))] == ["a"]
    assert await queue.claim(1, fits=(small,)) == []
    assert sorted(tenants(await queue.claim(2, fits=(large, large)))) == ["a", "b"]


async def test_limits_of_two_demands_in_one_claim(queue: Queue) -> None:
    """A lane of the first demand is roused while tasks of the second one are taken."""
    await queue.limit("x", concurrency=1)
    await queue.create("a", 1, gpu=1, limits={"x": 1})
    await queue.create("a", 1, gpu=2, limits={"x": 1})
    await queue.create("a", 1, gpu=1)
    fits = ("1024:0 GPU-a 0 1024", "2048:0 GPU-b 0 2048")
    running = await queue.claim(2, fits=fits)
    for _ in range(8):
        queue.check()
        running = (await queue.exchange(2, *map(queue.completed, running), fits=fits)).claimed
    assert not queue.check().zset("lanes")


async def test_passed_over_tasks_do_not_keep_a_worker_busy(queue: Queue) -> None:
    for n in range(12):
        await queue.create("", gpu=0.001 * (n + 1))
    for tenant in ("a", "b"):
        await queue.create(tenant, 700, gpu=3.9)
    shared = next(name for name in queue.check().hash("demands") if name.startswith("~"))
    small = (f"{shared} GPU-a 0 2600",)
    assert not any([(await queue.exchange(1, fits=small)).hit for _ in range(5)][-2:])


async def test_the_demands_of_tenants(queue: Queue) -> None:
    await queue.create("a", 2, gpu=1)
    await queue.create("b", 2, gpu=2, limits={"x": 1})
    await queue.limit("x", concurrency=1)

    async def demands() -> list[str]:
        waiting, _, _ = await queue.store.reader.demands("1 -", ONLY_NAMELESS)
        return sorted(one.name for one in waiting)

    assert await demands() == ["1024:0", "2048:0"]
    await queue.claim(1, fits=("2048:0 GPU-b 0 2048",))
    await queue.claim(1, fits=("2048:0 GPU-b 0 2048",))
    assert await demands() == ["1024:0"], "no memory is reserved for a task that waits for a limit"
    await queue.pause("a")
    assert await demands() == []


# Repairs


async def test_a_lost_lane_is_repaired(queue: Queue) -> None:
    """A person has deleted keys of lanes: all tasks are found again."""
    await queue.create("a", 3)
    await queue.create("a", 2, limits={"x": 1})
    await queue.create("b", 2, gpu=1)
    prefix = queue.store.connection.keys.prefix
    for key in queue.client.scan_iter("*"):
        name = key.decode().removeprefix(prefix)
        if "|" in name or name.endswith(":turns") or name in {"lanes", "laned", "waiting"}:
            queue.client.delete(key)
    search = await find_orphans(queue.store.connection, repair=True)
    assert search.orphans == 7
    queue.check()
    assert len(await queue.claim_all()) == 5
    assert len(await queue.claim(2, fits=("1024:0 GPU-a 0 1024",) * 2)) == 2


async def test_tasks_in_lanes_are_no_orphans(queue: Queue) -> None:
    await fill(queue)
    await queue.create("a", 2, gpu=1)
    assert (await find_orphans(queue.store.connection, repair=True)).orphans == 0
    queue.check()


async def test_plain_tasks_have_no_turn_when_they_are_alone(queue: Queue) -> None:
    """Their turn ends with the last lane, also where their last task is deleted."""
    fits = ("1024:0 GPU-a 0 1024",)
    for gpu in ({}, {"gpu": 1}):
        plain = await queue.create("", 9, **gpu)
        await queue.create("a", 3, **gpu)
        claimed: list[Claimed] = []
        while tenants(claimed).count("a") < 3:
            claimed += await queue.claim(1, fits=fits if gpu else ())
        for task_id in set(plain) - {*ids(claimed)}:
            assert await queue.store.writer.delete(task_id)
    await queue.exchange(1)
    await queue.exchange(1)
    assert not [name for name in queue.check().zsets if name.endswith(":turns")]


@pytest.mark.parametrize("limits", [{}, {"concurrency": 1}])
async def test_a_delayed_task_with_limits_is_claimed_when_it_is_due(queue: Queue, limits: dict[str, int]) -> None:
    """No other task has a tenant or limits, and other calls come meanwhile."""
    if limits:
        await queue.limit("x", **limits)
    await queue.create("", 1, limits={"x": 1}, due=1)
    await queue.create("", 3)
    for _ in range(2):
        await queue.complete(await queue.claim(1))
    queue.at(2000)
    await queue.complete(await queue.claim_all())
    assert await queue.store.reader.count_external() == 0
    assert not lanes.Lanes.read(queue.client).lanes


async def test_suspects_with_limits_alone_take_their_places(queue: Queue) -> None:
    """They are the only tasks with limits, and the limit is set when they run."""
    await queue.create("", 2, limits={"x": 1})
    for _ in range(2):
        await queue.claim(2)
        await queue.lose()
        queue.at(queue.now + 600_000)
        await queue.claim(1, kinds=Kinds(("other",)))  # moves those that are due
    assert len(await queue.claim(1)) == 1
    assert len(queue.check().hash("held")) == 1
    await queue.limit("x", concurrency=1)
    assert await queue.claim_all() == []


async def test_a_look_for_a_batch_notes_which_lanes_it_has_roused(queue: Queue) -> None:
    """The look first finds out what the batch would be. Lanes that it rouses then stay roused, of other kinds, too."""
    render = Kinds(("render",))
    look = {"kind": "render", "batch": "4 10000 -", "kinds": render}
    await queue.limit("x", concurrency=2)
    await queue.create("a", 2, limits={"x": 1})
    running = await queue.claim(2)
    await queue.create("b", 1, limits={"x": 1})
    await queue.create("a", 1, kind="render", limits={"x": 1})
    assert await queue.claim(2) == await queue.claim(1, **look) == []
    assert queue.check().waiting_for("x") == {"ready|b|x", "k:render:ready|a|x"}
    await queue.complete(running[:1])
    queue.markers()
    reply = await queue.exchange(1, **look)
    assert reply.claimed == [] and reply.next_due is not None
    found = queue.check()
    assert found.waiting_for("x") == set() and not found.zset("opens")
    assert "marker" in queue.markers()
    queue.at(10_000)
    assert len(await queue.claim(1, **look)) == 1


async def test_a_look_for_a_batch_that_rouses_lanes_of_others_takes_no_young_task(queue: Queue) -> None:
    """The claim and its trial each rouse a lane, and only then comes the one of the batch, which is not due."""
    look = {"kind": "render", "batch": "4 10000 -", "kinds": Kinds(("render",))}
    await queue.limit("x", concurrency=1)
    await queue.create("a", 1, limits={"x": 1})
    running = await queue.claim(1)
    for tenant in "bcd":
        await queue.create(tenant, 1, limits={"x": 1})
    await queue.create("e", 1, kind="render", limits={"x": 1})
    assert await queue.claim(4) == await queue.claim(1, **look) == []
    await queue.complete(running)
    for _ in range(8):
        assert await queue.claim(1, **look) == []
    queue.at(10_000)
    assert len(await queue.claim(1, **look)) == 1


async def test_a_look_for_a_batch_tells_how_urgent_each_kind_is(queue: Queue) -> None:
    """By a plain task, by one of a tenant, by one with limits; not of a kind without tasks, nor of a paused one."""
    names = ("none", "plain", "tenant", "limits", "paused")
    kinds = Kinds((NAMELESS, *names), batches=dict.fromkeys(names, Batching()))
    look = {"kind": "none", "batch": "4 10000 -", "kinds": kinds}
    for number, (name, tenant, limits) in enumerate(
        [("plain", "", {}), ("tenant", "a", {}), ("limits", "a", {"x": 1}), ("paused", "", {})]
    ):
        for priority in (1, -number):
            await queue.create(tenant, kind=name, priority=priority, limits=limits)
    await queue.operations.pause(on=True, kind="paused", tenant=None)
    none, plain, tenant, limited, paused = (await queue.exchange(1, **look)).ranks
    assert none == paused == float("inf")
    minute = 60_000 * 4096
    assert plain - tenant == tenant - limited == minute
    claim = await queue.exchange(1, kinds=kinds)
    assert not claim.claimed and claim.ranks == [none, plain, tenant, limited, paused]
    assert (await queue.exchange(1, **{**look, "kinds": Kinds(names[:1], batches={"none": Batching()})})).ranks == []
