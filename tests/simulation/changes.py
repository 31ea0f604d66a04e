"""Changes of tenants, limits and kinds by a person, and many tasks at once by a producer."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

import attrs
from chaos.shares import LOOSE, SIMULATED, TENANTS

from maas_backoff import StorageError, TaskBackoffScheduler, TaskSpec
from simulation.plan import LEASE

if TYPE_CHECKING:
    from simulation.world import World


@attrs.define
class Changes:
    """Those of one history."""

    world: "World"
    flood_ids: dict[str, list[str]] = attrs.field(factory=dict[str, list[str]])
    """For each tenant, the tasks that were created at once."""
    flooded: int = 0
    """The token of the last claim before the tasks of a flood were there."""
    places: dict[str, float] = attrs.field(factory=dict[str, float])
    """For each tenant, how much it had used then."""
    _paused: set[str] = attrs.field(factory=set[str])

    async def set_shares(self, scheduler: TaskBackoffScheduler) -> None:
        for tenant, weight in TENANTS.items():
            await self._patiently(lambda tenant=tenant, weight=weight: scheduler.set_weight(tenant, weight))
        for name, most in SIMULATED.most.items():
            await self._patiently(lambda name=name, most=most: scheduler.set_limit(name, concurrency=most))
        for name, rate in SIMULATED.rates.items():
            await self._patiently(lambda name=name, rate=rate: scheduler.set_limit(name, rate=rate))

    async def _patiently(self, call: Callable[[], Awaitable[object]]) -> None:
        while True:
            try:
                await call()
            except StorageError:
                await asyncio.sleep(0.5)
            else:
                return

    async def pause(self, scheduler: TaskBackoffScheduler, choice: random.Random) -> None:
        """Pause a tenant for a while."""
        tenant = choice.choice(list(TENANTS))
        await self._pause(scheduler, choice, {"tenant": tenant}, tenant=tenant)

    async def pause_kind(self, scheduler: TaskBackoffScheduler, choice: random.Random) -> None:
        """Pause a kind that runs in batches for a while."""
        assert self.world.plan.batches is not None
        kind = choice.choice(self.world.plan.batches.kinds).name
        await self._pause(scheduler, choice, {"kind": kind}, function=kind)

    async def _pause(
        self, scheduler: TaskBackoffScheduler, choice: random.Random, paused: Mapping[str, str], **about: str
    ) -> None:
        """Pause something, unless another step has paused it. `about` is for the event."""
        (name,) = paused.values()
        if name in self._paused:
            return
        self._paused.add(name)
        await self._patiently(lambda: scheduler.pause(**paused))
        since = self.world.queue_ms()
        await asyncio.sleep(choice.uniform(1, 2 * LEASE))
        until = self.world.queue_ms()
        await self._patiently(lambda: scheduler.resume(**paused))
        self._paused.discard(name)
        self.world.note("paused", **about, since=since, until=until)

    async def limit(self, scheduler: TaskBackoffScheduler, choice: random.Random) -> None:
        """Set a limit for a while, so that nothing of it runs in the middle of that."""
        await self._patiently(lambda: scheduler.set_limit(LOOSE, concurrency=1, rate=(1, "1h")))
        await asyncio.sleep(choice.uniform(1, 2 * LEASE))
        await self._patiently(lambda: scheduler.set_limit(LOOSE, concurrency=3, rate=(1000, 1)))
        await asyncio.sleep(choice.uniform(1, 2 * LEASE))
        await self._patiently(lambda: scheduler.remove_limit(LOOSE))

    async def flood(self, scheduler: TaskBackoffScheduler, choice: random.Random) -> None:
        """Create many tasks of each tenant: more than the workers have slots."""
        for tenant in TENANTS:
            ids = self.flood_ids[tenant] = [f"flood-{tenant}-{n}" for n in range(choice.randint(60, 90))]
            for task_id in ids:
                about = {
                    "kind": "plain",
                    "delay": 0.0,
                    "fails": 0,
                    "function": "",
                    "tenant": tenant,
                    "cost": 1,
                    "limits": [],
                }
                self.world.note("invoke", id=task_id, **about)
            params = {"kind": "plain", "fails": 0}
            await scheduler.create_tasks(
                TaskSpec({**params, "seconds": round(choice.uniform(0, 4), 3)}, task_id, tenant=tenant)
                for task_id in ids
            )
            for task_id in ids:
                self.world.note("acked", id=task_id)
        self.flooded = int(self.world.server.one("HGET", "maas:{chaos}:meta", "token"))
        now_at = float((self.world.server.one("HGET", "maas:{chaos}:meta", "turn") or b"0").split()[0])
        for tenant in TENANTS:
            own = float(self.world.server.one("ZSCORE", "maas:{chaos}:virtual", tenant) or 0)
            self.places[tenant] = max(own, now_at) / 1_000_000
