"""The operations on all tasks of a selection, in steps that never delay other clients."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import NamedTuple

from maas_backoff.client.operation_spans import NO_SPAN, OperationSpans
from maas_backoff.client.selected import Selected
from maas_backoff.common.guard import Log, log_for
from maas_backoff.config import TaskBackoffConfig
from maas_backoff.domain.reschedule import NewPlace
from maas_backoff.domain.selection import CHANGED_IN, ORDER, OnProgress, Selection, SelectionProgress, Statuses
from maas_backoff.domain.spec import Reschedule
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.tracing import SettleSpan, Tracing
from maas_backoff.errors import InvalidValueError
from maas_backoff.logs import about
from maas_backoff.store.found import Seen
from maas_backoff.store.queue_store import QueueStore
from maas_backoff.store.writer import DELETE_LIMIT, SETTLE_LIMIT

log: Log = log_for("scheduler")

CREATIONS_AT_ONCE = 20
"""Tasks per step of a change of priorities: it reads and writes their params, too."""

MOST_TRIES = 3
"""How often a task that has changed since it was read is read again."""

_TICK = timedelta(milliseconds=1)
"""Stored times are rounded to this."""


class _Change(NamedTuple):
    """A change of tasks: its event in the log, and how it is made."""

    event: str
    statuses: Statuses
    send: Callable[[Sequence[Seen]], Awaitable[list[bool]]]
    """Changes up to `at_once` tasks that are as they were read. Returns which ones were changed."""
    at_once: int
    is_so: Callable[[TaskEntity, datetime, datetime], bool] = lambda _task, _since, _now: False
    """Returns whether a task needs no change: the task, the time of the first page, the time of this page."""


class BulkOperations:
    """The operations on the selected tasks of one queue. Each call checks its arguments, and logs what it has done."""

    def __init__(self, config: TaskBackoffConfig, store: QueueStore, tracing: Tracing | None = None) -> None:
        self._queue = config.task.biz_prefix
        self._store = store
        self._spans = OperationSpans(config, tracing)

    async def count(self, selection: Selection, on_progress: OnProgress | None) -> int:
        if _checked(selection) == Selection(status=selection.status):
            stats = await self._store.reader.stats()
            return sum(getattr(stats, f"{status}_count") for status in selection.statuses)
        return await self._run(selection, _Change("", ORDER, _nothing, 1), True, on_progress)

    async def cancel(
        self, selection: Selection, *, running: bool, dry_run: bool, on_progress: OnProgress | None
    ) -> int:
        statuses = CHANGED_IN["cancel running" if running else "cancel"]
        call = "cancel_tasks" if running else "cancel_tasks without running=True"
        change = _Change("cancelled", statuses, self._cancel, SETTLE_LIMIT)
        selection = _checked(selection).within(call, *statuses)
        with nullcontext(NO_SPAN) if dry_run else self._spans.around("cancel") as span:
            return await self._run(selection, change, dry_run, on_progress, span)

    async def retry(self, selection: Selection, *, dry_run: bool, on_progress: OnProgress | None) -> int:
        statuses = CHANGED_IN["retry"]
        change = _Change("requeued", statuses, self._requeue, SETTLE_LIMIT)
        return await self._run(_checked(selection).within("retry_tasks", *statuses), change, dry_run, on_progress)

    async def delete(self, selection: Selection, *, dry_run: bool, on_progress: OnProgress | None) -> int:
        statuses = CHANGED_IN["delete"]
        change = _Change("deleted", statuses, self._delete, DELETE_LIMIT)
        return await self._run(_checked(selection).within("delete_tasks", *statuses), change, dry_run, on_progress)

    async def update(
        self, selection: Selection, options: Reschedule, *, dry_run: bool, on_progress: OnProgress | None
    ) -> int:
        place = NewPlace.of("update_tasks", options)

        async def send(lot: Sequence[Seen]) -> list[bool]:
            return await self._reschedule(lot, place)

        at_once = SETTLE_LIMIT if place.priority is None else CREATIONS_AT_ONCE
        statuses = CHANGED_IN["update"]
        change = _Change("moved", statuses, send, at_once, place.has)
        selection = _checked(selection).within("update_tasks", *statuses)
        return await self._run(selection, change, dry_run, on_progress)

    async def _run(
        self,
        selection: Selection,
        change: _Change,
        dry_run: bool,
        on_progress: OnProgress | None,
        span: SettleSpan = NO_SPAN,
    ) -> int:
        """Change the tasks that match, page by page, and return their number. A dry run counts them.

        The span has the number of the changed tasks, also if a call fails later. A task that comes or ends meanwhile is
        left out: the loop must end, also if workers fail retried tasks at once.
        """
        selected = Selected(self._store.reader, selection)
        tokens: set[int] = set()  # of running tasks: a renewal moves them to the end of their index
        matched = changed = 0
        while (page := await selected.more()) is not None:
            assert selected.started is not None
            since, now = selected.started, selected.now
            lot = [seen for seen in page if _is_old(seen.task, since) and not change.is_so(seen.task, since, now)]
            lot = [seen for seen in lot if not seen.has_lease or seen.task.token not in tokens]
            running = {seen.task.token for seen in lot if seen.has_lease}
            tokens |= running
            if running and not dry_run:
                selected.look_again()
            matched += len(lot)
            gone: set[str] = set()
            for start in range(0, 0 if dry_run else len(lot), change.at_once):
                done = await self._change(change, lot[start : start + change.at_once], selected)
                gone |= done
                changed += len(done)
                span.changed(changed)
            selected.leave(gone)
            if on_progress is not None:
                on_progress(SelectionProgress(selected.read, matched, changed))
        if dry_run:
            return matched
        words = f"{changed} of {matched} selected tasks {change.event} by an operation"
        log.info("queue %r: %s", self._queue, words, extra={"event": change.event, "queue": self._queue})
        return changed

    async def _change(self, change: _Change, lot: Sequence[Seen], selected: Selected) -> set[str]:
        """Change tasks, and return the ids of the changed ones. A task that has changed must match still."""
        done: set[str] = set()
        for _ in range(MOST_TRIES):
            answers = await change.send(lot)
            done.update(seen.task.task_id for seen, is_done in zip(lot, answers, strict=True) if is_done)
            refused = [seen.task.task_id for seen, is_done in zip(lot, answers, strict=True) if not is_done]
            lot = [seen for seen in await self._again(refused) if selected.matches(seen.task)]
            if not lot:
                break
        for task_id in done if log.isEnabledFor(logging.DEBUG) else ():
            log.debug("task %r: %s by an operation", task_id, change.event, extra=about(change.event, task_id))
        return done

    async def _again(self, ids: Sequence[str]) -> list[Seen]:
        found: list[Seen] = []
        while ids:
            looks = await self._store.reader.get_first(ids)
            found += (look.seen for look in looks if look.seen is not None)
            ids = ids[len(looks) :]
        return found

    async def _cancel(self, lot: Sequence[Seen]) -> list[bool]:
        waiting = [seen for seen in lot if not seen.has_lease]
        answers = await self._store.writer.settle_all([seen.cancelled() for seen in waiting]) if waiting else []
        done = {seen.task.task_id: answer == "ok" for seen, answer in zip(waiting, answers, strict=True)}
        for seen in lot:
            if seen.has_lease:
                state = await self._store.writer.request_cancel(seen.task.task_id, seen.task.token)
                done[seen.task.task_id] = state in {"processing", "cancelled"}
        return [done[seen.task.task_id] for seen in lot]

    async def _requeue(self, lot: Sequence[Seen]) -> list[bool]:
        answers = await self._store.writer.settle_all([seen.requeued() for seen in lot])
        return [answer == "ok" for answer in answers]

    async def _delete(self, lot: Sequence[Seen]) -> list[bool]:
        tasks = [(seen.task.task_id, seen.task.status.value, seen.task.token) for seen in lot]
        return await self._store.writer.delete_all(tasks)

    async def _reschedule(self, lot: Sequence[Seen], place: NewPlace) -> list[bool]:
        settles = [seen.rescheduled(place.due) for seen in lot if place.priority is None and place.due is not None]
        for seen in lot if place.priority is not None else ():
            pending = await self._store.reader.find_pending(seen.task.task_id)
            if pending is not None and pending.token == seen.task.token:
                settles.append(pending.rescheduled(place.priority, place.due))
        answers = await self._store.writer.settle_all(settles) if settles else []
        done = {settle.task_id for settle, answer in zip(settles, answers, strict=True) if answer == "ok"}
        return [seen.task.task_id in done for seen in lot]


async def _nothing(lot: Sequence[Seen]) -> list[bool]:
    return [False for _ in lot]


def _checked(selection: object) -> Selection:
    if not isinstance(selection, Selection):
        raise InvalidValueError("selection", "a Selection", selection)
    return selection


def _is_old(task: TaskEntity, since: datetime) -> bool:
    """Return whether a task was created, and has ended if it is finished, before the first page was read."""
    ended = task.finished_at
    return task.created_at <= since + _TICK and (ended is None or ended <= since + _TICK)
