"""The operations on a queue and its tasks, from outside of the workers."""

import attrs

from maas_backoff.client.operation_spans import OperationSpans
from maas_backoff.common.guard import Log, log_for
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain import jsontext, validation
from maas_backoff.domain.context import current
from maas_backoff.domain.kind import NAMELESS, checked_kind
from maas_backoff.domain.lane import LARGEST_WEIGHT, checked_tenant, is_cost
from maas_backoff.domain.limit import Limit, checked_limit_name
from maas_backoff.domain.outcome import Failed, Outcome, Succeeded
from maas_backoff.domain.pause import checked_by
from maas_backoff.domain.progress import checked_message, checked_progress
from maas_backoff.domain.reschedule import NewPlace
from maas_backoff.domain.settlement import Counts, Settlement, decide
from maas_backoff.domain.shorten import cut
from maas_backoff.domain.signals import checked_code
from maas_backoff.domain.spec import Reschedule
from maas_backoff.domain.status import TaskStatus, checked_status
from maas_backoff.domain.task import TaskError
from maas_backoff.domain.tracing import SettleSpan, Tracing
from maas_backoff.errors import InvalidValueError
from maas_backoff.logs import about
from maas_backoff.store.batch import Settle
from maas_backoff.store.codec import EXTERNAL
from maas_backoff.store.found import Found
from maas_backoff.store.queue_store import QueueStore

log: Log = log_for("scheduler")


