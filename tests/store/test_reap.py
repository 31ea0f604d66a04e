"""reap.lua, on a virtual clock: who is listed as lost, and when nobody is because nobody looked."""

from collections.abc import AsyncIterator

import pytest
from support import Server, quick_config

from maas_backoff.domain.settlement import Counts
from maas_backoff.store.batch import BatchRequest
from maas_backoff.store.creation import NewTask
from maas_backoff.store.queue_store import QueueStore

pytestmark = pytest.mark.anyio

START = 1_800_000_000_000
LEASE, GAP, GRACE = 3.0, 1.5, 3.0


class Reaper:
    """A store whose tasks are held by a worker that never renews."""

    def __init__(self, server: Server) -> None:
        config = quick_config(server.storage)
        self.policy = config.task.policy
        self.store = QueueStore.of(config)
        self.client = server.client
        self.at(0)

    def at(self, seconds: float) -> None:
        self.store.connection.clock = f"{START + seconds * 1000:.2f}"

    async def hold(self, *ids: str) -> list[int]:
        """Create tasks and claim them; their tokens."""
        await self.store.writer.enqueue([NewTask(task_id, "{}", 0, 0, self.policy, "") for task_id in ids])
        request = BatchRequest((), len(ids), may_claim_suspect=False, request_id=ids[0], exchange=0)
        return [claimed.token for claimed in (await self.store.exchange.send(request, "worker")).claimed]

    async def listed(self, *, limit: int = 100) -> list[str]:
        return [found.task_id for found in (await self.store.lost.look(GAP, GRACE, limit))[0]]


@pytest.fixture
async def reaper(any_server: Server) -> AsyncIterator[Reaper]:
    reaper = Reaper(any_server)
    yield reaper
    await reaper.store.aclose()


async def look_every_second(reaper: Reaper, first: int, last: int) -> dict[int, list[str]]:
    """Reap at each of these seconds; what was listed when, where anything was."""
    listed = {}
    for second in range(first, last + 1):
        reaper.at(second)
        if found := await reaper.listed():
            listed[second] = found
    return listed


async def test_a_lease_that_ran_out_is_listed_at_once_where_somebody_looks(reaper: Reaper) -> None:
    """Not a ms before its end, and every time until it is settled; live leases are not."""
    assert await look_every_second(reaper, -10, -1) == {}
    reaper.at(0)
    await reaper.hold("a", "b")
    assert await look_every_second(reaper, 0, 2) == {}
    reaper.at(LEASE - 0.001)
    await reaper.hold("c")
    assert await reaper.listed() == []
    reaper.at(LEASE)
    assert await reaper.listed() == ["a", "b"]
    assert await reaper.listed() == ["a", "b"]


async def test_after_a_gap_nothing_is_listed_for_the_grace(reaper: Reaper) -> None:
    """All workers or the server stood still: whoever lives can renew; after the grace it counts again."""
    await look_every_second(reaper, -10, 0)
    await reaper.hold("a")
    listed = await look_every_second(reaper, 100, 110)
    assert min(listed) == 100 + GRACE
    assert listed[103] == ["a"]


async def test_the_first_look_of_all_is_after_a_gap(reaper: Reaper) -> None:
    await reaper.hold("a")
    listed = await look_every_second(reaper, 50, 55)
    assert min(listed) == 50 + GRACE


async def test_a_gap_within_a_grace_begins_it_anew(reaper: Reaper) -> None:
    await look_every_second(reaper, -10, 0)
    await reaper.hold("a")
    assert await look_every_second(reaper, 100, 101) == {}
    assert min(await look_every_second(reaper, 200, 206)) == 200 + GRACE


async def test_a_pause_no_longer_than_the_gap_is_none(reaper: Reaper) -> None:
    reaper.at(0)
    await reaper.listed()
    await look_every_second(reaper, 0, 4)
    await reaper.hold("a")
    await look_every_second(reaper, 5, 6)
    reaper.at(6 + GAP)
    assert await reaper.listed() == ["a"]


async def test_a_clock_that_was_set_back_gives_one_grace_and_no_more(reaper: Reaper) -> None:
    """By a day: what is due by the new clock is listed after the grace, not after the day."""
    day = 86_400
    await look_every_second(reaper, -10, 0)
    await reaper.hold("a")
    assert await look_every_second(reaper, day, day + 1) == {}  # in a grace until day + 3
    assert min(await look_every_second(reaper, 10, 20)) == 10 + GRACE


async def test_a_dead_workers_lease_goes_back_with_a_clock_that_was_set_back(reaper: Reaper) -> None:
    """By an hour: the task comes back after its lease and the grace, not an hour later."""
    await look_every_second(reaper, 0, 10)
    await reaper.hold("a", "b")
    listed = await look_every_second(reaper, 10 - 3600, 20 - 3600)
    assert min(listed) == 10 - 3600 + GRACE
    assert listed[13 - 3600] == ["a", "b"]


