"""The commands that read a queue."""

import argparse
import json
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs

from maas_backoff.commands.command import FAILED, OK, Arguments, Command, Options, failed, task_id
from maas_backoff.commands.selecting import selection_of, selection_options
from maas_backoff.commands.text import cell, is_rich, moment, span, table
from maas_backoff.domain.history import Activity, gpu_memory_hint
from maas_backoff.domain.limit import rate_text
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.shares import LimitStats
from maas_backoff.domain.task import TaskEntity, TaskStatus
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler


def _json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True, default=str))


async def _stats(scheduler: TaskBackoffScheduler, options: Options) -> int:
    stats, why = await scheduler.get_queue_stats(), await scheduler.explain()
    history = await scheduler.get_history(60)
    if options.json:
        counts = attrs.asdict(stats) | {"reason": why}
        _json({**counts, "last_hour": _activity(history.recent), "total": _activity(history.total)})
        return OK
    due = stats.pending_count - stats.scheduled_count
    counts = {"due": due, "scheduled": stats.scheduled_count, "processing": stats.processing_count}
    counts |= {"completed": stats.completed_count, "failed": stats.failed_count, "cancelled": stats.cancelled_count}
    print(table(list(counts), [[f"{number:,}" for number in counts.values()]]))
    print(printable(why))
    if stats.oldest_pending_age:
        print(f"The oldest has been due for {span(stats.oldest_pending_age)}.")
    last = history.recent
    ends, failures = last.completed, f"{last.failed:,} failed, {last.retried:,} retried, {last.lost:,} lost"
    if last.expired:
        failures += f", {last.expired:,} expired"
    print(f"Last hour: {ends:,} completed ({ends / 60:.3g} a minute), {failures}.")
    for name, durations in (("waited", last.waits), ("ran", last.runs), ("settled in", last.settles)):
        half, most = (span(durations.quantile(share)) for share in (0.5, 0.95))
        print(f"  {name}: {half} (p50), {most} (p95) of {durations.count:,}")
    if last.batch_sizes.count:
        median, highest = (last.batch_sizes.quantile(share) for share in (0.5, 0.95))
        print(f"  batches: {median:.3g} tasks (p50), {highest:.3g} (p95) of {last.batch_sizes.count:,}")
        half, most = (span(last.batch_waits.quantile(share)) for share in (0.5, 0.95))
        print(f"  batches waited: {half} (p50), {most} (p95)")
    for name, sizes in (("used of a GPU", last.gpu_peaks), ("asked for", last.gpu_needs)):
        median, highest = sizes.quantile(0.5), sizes.quantile(0.99)
        if median is not None:
            print(f"  {name}: {median:.3g} GiB (p50), {highest:.3g} GiB (p99) of {sizes.count:,}")
    hint = gpu_memory_hint(last)
    if hint:
        print(hint)
    if last.errors:
        worst = sorted(last.errors.items(), key=lambda one: -one[1])[:10]
        print(table(("error", "attempts"), worst))
    return OK


def _activity(activity: Activity) -> dict[str, Any]:
    view = attrs.asdict(activity, filter=lambda field, _: field.name != "start" and field.name not in _MEASURED)
    for name in _MEASURED:
        found = getattr(activity, name)
        view[name] = {"count": found.count, **{f"p{share}": found.quantile(share / 100) for share in (50, 95, 99)}}
    return {**view, "gpu_hint": gpu_memory_hint(activity)}


_MEASURED = ("waits", "runs", "settles", "gpu_peaks", "gpu_needs", "batch_sizes", "batch_waits")


async def _kinds(scheduler: TaskBackoffScheduler, options: Options) -> int:
    stats, fleet = await scheduler.get_queue_stats(), await scheduler.workers()
    names = {*stats.kinds, *(kind for worker in fleet for kind in worker.kinds if kind)}
    workers = {name: sum(name in worker.kinds for worker in fleet) for name in sorted(names)}
    if options.json:
        due, paused = stats.due_of, stats.paused_kinds
        _json(
            [
                {"kind": name, "due": due(name), "workers": count, "paused_since": paused.get(name)}
                for name, count in workers.items()
            ]
        )
        return OK
    rows_of_text = [
        (name, f"{stats.due_of(name):,}", count or "no running worker has it", moment(stats.paused_kinds.get(name)))
        for name, count in workers.items()
    ]
    print(table(("kind", "due", "workers", "paused since"), rows_of_text))
    return OK


