"""Kinds of tasks in the store: a worker claims tasks of its kinds only, in one order, and is woken for these alone."""

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
from support import Server, quick_config

from maas_backoff.client.creator import TaskCreator
from maas_backoff.client.operations import QueueOperations
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.kind import NAMELESS, ONLY_NAMELESS, Kinds
from maas_backoff.domain.outcome import Failed
from maas_backoff.domain.page import Listing
from maas_backoff.domain.settlement import Settlement, decide
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskError
from maas_backoff.errors import InvalidValueError, QueueFullError
from maas_backoff.store.batch import NO_SUSPECTS, BatchRequest, Claimed, Settle
from maas_backoff.store.orphans import find_orphans
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.scripts import ALL

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
BOTH = Kinds((NAMELESS, "render"))
RENDER, OTHER = Kinds(("render",)), Kinds(("other",))


class Queue:
    """A store on a virtual clock, with creators of three kinds."""

    def __init__(self, server: Server) -> None:
        self.config: TaskBackoffConfig = quick_config(server.storage)
        self.store = QueueStore.of(self.config)
        self.client = server.client
        self.at(0)
        self._requests = 0

    def at(self, ms: float) -> None:
        self.store.connection.clock = f"{START + ms:.0f}"

    async def create(self, task_id: str, kind: str = "render", **options: Any) -> None:
        creator = TaskCreator(self.config, self.store.writer, None, kind)
        await creator.create({}, task_id, options)

    async def exchange(self, claims: int, kinds: Kinds, *settles: Settle, **given: Any) -> list[Claimed]:
        self._requests += 1
        given.setdefault("may_claim_suspect", True)
        request = BatchRequest(settles, claims, request_id=f"{self._requests}", exchange=0, **given)
        return (await self.store.exchange.send(request, "worker", kinds)).claimed

    async def ids(self, claims: int, kinds: Kinds, **given: Any) -> list[str]:
        return [one.task.task_id for one in await self.exchange(claims, kinds, **given)]

    def markers(self) -> set[str]:
        """Return the markers that are there, and take them."""
        prefix = self.store.connection.keys.prefix
        names = {key.decode().removeprefix(prefix) for key in self.client.scan_iter("*marker")}
        for name in names:
            self.client.delete(prefix + name)
        return names


@pytest.fixture
async def queue(any_server: Server) -> AsyncIterator[Queue]:
    queue = Queue(any_server)
    yield queue
    await queue.store.aclose()


async def test_a_worker_claims_tasks_of_its_kinds_only(queue: Queue) -> None:
    await queue.create("plain", NAMELESS)
    await queue.create("image")
    assert await queue.ids(10, OTHER) == []
    assert await queue.ids(10, ONLY_NAMELESS) == ["plain"]
    (image,) = await queue.exchange(10, RENDER)
    assert (image.task.task_id, image.task.kind) == ("image", "render")


async def test_several_kinds_share_one_order(queue: Queue) -> None:
    for n in range(6):
        queue.at(n)
        await queue.create(f"{n}", "render" if n % 2 else NAMELESS)
    await queue.create("first", priority=-1)
    assert await queue.ids(3, BOTH) == ["first", "0", "1"]
    assert await queue.ids(10, BOTH) == ["2", "3", "4", "5"]


async def test_a_delayed_task_reaches_a_worker_of_its_kind(queue: Queue) -> None:
    """Whichever worker looks first: one of another kind moves the task, and wakes the right worker."""
    await queue.create("image", delay=1)
    await queue.create("later", delay=1)
    queue.markers()
    queue.at(1000)
    assert await queue.ids(10, ONLY_NAMELESS) == []
    assert queue.markers() == {"k:render:marker"}
    assert await queue.ids(1, RENDER) == ["image"]
    assert queue.markers() == {"k:render:marker"}, "there is one more"
    assert await queue.ids(1, RENDER) == ["later"]


@pytest.mark.parametrize("kind", [NAMELESS, "render"])
async def test_a_create_wakes_a_worker_of_the_kind(queue: Queue, kind: str) -> None:
    own = "k:render:" if kind else ""
    for n in range(2):  # the first task of a kind, and a later one on the straight path
        await queue.create(f"{n}", kind)
        assert queue.markers() == {f"{own}marker"}
    await queue.create("on a GPU", kind, min_gpu_memory_gb=1)
    assert queue.markers() == {f"{own}gpu_marker"}
    await queue.create("soon", kind, delay=5)
    assert queue.markers() == {f"{own}marker"}


