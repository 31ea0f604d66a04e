"""A worker sends what it has settled by kind and by tenant: once a second and at its end, and each settle once."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from proxy import Proxy, kind
from support import Server, eventually, load_scripts, quick_config

from maas_backoff import StorageConfig, StorageUnavailableError, TaskBackoffConfig, TaskBackoffScheduler
from maas_backoff.domain.breakdown import By
from maas_backoff.domain.settlement import Settlement
from maas_backoff.store.batch import Settle
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.worker.loops.sums import SumsLoop
from maas_backoff.worker.sums import MOST_LINES, SettleSums

pytestmark = pytest.mark.anyio

POLICY = quick_config(StorageConfig()).task.policy


def settled(kinds: Sequence[str], answer: str = "ok") -> SettleSums:
    """Return the sums of a completed settle of each kind, for the tenant "acme"; each has run for 0.25 s."""
    sums = SettleSums()
    attempts: Any = [SimpleNamespace(task=SimpleNamespace(kind=name, tenant="acme"), ran=0.25) for name in kinds]
    settle = Settle("x", "lease", 1, Settlement.complete("1", POLICY))
    sums.add(attempts, [settle] * len(kinds), [answer] * len(kinds))
    return sums


async def test_accepted_settles_are_added_up() -> None:
    sums = settled(["render", "upscale", "render", ""])
    assert sums.waiting.is_set()
    assert sums.take() == "k render 2 0 0 0 500\nt acme 4 0 0 0 1000\nk upscale 1 0 0 0 250"
    assert sums.take() == "" and not sums.waiting.is_set()
    assert settled(["render"], "already").take() and not settled(["render"], "lost").take()
    assert settled(["render"], "cancelled").take() == "k render 0 0 1 0 0\nt acme 0 0 1 0 0"


async def test_a_call_has_a_bounded_number_of_names() -> None:
    sums = settled([f"kind{n}" for n in range(MOST_LINES + 20)])
    assert len(sums.take().splitlines()) == MOST_LINES and sums.waiting.is_set()
    assert len(sums.take().splitlines()) == 21 and not sums.waiting.is_set()


async def completed(scheduler: TaskBackoffScheduler, by: By, name: str) -> int:
    found = (await scheduler.get_breakdown(by)).totals.get(name)
    return 0 if found is None else found.completed


async def test_the_sums_come_soon_and_the_last_ones_at_the_end(config: TaskBackoffConfig) -> None:
    client, worker = TaskBackoffScheduler(config), TaskBackoffScheduler(config)

    @worker.task
    async def render() -> None: ...

    async with worker:
        made = [await render.options(tenant="acme").create() for _ in range(3)]
        await eventually(lambda: completed(client, "kind", "render"), "the worker has sent sums")
        made += [await render.options(tenant="acme").create() for _ in range(5)]
        for one in made:
            await one.result(timeout=20)
    assert [await completed(client, "kind", "render"), await completed(client, "tenant", "acme")] == [8, 8]
    await client.shutdown()


async def test_a_call_is_not_repeated_when_the_server_may_have_forgotten_its_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_scripts(server)
    async with Proxy(server.port) as proxy:
        store = QueueStore.of(quick_config(proxy.storage))
        loop = SumsLoop(settled(["render"] * 3), store)
        proxy.drops = lambda command: kind(command) == "settle"
        with pytest.raises(StorageUnavailableError):
            await loop.send()
        proxy.drops = lambda _: False
        monkeypatch.setattr("maas_backoff.worker.loops.sums.ANSWER_KEPT", 0)
        await loop.send()
        found = await store.breakdowns.read("kind", 2)
        assert found.totals["render"].completed == 3
        await store.aclose()


async def test_sums_whose_answer_is_lost_are_sent_again_and_count_once(server: Server) -> None:
    load_scripts(server)
    async with Proxy(server.port) as proxy:
        store = QueueStore.of(quick_config(proxy.storage))
        sums = settled(["render"] * 3)
        loop = SumsLoop(sums, store)
        proxy.drops = lambda command: kind(command) == "settle"
        with pytest.raises(StorageUnavailableError):
            await loop.send()
        proxy.drops = lambda _: False
        assert proxy.dropped["settle"] >= 1 and not sums.waiting.is_set()
        passed = proxy.passed["settle"]
        async with anyio.create_task_group() as group:
            group.start_soon(loop.run)  # it does not wait for new sums
            await eventually(lambda: proxy.passed["settle"] > passed, "the call is repeated")
            group.cancel_scope.cancel()
        await loop.send()
        found = await store.breakdowns.read("kind", 2)
        assert found.totals["render"].completed == 3
        await store.aclose()
