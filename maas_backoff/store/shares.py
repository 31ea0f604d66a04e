"""The settings of tenants and limits: whose tasks are taken next, and how many may start."""

from maas_backoff.store import scripts
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.writer import answer_ms, new_call


class Shares:
    """The tenants and the limits of one queue."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def set_tenant(self, tenant: str, *, weight: float | None = None, paused: bool | None = None) -> bool:
        """Set the weight of a tenant, or pause or resume its tasks. Return False if nothing changed."""
        queue = self._queue
        on = "" if paused is None else int(paused)
        args = [
            queue.clock,
            queue.keys.prefix,
            tenant,
            "" if weight is None else f"{weight:.12g}",
            on,
            answer_ms(queue),
        ]
        return bool(await queue.run(scripts.TENANT, args, call=queue.keys.call(new_call())))

    async def set_limit(self, name: str, setting: str) -> bool:
        """Set a limit, as `Limit.setting` writes it; an empty `setting` removes it. Return False if nothing changed."""
        queue = self._queue
        args = [queue.clock, queue.keys.prefix, name, setting, answer_ms(queue)]
        return bool(await queue.run(scripts.LIMIT, args, call=queue.keys.call(new_call())))