async def test_due_tasks_count_for_their_kind_before_a_claim_has_moved_them(queue: Queue) -> None:
    """While all slots are busy, or without a worker, nobody moves them. Nobody says then that they have no kind."""
    for n in range(3):
        await queue.create(f"later {n}", delay=1)
        await queue.create(f"of another kind {n}", "other", delay=2)
    await queue.create("on a GPU", delay=1, min_gpu_memory_gb=1)
    await queue.create("on a GPU now", min_gpu_memory_gb=1)
    queue.at(1500)
    stats = await queue.store.reader.stats()
    assert (stats.pending_count, stats.scheduled_count, stats.gpu_count) == (8, 3, 2)
    assert (stats.kinds, stats.gpu_kinds) == ({"render": 3, "other": 0}, {"render": 2})


async def test_of_many_due_tasks_that_no_claim_has_moved_the_first_ones_are_looked_at(queue: Queue) -> None:
    for n in range(150):
        await queue.create(f"{n} of one kind", delay=1)
        await queue.create(f"{n} of another kind", "other", delay=1)
    queue.at(1500)
    assert (await queue.store.reader.stats()).kinds == {"render": 150, "other": 150}


async def test_no_task_is_left_out_of_the_numbers_of_many(queue: Queue) -> None:
    """The numbers of 201 are those of 200, rounded: the sum is that of all."""
    for n in range(201):
        await queue.create(f"{n}", "other" if n % 67 == 0 else "render", delay=1)
    queue.at(1500)
    stats = await queue.store.reader.stats()
    assert sum(stats.kinds.values()) == stats.pending_count == 201


async def test_due_tasks_count_for_a_gpu_set_that_was_empty(queue: Queue) -> None:
    """A set that is empty is not listed."""
    await queue.create("on a GPU", delay=1, min_gpu_memory_gb=1)
    queue.at(1500)
    stats = await queue.store.reader.stats()
    assert (stats.gpu_count, stats.gpu_kinds, stats.kinds) == (1, {"render": 1}, {"render": 0})


async def test_due_tasks_count_for_a_gpu_set_that_several_demands_share(queue: Queue) -> None:
    """From some number of sets on, demands share sets. This one has tasks."""
    for n in range(20):
        await queue.create(f"{n}", min_gpu_memory_gb=1 + n / 4)
    await queue.create("later", delay=1, min_gpu_memory_gb=3.9)
    queue.at(1500)
    stats = await queue.store.reader.stats()
    assert (stats.gpu_count, stats.gpu_kinds) == (21, {"render": 21})


async def test_a_comeback_stays_in_its_kind(queue: Queue) -> None:
    await queue.create("image")
    (image,) = await queue.exchange(1, RENDER)
    queue.markers()
    error = Failed(TaskError("ValueError", "boom"))
    retry = decide(error, "image", image.counts, image.policy, image.policy.backoff())
    assert retry is not None
    again = attrs.evolve(retry, delay=0)
    assert await queue.exchange(0, RENDER, Settle("image", "lease", image.token, again, info=None)) == []
    assert queue.markers() == {"k:render:marker"}
    assert await queue.ids(1, ONLY_NAMELESS) == []
    assert await queue.ids(1, RENDER) == ["image"]


async def test_a_lost_task_is_a_suspect_of_its_kind(queue: Queue) -> None:
    await queue.create("image")
    for _ in range(2):
        assert await queue.ids(1, RENDER) == ["image"]
        queue.at(float(queue.store.connection.clock or 0) - START + 1000 * queue.config.scheduler.lease)
        for one in (await queue.store.lost.look(1e6, 0))[0]:
            settlement = decide(one.loss, "image", one.counts, one.policy, one.policy.backoff())
            assert settlement is not None
            suspect = attrs.evolve(settlement.counts or one.counts, suspect=True)
            await queue.store.lost.settle([one.settle(attrs.evolve(settlement, delay=0, counts=suspect))], "reaper")
    assert (await queue.store.reader.stats()).suspect_count == 1
    assert await queue.ids(5, BOTH, may_claim_suspect=False) == []
    assert await queue.ids(5, ONLY_NAMELESS) == []
    assert await queue.ids(5, BOTH) == ["image"]