def _for_tenants(parser: Arguments) -> None:
    parser.add_argument("--limit", type=at_least_one, default=50, metavar="N", help="show N tenants (default: 50)")


async def _tenants(scheduler: TaskBackoffScheduler, options: Options) -> int:
    tenants = await scheduler.tenants()
    if options.json:
        _json(
            [
                {"tenant": one.name, "waiting": one.waiting, "weight": one.weight, "paused_since": one.paused_since}
                for one in tenants
            ]
        )
        return OK
    rows = [(one.name, f"{one.waiting:,}", f"{one.weight:g}", moment(one.paused_since)) for one in tenants]
    print(table(("tenant", "waiting", "weight", "paused since"), rows[: options.limit]))
    if len(rows) > options.limit:
        print(f"There are {len(rows) - options.limit:,} more: --limit {len(rows)}")
    return OK


async def _limits(scheduler: TaskBackoffScheduler, options: Options) -> int:
    limits = await scheduler.limits()
    if options.json:
        _json({"limits": list(map(_limit_view, limits)), "more": limits.more})
        return OK
    head = ("limit", "in use", "rate", "tokens", "waiting tasks", "state")
    print(table(head, map(_limit_row, limits)))
    if limits.more:
        print(f"Up to {limits.more:,} more names of classes are shut.")
    return OK


def _limit_view(one: LimitStats) -> dict[str, Any]:
    setting = one.limit and {"concurrency": one.limit.concurrency, "rate": one.limit.rate, "tokens": one.limit.tokens}
    return {"name": one.name, "limit": setting, **attrs.asdict(one, filter=lambda field, _: field.name not in _SET)}


_SET = ("name", "limit")


def _limit_row(one: LimitStats) -> Sequence[object]:
    setting = one.limit
    most = setting and setting.concurrency if one.is_class else one.most
    use = "-" if one.is_class else f"{one.in_use:,}"
    rate = setting and setting.rate and rate_text(setting.rate)
    tokens = setting and setting.tokens and rate_text(setting.tokens)
    state = "each name has its own" if one.is_class else one.shut.partition(": ")[2] or "open"
    return one.name, use if most is None else f"{use} of {most:,}", rate or "-", tokens or "-", one.waiting_tasks, state


