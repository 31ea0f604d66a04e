"""The history of a queue and those by kind and by tenant agree: each end counts once in all, however a task ends."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from support import Server, quick_config

from maas_backoff import Selection, TaskBackoffScheduler
from maas_backoff.client.creator import TaskCreator
from maas_backoff.domain.breakdown import By, added
from maas_backoff.domain.kind import Kinds
from maas_backoff.domain.outcome import Failed, LeaseExpired
from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.task import TaskError
from maas_backoff.store.batch import BatchReply, BatchRequest, Claimed, Settle
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.attempt import Attempt
from maas_backoff.worker.lease import Lease
from maas_backoff.worker.loops.reap import settle_lost
from maas_backoff.worker.sums import SettleSums

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
GROUPS = [("render", "acme"), ("upscale", ""), ("", "acme"), ("", "")]
ERROR = TaskError("ValueError", "boom")
END = {"complete": Settlement.complete, "cancel": Settlement.cancel}


def _ended(claimed: Claimed) -> Attempt:
    attempt = Attempt(claimed, Lease.since(0, 60), 60, lambda _: None, None)  # type: ignore[arg-type]  # it does not run
    attempt.ran = 0.005
    return attempt


class Queue:
    """A queue on a virtual clock, and a worker that is driven by hand. Each way is gone by one task of each group."""

    def __init__(self, server: Server) -> None:
        config = quick_config(server.storage)
        config.task.max_lost, config.task.result_ttl, config.task.failed_ttl = 1, 9000, 9000
        self.scheduler = TaskBackoffScheduler(config)
        self.creators = [TaskCreator(config, self.store.writer, None, kind) for kind, _ in GROUPS]
        self._requests = 0
        self.at(0)

    @property
    def store(self) -> QueueStore:
        return self.scheduler._client.store

    def at(self, seconds: float) -> None:
        self._now = seconds
        self.store.connection.clock = f"{START + seconds * 1000:.0f}"

    async def make(self, way: str, **options: Any) -> Sequence[str]:
        """Create a task of each group; return their ids."""
        ids = [f"{way}-{n}" for n in range(len(GROUPS))]
        for task_id, creator, (_, tenant) in zip(ids, self.creators, GROUPS, strict=True):
            await creator.create({}, task_id, {**options, **({"tenant": tenant} if tenant else {})})
        return ids

    async def claim(self, way: str, **options: Any) -> Sequence[Claimed]:
        """Create a task of each group, and claim them all."""
        ids = await self.make(way, **options)
        found = (await self.send(claims=len(ids))).claimed
        assert sorted(one.task.task_id for one in found) == sorted(ids)
        return found

    async def send(self, *settles: Settle, claims: int = 0, is_repeated: bool = False) -> BatchReply:
        self._requests += not is_repeated
        request = BatchRequest(settles, claims, True, f"{self._requests}", 0)
        return await self.store.exchange.send(request, "w", Kinds(("", "render", "upscale")))

    async def settle(self, claimed: Sequence[Claimed], how: str, answer: str = "ok", *, is_lost: bool = False) -> None:
        """Settle tasks. `is_lost`: the first reply is lost, and the request is repeated."""
        settles: list[Settle] = []
        for one in claimed:
            failed = Failed(ERROR)
            if how == "retry":
                settlement = Settlement.retry(failed, one.counts, 100, one.policy)
            elif how == "fail":
                settlement = Settlement.fail(ERROR, one.policy)
            else:
                settlement = END[how](*(["1"] if how == "complete" else []), one.policy)
            settles.append(Settle(one.task.task_id, "lease", one.token, settlement, one.counts))
        answers = (await self.send(*settles)).answers
        if is_lost:
            answers = (await self.send(*settles, is_repeated=True)).answers
        assert answers == [answer] * len(settles)
        sums = SettleSums()
        sums.add([_ended(one) for one in claimed], settles, answers)
        await self.store.writer.count_settles(sums.take(), f"sums {self._requests}")

    async def reap(self) -> None:
        """Let the leases of all running tasks run out, as if each were the only one. The second look finds nothing."""
        await self.store.lost.look(1e6, 0)
        self.at(self._now + 10)
        for _ in range(2):
            lost, _ = await self.store.lost.look(1e6, 0)
            await settle_lost(self.store, "w", [one._replace(loss=LeaseExpired()) for one in lost])

    async def counts(self) -> tuple[int, ...]:
        """Return how many have completed, failed, been cancelled and been retried, by the history of the queue."""
        history = await self.store.reader.history(120)
        numbers = [(one.completed, one.failed, one.cancelled, one.retried) for one in (history.total, history.recent)]
        assert numbers[0] == numbers[1]
        return numbers[0]

    async def by(self, by: By) -> dict[str, tuple[int, ...]]:
        found = await self.store.breakdowns.read(by, 120)
        assert not added(found.others).count
        return {
            name: (one.completed, one.failed, one.cancelled, one.retried) for name, one in sorted(found.totals.items())
        }

    async def agree(self, *each: int) -> None:
        """Each group has these numbers. The sum of all kinds or tenants, and of the tasks without, is the total."""
        total = await self.counts()
        assert total == tuple(len(GROUPS) * number for number in each)
        kinds, tenants = await self.by("kind"), await self.by("tenant")
        assert kinds == {"render": each, "upscale": each}
        assert tenants == {"acme": tuple(2 * number for number in each)}
        nameless = tuple(2 * number for number in each)
        for found in (kinds, tenants):
            assert tuple(map(sum, zip(*found.values(), nameless, strict=True))) == total


@pytest.fixture
async def queue(any_server: Server) -> AsyncIterator[Queue]:
    queue = Queue(any_server)
    yield queue
    await queue.scheduler.shutdown()


async def test_ends_by_a_worker(queue: Queue) -> None:
    """Also where a cancel, or a deadline, takes the place of a comeback."""
    for how in ("complete", "fail", "cancel", "retry"):
        await queue.settle(await queue.claim(how), how)
    await queue.agree(1, 1, 1, 1)
    claimed = await queue.claim("asked")
    for one in claimed:
        assert await queue.scheduler.cancel_task(one.task.task_id, running=True)
    await queue.settle(claimed, "retry", "cancelled")
    await queue.agree(1, 1, 2, 1)
    await queue.settle(await queue.claim("late", complete_within=50), "retry", "cancelled")
    await queue.agree(1, 1, 3, 1)


async def test_ends_by_a_worker_that_repeats_its_request(queue: Queue) -> None:
    """The repeated request says what the first one did."""
    for how in ("complete", "fail", "cancel", "retry"):
        await queue.settle(await queue.claim(how), how, "already", is_lost=True)
    await queue.agree(1, 1, 1, 1)
    claimed = await queue.claim("asked")
    for one in claimed:
        assert await queue.scheduler.cancel_task(one.task.task_id, running=True)
    await queue.settle(claimed, "retry", "cancelled", is_lost=True)
    await queue.agree(1, 1, 2, 1)
    await queue.settle(await queue.claim("late", complete_within=50), "retry", "cancelled", is_lost=True)
    await queue.agree(1, 1, 3, 1)


async def test_ends_by_the_reaper(queue: Queue) -> None:
    """A loss for good, once, also if the old worker settles too late; and deadlines of tasks that wait."""
    lost = await queue.claim("lost")
    await queue.reap()
    await queue.agree(0, 1, 0, 0)
    await queue.settle(lost, "complete", "lost")
    await queue.agree(0, 1, 0, 0)
    asked = await queue.claim("asked", max_lost=3)
    await queue.claim("back", max_lost=3)
    for one in asked:
        assert await queue.scheduler.cancel_task(one.task.task_id, running=True)
    await queue.make("late", start_within=5)
    await queue.reap()
    await queue.agree(0, 1, 2, 0)
    await queue.reap()
    await queue.agree(0, 1, 2, 0)


async def test_ends_by_a_claim_that_comes_too_late(queue: Queue) -> None:
    await queue.make("late", start_within=5)
    queue.at(10)
    assert (await queue.send(claims=9)).claimed == []
    await queue.agree(0, 0, 1, 0)


async def test_ends_by_operations(queue: Queue) -> None:
    """On tasks that wait, that another system has taken, and that a worker runs; one by one, and by a selection."""
    operations = queue.scheduler
    for task_id in await queue.make("cancel"):
        assert await operations.cancel_task(task_id)
        assert not await operations.cancel_task(task_id)
    await queue.agree(0, 0, 1, 0)
    for way in ("take-cancel", "take-complete", "take-fail", "take-retry"):
        for task_id in await queue.make(way):
            assert await operations.mark_task_processing(task_id)
            if way == "take-cancel":
                assert await operations.cancel_task(task_id, running=True)
            elif way == "take-complete":
                assert await operations.mark_task_completed(task_id, 1)
            else:
                assert await operations.mark_task_failed(task_id, retry=way == "take-retry")
    await queue.agree(1, 1, 2, 1)
    for task_id in await queue.make("complete"):
        assert await operations.mark_task_completed(task_id, 1)
    for task_id in await queue.make("fail"):
        assert await operations.mark_task_failed(task_id, retry=False)
    await queue.agree(2, 2, 2, 1)
    running = await queue.claim("run")
    for one in running:
        assert await operations.mark_task_completed(one.task.task_id, 1)
    await queue.settle(running, "complete", "lost")
    await queue.agree(3, 2, 2, 1)
    await queue.make("select")
    for task_id in await queue.make("select-taken"):
        assert await operations.mark_task_processing(task_id)
    assert await operations.cancel_tasks(Selection(id_prefix="select"), running=True) == 8
    await queue.agree(3, 2, 4, 1)


async def test_a_task_that_is_retried_by_hand_ends_again(queue: Queue) -> None:
    """Its retry takes back no end. What is deleted or purged has no end."""
    await queue.settle(await queue.claim("again"), "fail")
    for n in range(len(GROUPS)):
        assert await queue.scheduler.retry_task(f"again-{n}")
    again = (await queue.send(claims=9)).claimed
    await queue.settle(again, "complete")
    await queue.agree(1, 1, 0, 0)
    for task_id in await queue.make("delete"):
        assert await queue.scheduler.delete_task(task_id)
    await queue.make("purge")
    assert await queue.scheduler.purge_tasks("pending") == len(GROUPS)
    await queue.agree(1, 1, 0, 0)