async def test_tasks_on_gpus_are_claimed_by_kind(queue: Queue) -> None:
    for kind in (NAMELESS, "render", "other"):
        await queue.create(f"of {kind}", kind, min_gpu_memory_gb=1)
    for kinds, names in ((ONLY_NAMELESS, ["1024:0"]), (BOTH, ["1024:0", "render/1024:0"]), (Kinds(("new",)), [])):
        waiting, _, _ = await queue.store.reader.demands(NO_SUSPECTS, kinds)
        assert sorted(one.name for one in waiting) == names
        assert {one.demand.memory for one in waiting} <= {1024}
    fits = ("render/1024:0 GPU-a 0 1024",)
    (one,) = await queue.exchange(1, RENDER, fits=fits)
    assert (one.task.task_id, one.fit) == ("of render", 0)
    assert (await queue.store.reader.demands(NO_SUSPECTS, RENDER))[0] == []


async def test_demands_of_a_kind_share_sets_as_those_of_others_do(queue: Queue) -> None:
    for n in range(1, 16):
        await queue.create(f"{n}", min_gpu_memory_gb=n / 4)
    waiting, _, _ = await queue.store.reader.demands(NO_SUSPECTS, RENDER)
    assert sorted(one.demand.memory for one in waiting) == [256 * n for n in range(1, 16)]
    assert {"render/~4096"} == {one.name for one in waiting if "~" in one.name}
    (one,) = await queue.exchange(1, RENDER, fits=("render/~4096 GPU-a 0 3584",))
    assert one.task.task_id == "13"
    assert (await queue.store.reader.stats()).gpu_count == 14


async def test_every_operation_finds_tasks_of_kinds(queue: Queue) -> None:
    store = queue.store
    for n in range(4):
        await queue.create(f"{n}")
    assert (await store.reader.stats()).pending_count == 4
    assert dict((await store.reader.stats()).kinds) == {"render": 4}
    page = await store.reader.page(TaskStatus.PENDING, Listing(limit=2))
    rest = await store.reader.page(TaskStatus.PENDING, Listing(limit=9, cursor=page.cursor))
    assert [task.task_id for task in page.tasks + rest.tasks] == ["0", "1", "2", "3"]
    assert {task.kind for task in page.tasks} == {"render"}
    task = await store.reader.get("2")
    assert task is not None and task.waiting_for == "worker: none is running"
    assert await store.writer.delete("0")
    cancelled = Settlement(TaskStatus.CANCELLED, 60)
    assert await store.writer.settle(Settle("1", "pending", None, cancelled)) == "ok"
    assert await queue.ids(1, RENDER) == ["2"]
    assert await store.writer.purge(TaskStatus.PENDING) == (1, False)
    assert await queue.ids(1, RENDER) == []


async def test_a_rescheduled_task_keeps_its_kind(queue: Queue) -> None:
    await queue.create("image", delay=60)
    operations = QueueOperations(queue.config, queue.store)
    assert await operations.update("image", {"priority": 3, "delay": 0})
    (image,) = await queue.exchange(1, RENDER)
    assert (image.task.kind, image.task.priority) == ("render", 3)


async def test_resume_and_the_end_of_a_worker_wake_workers_of_the_kinds(queue: Queue) -> None:
    await queue.create("image")
    await queue.create("plain", NAMELESS)
    await queue.store.writer.pause(on=True)
    queue.markers()
    await queue.store.writer.pause(on=False)
    assert queue.markers() == {"marker", "gpu_marker", "k:render:marker", "k:render:gpu_marker"}
    await queue.store.registry.leave("worker", RENDER)
    assert queue.markers() == {"k:render:marker"}


async def pause(queue: Queue, kind: str = "render", *, on: bool = True) -> bool:
    return await queue.store.writer.pause(on=on, kind=kind)


async def test_a_paused_kind_gives_no_claims(queue: Queue) -> None:
    await queue.create("image")
    await queue.create("plain", NAMELESS)
    await queue.create("other", "other")
    assert await pause(queue) and not await pause(queue)
    assert await queue.ids(10, RENDER) == []
    assert await queue.ids(10, Kinds((NAMELESS, "render", "other"))) == ["plain", "other"]
    assert await pause(queue, on=False) and not await pause(queue, on=False)
    assert await queue.ids(10, RENDER) == ["image"]