def at_least_one(text: str) -> int:
    """Return a whole number from 1 on. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def _for_list(parser: Arguments) -> None:
    selection_options(parser)
    parser.add_argument("--reverse", action="store_true", help="the last of each state first")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="1 to 1000 (default: %(default)s)")
    parser.add_argument("--cursor", metavar="C", help="the cursor of the last page, to read the next one")


async def _list(scheduler: TaskBackoffScheduler, options: Options) -> int:
    selection = selection_of(options)
    if not selection.has_conditions and not options.select_state:
        selection = Selection(status=TaskStatus.PENDING)
    page = await scheduler.list_tasks(
        selection, limit=options.limit, cursor=options.cursor, reverse=options.reverse, brief=not options.json
    )
    if options.json:
        _json({"tasks": [task.to_dict() for task in page.tasks], "cursor": page.cursor})
        return OK
    has_worker = any(task.worker for task in page.tasks)
    head = ("id", "state", "priority", "attempt", "retries", "due", "ended", *(["worker"] if has_worker else []), "why")
    print(table(head, (_row(task, has_worker=has_worker) for task in page.tasks)))
    if page.cursor is not None:
        print(f"There is more: --cursor {page.cursor!r}")
    return OK


async def _count(scheduler: TaskBackoffScheduler, options: Options) -> int:
    number = await scheduler.count_tasks(selection_of(options))
    if options.json:
        _json({"matched": number})
    else:
        print(number)
    return OK


def _row(task: TaskEntity, *, has_worker: bool) -> Sequence[object]:
    retries = f"{task.retry_count}/{task.max_retry_count}"
    due, ended = moment(task.next_execute_time), moment(task.finished_at)
    worker = [_worker_of(task)] if has_worker else []
    why = _why(task, when=False)
    return task.task_id, task.status, task.priority, task.attempt, retries, due, ended, *worker, why


def _worker_of(task: TaskEntity) -> str:
    """Return the worker and the GPU of the running or last attempt."""
    return "-" if task.worker is None else f"{task.worker} gpu {task.gpu.index}" if task.gpu else task.worker


def _why(task: TaskEntity, *, when: bool = True) -> str:
    """Return why a task is in its state: its reason to wait, its progress, or its end."""
    error = "" if task.error is None else str(task.error)
    if task.status.finished:
        if task.cancel_reason == "expired":
            return f"expired, after {error}" if error else "expired"
        return error or task.progress_message or ""
    if task.waiting_for is None:
        return task.progress_message or ""
    waits = task.waiting_for if when or not task.waiting_for.startswith("due at") else ""
    return ", ".join(filter(None, (waits, error and f"after {error}")))


async def _get(scheduler: TaskBackoffScheduler, options: Options) -> int:
    task = await scheduler.get_task(options.task_id)
    if task is None:
        return failed(options, "there is no such task")
    fields = task.to_dict()
    if options.json:
        _json(fields)
        return OK
    attempts = fields.pop("attempts")
    for name, value in fields.items():
        if value is not None:
            print(f"{name:18} {printable(json.dumps(value) if isinstance(value, dict | list) else value)}")
    for attempt in attempts:
        error = attempt["error"]
        where = f"{attempt['started_at']} to {attempt['ended_at']}, {printable(attempt['worker'])}"
        where += f" on {printable(attempt['gpu'])}" if attempt["gpu"] else ""
        more = "" if error["code"] is None else f", code {error['code']}"
        more += f", ended by {printable(attempt['ended_by'])}" if attempt["ended_by"] else ""
        what = f"{printable(error['type'])}: {printable(error['message'])}"
        print(f"attempt {attempt['number']}: {what} ({where}{more})")
        for line in attempt["traceback"].splitlines():
            print(f"  {printable(line)}")
    return OK


async def _watch(scheduler: TaskBackoffScheduler, options: Options) -> int:
    status = TaskStatus.PENDING
    with _drawing(options) as show:
        async for event in scheduler.watch(options.task_id):
            task = event.task
            status = task.status
            if options.json:
                print(json.dumps({"id": event.id, "task": task.to_dict()}, ensure_ascii=True), flush=True)
            else:
                state = f"{status:10} attempt {task.attempt}"
                show(state, f"{state}, {task.progress:g} %  {cell(_why(task))}".rstrip(), task.progress)
    return OK if status is TaskStatus.COMPLETED else FAILED


def _drawing(options: Options) -> AbstractContextManager[Callable[[str, str, float], None]]:
    if options.json or not is_rich():
        return nullcontext(lambda _state, line, _percent: print(line, flush=True))
    from maas_backoff.commands.rich_text import progress_bar

    return progress_bar()


def _for_check(parser: Arguments) -> None:
    parser.add_argument("--ready", action="store_true", help="also check for a ready worker of the queue on this host")


async def _check(scheduler: TaskBackoffScheduler, options: Options) -> int:
    here = [worker for worker in await scheduler.workers() if worker.host == socket.gethostname()]
    if options.ready and not here:
        return failed(options, "no worker of this queue is alive on this host")
    if options.ready and not any(worker.ready for worker in here):
        return failed(options, f"no worker of this queue on this host is ready: {here[0].trouble}")
    print(f"ok: the server answers; live workers of this queue on this host: {len(here)}")
    return OK


COMMANDS = {
    "stats": Command("count tasks by state, and show why nothing runs", _stats, prints_json=True),
    "kinds": Command("list the kinds of tasks: due tasks, live workers, pauses", _kinds, prints_json=True),
    "tenants": Command("list the tenants: waiting tasks, weights, pauses", _tenants, _for_tenants, prints_json=True),
    "limits": Command("list the limits: settings, use, and until when they are shut", _limits, prints_json=True),
    "list": Command(
        "list the tasks that match (without a condition: the pending ones)", _list, _for_list, prints_json=True
    ),
    "count": Command("count the tasks that match", _count, selection_options, prints_json=True),
    "get": Command("show a task with its failed attempts (1: there is none)", _get, task_id, prints_json=True),
    "watch": Command("follow a task to its end (1: it did not complete)", _watch, task_id, prints_json=True),
    "check": Command("check whether the server answers, for probes (1: not ready)", _check, _for_check),
}
"""The commands by name."""
