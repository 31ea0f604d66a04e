"""The commands that look at a queue, or steer it, from outside."""

import argparse
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import attrs

from maas_backoff.commands.text import cell, is_rich, moment, span, table
from maas_backoff.domain.history import Activity
from maas_backoff.domain.spec import Move
from maas_backoff.domain.task import TaskEntity, TaskStatus
from maas_backoff.errors import InvalidValueError
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler

OK, FAILED = 0, 1

Arguments = argparse.ArgumentParser
Options = argparse.Namespace
Run = Callable[[TaskBackoffScheduler, Options], Awaitable[int]]


@attrs.frozen
class Command:
    """A command on a queue: what it does, its own arguments, and what it runs; the result is the exit code."""

    help: str
    run: Run
    arguments: Callable[[Arguments], object]
    reads: bool = True
    """Whether it prints what it has read, as JSON if asked."""


def _json(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=True, default=str))


def _no_arguments(_: Arguments) -> None:
    pass


def _task_id(parser: Arguments) -> None:
    parser.add_argument("task_id", metavar="ID")


# Reading


async def _stats(scheduler: TaskBackoffScheduler, options: Options) -> int:
    stats, why = await scheduler.get_queue_stats(), await scheduler.explain()
    history = await scheduler.get_history(60)
    if options.json:
        told = attrs.asdict(stats) | {"reason": why}
        _json({**told, "last_hour": _activity(history.recent), "total": _activity(history.total)})
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
    print(f"Last hour: {ends:,} completed ({ends / 60:.3g} a minute), {failures}.")
    for name, durations in (("waited", last.waits), ("ran", last.runs), ("settled in", last.settles)):
        half, most = (span(durations.quantile(share)) for share in (0.5, 0.95))
        print(f"  {name}: {half} (p50), {most} (p95) of {durations.count:,}")
    if last.errors:
        worst = sorted(last.errors.items(), key=lambda one: -one[1])[:10]
        print(table(("error", "attempts"), worst))
    return OK


def _activity(activity: Activity) -> dict[str, Any]:
    told = attrs.asdict(activity, filter=lambda field, _: field.name not in {"start", "waits", "runs", "settles"})
    for name in ("waits", "runs", "settles"):
        durations = getattr(activity, name)
        told[name] = {"count": durations.count, "p50": durations.quantile(0.5), "p95": durations.quantile(0.95)}
    return told


async def _workers(scheduler: TaskBackoffScheduler, options: Options) -> int:
    fleet = await scheduler.workers()
    if options.json:
        _json([attrs.asdict(worker) for worker in fleet])
    else:
        rows = [
            (one.name, one.host, one.pid, f"{one.running}/{one.slots}", span(one.lag), len(one.devices), one.version)
            for one in fleet
        ]
        print(table(("worker", "host", "pid", "slots", "loop lag", "gpus", "version"), rows))
    return OK if fleet else FAILED


async def _list(scheduler: TaskBackoffScheduler, options: Options) -> int:
    page = await scheduler.list_tasks(options.state, limit=options.limit, cursor=options.cursor)
    if options.json:
        _json({"tasks": [task.to_dict() for task in page.tasks], "cursor": page.cursor})
        return OK
    head = ("id", "state", "priority", "attempt", "retries", "due", "ended", "why")
    print(table(head, map(_row, page.tasks)))
    if page.cursor is not None:
        print(f"There is more: --cursor {page.cursor!r}")
    return OK


def _row(task: TaskEntity) -> Sequence[object]:
    retries = f"{task.retry_count}/{task.max_retry_count}"
    due, ended = moment(task.next_execute_time), moment(task.finished_at)
    return task.task_id, task.status, task.priority, task.attempt, retries, due, ended, _why(task, when=False)


def _why(task: TaskEntity, *, when: bool = True) -> str:
    """What is to be said of a task's state: what it waits for, how far it is, or what it ended with."""
    error = "" if task.error is None else str(task.error)
    if task.status.finished:
        return error or task.progress_message or ""
    if task.waiting_for is None:
        return task.progress_message or ""
    waits = task.waiting_for if when or not task.waiting_for.startswith("due at") else ""
    return ", ".join(filter(None, (waits, error and f"after {error}")))


async def _get(scheduler: TaskBackoffScheduler, options: Options) -> int:
    task = await scheduler.get_task(options.task_id)
    if task is None:
        return _not_so(options, "there is no such task")
    told = task.to_dict()
    if options.json:
        _json(told)
        return OK
    attempts = told.pop("attempts")
    for name, value in told.items():
        if value is not None:
            print(f"{name:18} {printable(json.dumps(value) if isinstance(value, dict | list) else value)}")
    for attempt in attempts:
        error = attempt["error"]
        where = f"{attempt['started_at']} to {attempt['ended_at']}, {printable(attempt['worker'])}"
        print(f"attempt {attempt['number']}: {printable(error['type'])}: {printable(error['message'])} ({where})")
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


async def _check(scheduler: TaskBackoffScheduler, options: Options) -> int:
    here = [worker for worker in await scheduler.workers() if worker.host == socket.gethostname()]
    if options.ready and not here:
        return _not_so(options, "no worker of this queue is alive on this host")
    print(f"ok: the server answers; live workers of this queue on this host: {len(here)}")
    return OK