async def test_tasks_of_a_paused_kind_say_so(queue: Queue) -> None:
    await queue.create("image")
    await queue.create("on a GPU", min_gpu_memory_gb=1)
    await queue.create("later", delay=60)
    await queue.create("plain", NAMELESS)
    await pause(queue)
    queue.at(5000)
    store = queue.store
    page = await store.reader.page(TaskStatus.PENDING, Listing(limit=9))
    waiting = {task.task_id: task.waiting_for or "" for task in page.tasks}
    for task_id in ("image", "on a GPU", "later", "plain"):
        task = await store.reader.get(task_id)
        assert task is not None and task.waiting_for == waiting[task_id]
    assert waiting["image"] == waiting["on a GPU"] == "kind render: paused"
    assert waiting["later"].startswith("due at") and waiting["plain"].startswith("worker")
    stats = await store.reader.stats()
    assert (stats.kinds, stats.gpu_kinds, stats.due_of("render")) == ({"render": 1}, {"render": 1}, 2)
    assert {kind: since.timestamp() for kind, since in stats.paused_kinds.items()} == {"render": START / 1000}
    assert not stats.paused
    await pause(queue, on=False)
    assert (await store.reader.stats()).paused_kinds == {}


async def test_the_pause_of_a_kind_has_the_time_that_users_see(queue: Queue) -> None:
    queue.client.hset(queue.store.connection.keys("meta"), "ahead", 5000)
    await pause(queue)
    assert (await queue.store.reader.stats()).paused_kinds["render"].timestamp() == START / 1000


async def test_due_tasks_of_a_paused_kind_wake_nobody(queue: Queue) -> None:
    """They leave `scheduled`: else the next due time would be 0, and every worker would look for ever."""
    await queue.create("known")
    await pause(queue)
    queue.markers()
    for n, options in enumerate(({}, {"delay": 1}, {"min_gpu_memory_gb": 1}, {"delay": 1, "min_gpu_memory_gb": 1})):
        await queue.create(f"{n}", **options)
    await queue.create("0 again")
    await queue.store.registry.leave("worker", RENDER)
    assert queue.markers() == set()
    queue.at(2000)
    for n in range(3):
        request = BatchRequest((), 1, may_claim_suspect=True, request_id=f"look {n}", exchange=0)
        reply = await queue.store.exchange.send(request, "worker", RENDER)
        assert (reply.claimed, reply.hit, reply.next_due) == ([], False, None)
    assert queue.markers() == set()
    assert (await queue.store.reader.stats()).due_of("render") == 6
    await pause(queue, on=False)
    assert queue.markers() == {"k:render:marker", "k:render:gpu_marker"}
    assert sorted(await queue.ids(9, RENDER)) == ["0", "0 again", "1", "known"]


async def test_more_due_tasks_of_a_paused_kind_than_a_claim_looks_at(queue: Queue) -> None:
    """Other kinds are claimed behind them, and the looks come to an end."""
    for n in range(250):
        await queue.create(f"{n}", delay=1)
    await queue.create("other", "other", delay=2)
    await pause(queue)
    queue.at(3000)
    found = [await queue.ids(1, Kinds(("render", "other"))) for _ in range(4)]
    assert found == [[], [], ["other"], []]


async def test_a_suspect_of_a_paused_kind_waits(queue: Queue) -> None:
    await queue.create("image")
    suspects = queue.store.connection.keys("k:render:suspects")
    queue.client.zrem(queue.store.connection.keys("k:render:ready"), "image")
    queue.client.zadd(suspects, {"image": 1})
    queue.client.hset(queue.store.connection.keys.task("image"), mapping={"k": "0 2 0 1", "c": "1 x 1"})
    await pause(queue)
    assert await queue.ids(5, BOTH) == await queue.ids(1, RENDER) == []
    await pause(queue, on=False)
    assert await queue.ids(1, RENDER) == ["image"]


async def test_a_paused_kind_has_no_demand_for_a_gpu(queue: Queue) -> None:
    await queue.create("image", min_gpu_memory_gb=1)
    await queue.create("plain", NAMELESS, min_gpu_memory_gb=1)
    await pause(queue)
    waiting, first_ready, _ = await queue.store.reader.demands(NO_SUSPECTS, BOTH)
    assert ([one.name for one in waiting], first_ready) == (["1024:0"], float("inf"))
    fits = ("render/1024:0 GPU-a 0 1024", "1024:0 GPU-a 0 1024")  # placed before the pause
    (one,) = await queue.exchange(2, BOTH, fits=fits)
    assert (one.task.task_id, one.fit) == ("plain", 1)
    await pause(queue, on=False)
    (one,) = await queue.exchange(1, BOTH, fits=fits[:1])
    assert one.task.task_id == "image"