class QueueOperations:
    """The operations on one queue. Each call checks its arguments, and logs its change."""

    def __init__(self, config: TaskBackoffConfig, store: QueueStore, tracing: Tracing | None = None) -> None:
        self._config = config
        self._store = store
        self._spans = OperationSpans(config, tracing)
        self._policy = config.task.policy

    async def cancel(self, task_id: str, *, running: bool) -> bool:
        with self._spans.around("cancel", validation.checked_task_id(task_id)) as span:
            changed = await self._cancel(task_id, running, span)
            span.changed(int(changed))
        return changed

    async def _cancel(self, task_id: str, running: bool, span: SettleSpan) -> bool:
        found = await self._store.reader.find_live(task_id)
        if found is None:
            return False
        span.link(task_id, found.trace)
        settlement, line = Settlement.cancel(found.policy), found.breakdown
        pending = Settle(task_id, "pending", None, settlement, breakdown=line)
        external = Settle(task_id, "external", None, settlement, breakdown=line)
        while True:
            answer = await self._store.writer.settle(pending)
            if answer == "ok":
                return _logged(task_id, "cancelled", found)
            if not running or answer not in {"processing", EXTERNAL}:
                return False
            if answer == EXTERNAL:
                answer = await self._store.writer.settle(external)
                if answer == "ok":
                    return _logged(task_id, "cancelled", found)
            # "cancelled": the worker met the request before the answer of this call arrived.
            elif await self._store.writer.request_cancel(task_id) in {"processing", "cancelled"}:
                return _logged(task_id, "cancel_requested", found)
            # It has changed in between: look again.

    async def mark_processing(self, task_id: str) -> bool:
        settle = Settle(validation.checked_task_id(task_id), "pending", None, Settlement.release(self._policy))
        return await self._store.writer.settle(settle, external=True) == "ok" and _logged(task_id, "taken")

    async def mark_completed(self, task_id: str, result: object) -> bool:
        outcome = Succeeded(jsontext.canonical(result, "result", self._config.task.max_payload_bytes))
        return await self._mark("complete", task_id, outcome)

    async def mark_failed(self, task_id: str, reason: str, *, retry: bool, code: int | None) -> bool:
        error = TaskError("failed", cut(str(reason)), checked_code(code))
        return await self._mark("fail", task_id, Failed(error, permanent=not retry))

    async def _mark(self, name: str, task_id: str, outcome: Outcome) -> bool:
        with self._spans.around(name, validation.checked_task_id(task_id)) as span:
            changed = await self._settle(task_id, outcome, span)
            span.changed(int(changed))
        return changed

    async def _settle(self, task_id: str, outcome: Outcome, span: SettleSpan) -> bool:
        """Settle an unfinished task by an outcome from outside. The task's own policy decides the settlement."""
        custom = self._config.task.custom_backoff
        while True:
            found = await self._store.reader.find_live(task_id)
            if found is None:
                return False
            span.link(task_id, found.trace)
            settlement = decide(outcome, task_id, found.counts, found.policy, found.policy.backoff(custom))
            assert settlement is not None
            answer = await self._store.writer.settle(found.settle(settlement))
            if answer == "ok":
                return _logged(task_id, settlement.event, found)
            if answer == "cancelled" and found.precondition == "lease":
                # Under a lease, a requested cancel took the place of the comeback, and the outcome is stored. Without a
                # lease, "cancelled" is the state that stood against the operation.
                return _logged(task_id, "cancelled", found)
            if answer == "cancelled":  # its deadline has passed, which no worker has noted yet
                return False
            # It has changed in between: look again.

    async def retry(self, task_id: str) -> bool:
        settlement = attrs.evolve(Settlement.release(self._policy), counts=Counts())
        settle = Settle(validation.checked_task_id(task_id), "finished", None, settlement)
        return await self._store.writer.settle(settle) == "ok" and _logged(task_id, "requeued")

    async def update(self, task_id: str, options: Reschedule) -> bool:
        validation.checked_task_id(task_id)
        place = NewPlace.of("update_task", options)
        while True:
            pending = await self._store.reader.find_pending(task_id)
            if pending is None:
                return False
            answer = await self._store.writer.settle(pending.rescheduled(place.priority, place.due))
            if answer == "ok":
                return _logged(task_id, "moved")
            if answer == "cancelled":  # also if its deadline has passed, which no worker has noted yet
                return False
            # It has changed in between: look again.

    async def purge(self, status: str) -> int:
        status = checked_status(status, *(set(TaskStatus) - {TaskStatus.PROCESSING}))
        # Tasks that come meanwhile may be left: the loop must end.
        stats = await self._store.reader.stats()
        most, number, more = getattr(stats, f"{status}_count"), 0, True
        while more and number <= most:
            deleted, more = await self._store.writer.purge(status)
            number += deleted
        self._log("purged", f"{number} {status} tasks purged by an operation")
        return number

    async def pause(self, *, on: bool, kind: str | None, tenant: str | None, by: str = "") -> bool:
        by = checked_by(by)
        if tenant is None:
            name = NAMELESS if kind is None else checked_kind(kind)
            changed = await self._store.writer.pause(on=on, kind=name, by=by)
        elif kind is None:
            changed = await self._store.shares.set_tenant(checked_tenant(tenant), paused=on, by=by)
        else:
            raise InvalidValueError("tenant", "either kind or tenant", tenant)
        if changed:
            event, what = "paused" if on else "resumed", "" if kind is None else f"kind {kind} "
            what = what if tenant is None else f"tenant {tenant} "
            self._log(event, f"{what}{event} by {repr(by) if by else 'an operation'}")
        return changed

    async def set_weight(self, tenant: str, weight: float) -> bool:
        if not is_cost(weight) or weight > LARGEST_WEIGHT:
            raise InvalidValueError("weight", f"a number from 0.001 to {LARGEST_WEIGHT:,}", weight)
        number = float(weight)
        changed = await self._store.shares.set_tenant(checked_tenant(tenant), weight=number)
        if changed:
            self._log("weight_set", f"tenant {tenant} has the weight {number:g}")
        return changed

    async def set_limit(self, name: str, limit: Limit | None) -> bool:
        name, setting = checked_limit_name(name), "" if limit is None else limit.setting
        changed = await self._store.shares.set_limit(name, setting)
        if changed:
            self._log("limit_set", f"limit {name} " + ("is removed" if limit is None else f"is {limit}"))
        return changed

    def _log(self, event: str, words: str) -> None:
        """Log an operation on the queue."""
        queue = self._config.task.biz_prefix
        log.info("queue %r: %s", queue, words, extra={"event": event, "queue": queue})

    async def delete(self, task_id: str) -> bool:
        return await self._store.writer.delete(validation.checked_task_id(task_id)) and _logged(task_id, "deleted")

    async def update_progress(self, task_id: str, progress: float, message: str | None) -> bool:
        validation.checked_task_id(task_id)
        checked_progress(progress)
        message = checked_message(message)
        task = current.get()
        token = task.token if task is not None and task.task_id == task_id else None
        return (await self._store.writer.report_progress([(task_id, token, progress, message)]))[0]


def _logged(task_id: str, event: str, found: Found | None = None) -> bool:
    """Log an operation on a task; return True."""
    attempt, token = (0, 0) if found is None else (found.info.number, found.token)
    extra = about(event, task_id, attempt, token)
    log.info("task %r: %s by an operation", task_id, event.replace("_", " "), extra=extra)
    return True
