"""Lost attempts: attempts whose worker has stopped renewing their lease."""

from collections.abc import Sequence

from maas_backoff.domain.settlement import Settlement
from maas_backoff.domain.suspicion import Losses, Lost, judge
from maas_backoff.domain.tracing import WorkerTracing
from maas_backoff.store import scripts
from maas_backoff.store.batch import Settle, breakdown_text, settle_args, settle_head
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.creation import Creation
from maas_backoff.store.found import Found
from maas_backoff.store.replies import LeaseRow


class LostAttempts:
    """The lost attempts of one queue."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def look(
        self, gap: float, grace: float, limit: int = 100, tracing: WorkerTracing | None = None
    ) -> tuple[list[Found], float | None]:
        """Return up to `limit` lost attempts, and the seconds until the next look; None if nothing is to come.

        The next look is at the end of the next lease, or at the next deadline of a pending task. Pending tasks whose
        deadline has passed are ended here.

        After `gap` seconds without a call, return for `grace` seconds only those of workers that have certainly ended.
        """
        queue = self._queue
        args = [queue.clock, queue.keys.prefix, f"{gap * 1000:.0f}", f"{grace * 1000:.0f}", limit]
        reply = await queue.run(scripts.REAP, args)
        # A person has deleted the key of the task. A settle of the lease would answer "unknown" for ever.
        orphans = [row[0] for row in reply.rows if row[2] is None]
        if orphans:
            gone = Settlement.cancel(queue.policies.own)
            # This changes no task, and gives back the places in limits.
            await self.settle([Settle(task_id.decode(), "expired", None, gone) for task_id in orphans], "gone")
            await (await queue.server.connect()).execute("ZREM", queue.keys("leases"), *orphans)
        rows = [LeaseRow._make(row) for row in reply.rows if row[2] is not None]
        await queue.learn(Creation.of(row.creation) for row in rows if row.creation is not None)
        now_ms = float(reply.now)
        found = [Found.of(row, "expired", now_ms, queue.policies) for row in rows]
        by_worker = {name.decode(): Losses(*counted) for name, *counted in reply.workers}
        losses = judge([Lost(one.info.worker, one.token, one.counts) for one in found], by_worker)
        lost = [one._replace(loss=loss) for one, loss in zip(found, losses, strict=True)]
        if reply.overdue:
            overdue = [task_id.decode() for task_id in reply.overdue]
            if tracing is None:
                await self.end_overdue(overdue)
            else:
                with tracing.reap("expire", dict.fromkeys(overdue, "")) as span:
                    span.changed((await self.end_overdue(overdue)).count("ok"))
        next_ms = 0.0 if len(reply.overdue) >= limit else float(reply.next_ms)
        return lost, None if next_ms < 0 else next_ms / 1000

    async def end_overdue(self, task_ids: Sequence[str]) -> list[str]:
        """End pending tasks whose deadline has passed; 'lost' for any other task. A task keeps its own time to live."""
        queue = self._queue
        ended = Settlement.cancel(queue.policies.own)
        settles = [Settle(task_id, "overdue", None, ended) for task_id in task_ids]
        args = [*settle_head(queue, "overdue", "overdue"), *settle_args(settles)]
        reply = await queue.run(scripts.SETTLE, args, request=queue.keys.request("overdue", 0))
        return [word.decode() for word in reply.answers]

    async def settle(self, settles: Sequence[Settle], worker: str) -> list[str]:
        """Settle lost attempts, under another settle id than the worker's own settlements."""
        queue, settle_id = self._queue, f"{worker}/reap"
        head = settle_head(queue, settle_id, settle_id, breakdown=breakdown_text(settles))
        args = [*head, *settle_args(settles)]
        reply = await queue.run(scripts.SETTLE, args, request=queue.keys.request(worker, 0))
        return [word.decode() for word in reply.answers]