async def test_running_tasks_of_a_paused_kind_go_on_and_come_back(queue: Queue) -> None:
    await queue.create("image")
    await queue.create("done")
    done, image = await queue.exchange(2, RENDER)
    await pause(queue)
    queue.markers()
    complete = Settlement.complete("1", done.policy)
    again = attrs.evolve(Settlement.release(image.policy), counts=image.counts)
    settles = [
        Settle(one.task.task_id, "lease", one.token, settlement, info=None)
        for one, settlement in ((image, again), (done, complete))
    ]
    assert await queue.exchange(2, RENDER, *settles) == []
    assert queue.markers() == set()
    stats = await queue.store.reader.stats()
    assert (stats.pending_count, stats.completed_count) == (1, 1)
    await pause(queue, on=False)
    assert await queue.ids(2, RENDER) == ["image"]


async def test_a_kind_is_paused_before_its_first_task(queue: Queue) -> None:
    assert not await pause(queue, on=False)
    assert (await queue.store.reader.stats()).kinds == {}
    assert await pause(queue)
    assert (await queue.store.reader.stats()).kinds == {"render": 0}
    await queue.create("image")
    assert await queue.ids(1, RENDER) == []


async def test_a_pause_makes_no_kind_beyond_the_200th(queue: Queue) -> None:
    names = {f"kind_{n}": "" for n in range(200)}
    queue.client.hset(queue.store.connection.keys("kinds"), mapping=names)
    with pytest.raises(InvalidValueError, match="kind: expected one of the 200 kinds that the queue has had"):
        await pause(queue, "too_many")
    assert not await pause(queue, "too_many", on=False)
    assert await pause(queue, "kind_7")


async def test_a_repair_ends_no_pause(queue: Queue) -> None:
    await queue.create("image")
    await pause(queue)
    queue.client.zrem(queue.store.connection.keys("k:render:ready"), "image")
    assert (await find_orphans(queue.store.connection, repair=True)).orphans == 1
    assert await queue.ids(1, RENDER) == []
    assert list((await queue.store.reader.stats()).paused_kinds) == ["render"]


async def test_only_workers_with_kinds_ask_which_are_paused(queue: Queue) -> None:
    """One command more for a claim of kinds, none for a worker of the nameless kind."""

    async def commands_of(kinds: Kinds, kind: str) -> Counter[str]:
        for n in range(2):
            await queue.create(f"{n} {kind}", kind)
        queue.client.delete(queue.store.connection.keys.request("worker", 0))
        queue.client.config_resetstat()
        assert len(await queue.exchange(3, kinds)) == 2
        return Counter({name: stats["calls"] for name, stats in queue.client.info("commandstats").items()})

    await queue.create("the first of its kind")
    await queue.ids(1, RENDER)  # the server knows the script now
    plain, of_kind = await commands_of(ONLY_NAMELESS, NAMELESS), await commands_of(RENDER, "render")
    assert of_kind - plain == {"cmdstat_hget": 1} and not plain - of_kind


async def test_a_full_queue_counts_all_kinds(queue: Queue) -> None:
    queue.config.task.max_queue_size = 3
    await queue.create("plain", NAMELESS)
    await queue.create("image")
    await queue.create("other", "other", min_gpu_memory_gb=1)
    for kind in (NAMELESS, "render"):
        with pytest.raises(QueueFullError):
            await queue.create("one more", kind)


async def test_a_queue_has_200_kinds_at_most(queue: Queue) -> None:
    names = {f"kind_{n}": "" for n in range(199)}
    queue.client.hset(queue.store.connection.keys("kinds"), mapping=names)
    await queue.create("the last", "last")
    with pytest.raises(InvalidValueError, match="kind: expected one of the 200 kinds that the queue has had"):
        await queue.create("one too many", "too_many")
    assert await queue.store.reader.get("one too many") is None
    await queue.create("known", "kind_7")


async def test_no_key_of_a_kind_is_given_as_a_key_of_a_script() -> None:
    """A script makes these keys of the prefix, for the nameless kind too, so that one rule names them."""
    assert {name for script in ALL for name in script.keys} & {"ready", "suspects", "marker", "gpu_marker"} == set()


async def test_a_delayed_task_wakes_its_worker_although_one_of_another_kind_is_due_before(queue: Queue) -> None:
    """No worker may be there for the first one, or its kind may be paused."""
    await queue.create("first", "other", delay=1)
    assert queue.markers() == {"k:other:marker"}
    await queue.create("image", delay=2)
    assert queue.markers() == {"k:render:marker"}
    await queue.create("plain", NAMELESS, delay=3)
    assert queue.markers() == {"marker"}
    await queue.create("later", "other", delay=4)
    assert queue.markers() == set(), "the workers of the kind know when the first one is due"
