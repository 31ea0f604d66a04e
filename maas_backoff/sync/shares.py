"""The blocking calls on tenants and limits. Written by `.ci/sync_calls.py`: change no line here."""

from maas_backoff.domain.limit import Rate
from maas_backoff.domain.shares import LimitList, TenantStats
from maas_backoff.sync.part import SyncPart


class SyncShareCalls(SyncPart):
    """The part of SyncScheduler that says whose tasks are taken next, and how many may start."""

    def set_weight(self, tenant: str, weight: float) -> bool:
        """Set the weight of a tenant, from 0.001 to 1,000; it is 1 at first.

        While tenants have waiting tasks, each gets a share of the sum of their costs by its weight. A tenant without
        waiting tasks leaves its share to the others. The weight is stored on the server, for all workers, and holds
        for tasks that wait already. Return False if it was so before.
        """
        return self._run(lambda: self._calls.set_weight(tenant, weight))

    def set_limit(
        self, name: str, *, concurrency: int | None = None, rate: Rate | None = None, tokens: Rate | None = None
    ) -> bool:
        """Set a limit for all workers together: `set_limit("openai", concurrency=64, rate=(500, "1m"))`.

        Tasks name their limits: `create_task(…, limits={"openai": 1200})`, or their kind does. `concurrency` is the
        most such tasks that run at once, `rate` the most that start in a time, `tokens` the most units that tasks use
        in a time: 1200 of this task. A task starts when all of its limits have room. `user:*` sets the limit of each
        name that begins with `user:` and has no setting of its own. Replaces an earlier setting, also for tasks that
        wait already. Return False if it was so before.
        """
        return self._run(lambda: self._calls.set_limit(name, concurrency=concurrency, rate=rate, tokens=tokens))

    def remove_limit(self, name: str) -> bool:
        """Remove a limit: tasks that name it start without it. Return False if it was not set."""
        return self._run(lambda: self._calls.remove_limit(name))

    def tenants(self) -> list[TenantStats]:
        """Return the tenants that have waiting tasks, a weight or a pause; those with most waiting tasks first.

        500 tenants are read at a time, so that no call delays others. Tasks that come meanwhile may be missed.
        """
        return self._run(self._calls.tenants)

    def limits(self) -> LimitList:
        """Return the limits that are set, by name, then shut or closed names that have no setting of their own.

        The latter are names of a class such as `user:*`, or limits that are not set and that a task has closed: at
        most 1,000. `.more` is how many such names there are beyond them, at most. 100 limits are read at a time, so
        that no call delays others.
        """
        return self._run(self._calls.limits)
