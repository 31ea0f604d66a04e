"""The calls on the tenants and the limits of a queue."""

from maas_backoff.client.part import CallsPart
from maas_backoff.domain.limit import Limit, Rate
from maas_backoff.domain.shares import LimitList, TenantStats


class ShareCalls(CallsPart):
    """The part of TaskBackoffScheduler that says whose tasks are taken next, and how many may start."""

    async def set_weight(self, tenant: str, weight: float) -> bool:
        """Set the weight of a tenant, from 0.001 to 1,000; it is 1 at first.

        While tenants have waiting tasks, each gets a share of the sum of their costs by its weight. A tenant without
        waiting tasks leaves its share to the others. The weight is stored on the server, for all workers, and holds
        for tasks that wait already. Return False if it was so before.
        """
        return await self._client.operations.set_weight(tenant, weight)

    async def set_limit(
        self, name: str, *, concurrency: int | None = None, rate: Rate | None = None, tokens: Rate | None = None
    ) -> bool:
        """Set a limit for all workers together: `set_limit("openai", concurrency=64, rate=(500, "1m"))`.

        Tasks name their limits: `create_task(…, limits={"openai": 1200})`, or their kind does. `concurrency` is the
        most such tasks that run at once, `rate` the most that start in a time, `tokens` the most units that tasks use
        in a time: 1200 of this task. A task starts when all of its limits have room. `user:*` sets the limit of each
        name that begins with `user:` and has no setting of its own. Replaces an earlier setting, also for tasks that
        wait already. Return False if it was so before.
        """
        return await self._client.operations.set_limit(name, Limit(concurrency, rate, tokens))

    async def remove_limit(self, name: str) -> bool:
        """Remove a limit: tasks that name it start without it. Return False if it was not set."""
        return await self._client.operations.set_limit(name, None)

    async def tenants(self) -> list[TenantStats]:
        """Return the tenants that have waiting tasks, a weight or a pause; those with most waiting tasks first.

        500 tenants are read at a time, so that no call delays others. Tasks that come meanwhile may be missed.
        """
        return await self._client.store.shares.tenants()

    async def limits(self) -> LimitList:
        """Return the limits that are set, by name, then shut or closed names that have no setting of their own.

        The latter are names of a class such as `user:*`, or limits that are not set and that a task has closed: at
        most 1,000. `.more` is how many such names there are beyond them, at most. 100 limits are read at a time, so
        that no call delays others.
        """
        return await self._client.store.shares.limits()