# Steering


async def _create(scheduler: TaskBackoffScheduler, options: Options) -> int:
    text = sys.stdin.read() if options.params == "-" else options.params
    try:
        params = json.loads(text)
    except ValueError as error:
        raise InvalidValueError("params", "a JSON object", text) from error
    print(printable(await scheduler.create_task(params, options.id, **_move(options))))
    return OK


def _move(options: Options) -> Move:
    told: Move = {}
    if options.priority is not None:
        told["priority"] = options.priority
    if options.delay is not None:
        told["delay"] = options.delay
    return told


async def _update(scheduler: TaskBackoffScheduler, options: Options) -> int:
    done = await scheduler.update_task(options.task_id, **_move(options))
    return _done("changed") if done else _not_so(options, "it is not pending")


async def _cancel(scheduler: TaskBackoffScheduler, options: Options) -> int:
    done = await scheduler.cancel_task(options.task_id, running=options.running)
    return _done("cancelled") if done else _not_so(options, "it runs, is finished, or is not there")


async def _retry(scheduler: TaskBackoffScheduler, options: Options) -> int:
    if options.all_failed == (options.task_id is not None):
        raise InvalidValueError("retry", "an ID, or --all-failed", options.task_id)
    if options.all_failed:
        number = await scheduler.retry_tasks(error=options.error)
        return _done("1 task is pending again" if number == 1 else f"{number} tasks are pending again")
    done = await scheduler.retry_task(options.task_id)
    return _done("pending again") if done else _not_so(options, "it is neither failed nor cancelled")


async def _pause(scheduler: TaskBackoffScheduler, _: Options) -> int:
    return _done("paused" if await scheduler.pause() else "it was paused already")


async def _resume(scheduler: TaskBackoffScheduler, _: Options) -> int:
    return _done("goes on" if await scheduler.resume() else "it was not paused")


async def _purge(scheduler: TaskBackoffScheduler, options: Options) -> int:
    if not options.yes:
        raise InvalidValueError("purge", "--yes, as the tasks are deleted for good", "none")
    return _done(f"{await scheduler.purge_tasks(options.state)} tasks are deleted")


def _done(what: str) -> int:
    print(what)
    return OK


def _not_so(options: Options, why: str) -> int:
    print(f"maas-backoff {options.command}: {why}", file=sys.stderr)
    return FAILED


# Their arguments


def _for_list(parser: Arguments) -> None:
    parser.add_argument("--state", default="pending", choices=[str(status) for status in TaskStatus])
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="1 to 1000 (default: %(default)s)")
    parser.add_argument("--cursor", metavar="C", help="go on where a page ended")


def _for_create(parser: Arguments) -> None:
    parser.add_argument("params", metavar="JSON", help='the params, a JSON object; "-" reads them from stdin')
    parser.add_argument("--id", metavar="ID", help="its id, an idempotency key (default: a new one)")
    _for_move(parser)


def _for_move(parser: Arguments) -> None:
    parser.add_argument("--priority", type=int, metavar="N", help="-1000 to 1000, lower first")
    parser.add_argument("--delay", type=float, metavar="S", help="due in so many seconds")


def _for_update(parser: Arguments) -> None:
    _task_id(parser)
    _for_move(parser)


def _for_cancel(parser: Arguments) -> None:
    _task_id(parser)
    parser.add_argument("--running", action="store_true", help="also stop an attempt that runs")


def _for_retry(parser: Arguments) -> None:
    parser.add_argument("task_id", metavar="ID", nargs="?")
    parser.add_argument("--all-failed", action="store_true", help="all that have failed")
    parser.add_argument("--error", metavar="TEXT", help='of these, those with TEXT in "type: message"')


def _for_purge(parser: Arguments) -> None:
    parser.add_argument("state", choices=["pending", "completed", "failed", "cancelled"])
    parser.add_argument("--yes", action="store_true", help="really")


def _for_check(parser: Arguments) -> None:
    parser.add_argument("--ready", action="store_true", help="also ask for a live worker of the queue on this host")


COMMANDS = {
    "stats": Command("count tasks by state, and say why nothing runs", _stats, _no_arguments),
    "workers": Command("list the live workers (exit code 1: none)", _workers, _no_arguments),
    "list": Command("list the tasks in a state", _list, _for_list),
    "get": Command("show a task with its failed attempts (1: there is none)", _get, _task_id),
    "watch": Command("follow a task to its end (1: it did not complete)", _watch, _task_id),
    "check": Command("ask whether the server answers, for probes (1: not ready)", _check, _for_check, reads=False),
    "create": Command("create a task, and print its id", _create, _for_create, reads=False),
    "update": Command("change a pending task's priority or time", _update, _for_update, reads=False),
    "cancel": Command("cancel a task", _cancel, _for_cancel, reads=False),
    "retry": Command("make a failed or cancelled task pending again, or all failed", _retry, _for_retry, reads=False),
    "pause": Command("have no worker of the queue claim anything", _pause, _no_arguments, reads=False),
    "resume": Command("let the queue's workers go on", _resume, _no_arguments, reads=False),
    "purge": Command("delete all tasks in a state", _purge, _for_purge, reads=False),
}
"""By name. All of them take `--url` and `--queue`, and those that read `--json`."""