async def test_two_that_look_within_one_ms_make_no_gap(reaper: Reaper) -> None:
    """The server's clock has fractions of a ms, and never goes back: a hundred workers look all the time."""
    await look_every_second(reaper, -10, 2)
    reaper.at(0)
    await reaper.listed()
    await look_every_second(reaper, 0, 6)
    await reaper.hold("a")
    await look_every_second(reaper, 7, 9)
    for fraction in (0.0006, 0.0007, 0.0009):
        reaper.at(9 + fraction)
        assert await reaper.listed() == ["a"]


async def test_no_more_is_listed_than_was_asked_for(reaper: Reaper) -> None:
    """The longest lost first."""
    await look_every_second(reaper, -10, -1)
    for second, name in enumerate("abcd"):
        reaper.at(second / 10)
        await reaper.hold(name)
    await look_every_second(reaper, 1, 4)
    assert await reaper.listed(limit=3) == ["a", "b", "c"]


async def test_what_is_listed_is_what_a_decision_needs(reaper: Reaper) -> None:
    """Token, counts, policy, and when and where the attempt ran."""
    await look_every_second(reaper, -10, 0)
    (token,) = await reaper.hold("a")
    await look_every_second(reaper, 1, 4)
    (found,) = (await reaper.store.lost.look(GAP, GRACE))[0]
    assert (found.task_id, found.precondition, found.token) == ("a", "expired", token)
    assert (found.counts, found.policy) == (Counts(), reaper.policy)
    info = found.info
    assert (info.number, info.worker, info.started_ms, info.ended_ms) == (1, "worker", START, START + 4000)


async def test_the_halves_of_failed_batches_count_as_fresh_tasks(reaper: Reaper) -> None:
    """They have ended no worker. The losses of a task that was alone in its cohort count fully beside them."""
    await look_every_second(reaper, -10, 0)
    await reaper.hold("poison", "innocent", "half", "other half")
    known = {"poison": ("0 1 0 1", "1 abc 1"), "half": ("1 0 0 1", "0 ~def 2"), "other half": ("1 1 0 1", "1 ~def 2")}
    for task_id, (counts, suspicion) in known.items():
        reaper.client.hset(reaper.store.connection.keys.task(task_id), mapping={"k": counts, "c": suspicion})
    await look_every_second(reaper, 1, 2)
    reaper.at(3)
    found, _ = await reaper.store.lost.look(GAP, GRACE)
    together = {one.task_id: one.loss.together for one in found if one.loss is not None}
    # The suspect shares the blame with the one that was lost before, the others share it with all.
    assert together == {"poison": 2, "innocent": 4, "half": 4, "other half": 4}


async def test_leases_of_tasks_that_are_gone_are_dropped(reaper: Reaper) -> None:
    """Their key was deleted by hand: nobody can settle them."""
    await look_every_second(reaper, -10, 0)
    await reaper.hold("a", "b")
    reaper.client.delete(reaper.store.connection.keys.task("a"))
    assert (await look_every_second(reaper, 1, 4))[3] == ["b"]
    assert reaper.client.zrange(reaper.store.connection.keys("leases"), 0, -1) == [b"b"]


async def test_many_entries_of_finished_tasks_go_in_steps(reaper: Reaper) -> None:
    """At most 500 of a state at a look, so that no call takes long."""
    for state in ("completed", "failed", "cancelled"):
        reaper.client.zadd(reaper.store.connection.keys(state), {f"{state}-{n}": START + n for n in range(1200)})
    reaper.at(1.0995)
    for left in (700, 200, 100, 100):
        await reaper.listed()
        for state in ("completed", "failed", "cancelled"):
            assert reaper.client.zcard(reaper.store.connection.keys(state)) == left


async def test_running_tasks_without_a_worker_are_named(reaper: Reaper) -> None:
    """Those that `mark_task_processing` has taken have no worker to lose."""
    await reaper.hold("a", "b")
    await reaper.store.writer.enqueue([NewTask(task_id, "{}", 0, 0, reaper.policy, "") for task_id in ("c", "d")])
    assert await reaper.store.reader.explain() == (
        "No worker is running: 2 tasks due; 2 tasks have lost their worker, and come back when a worker starts."
    )
    reaper.client.zrem(reaper.store.connection.keys("leases"), "a", "b")
    reaper.client.zadd(reaper.store.connection.keys("external"), {"a": START, "b": START})
    assert await reaper.store.reader.explain() == "No worker is running: 2 tasks due."
