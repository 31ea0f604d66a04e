"""The commands that read tasks."""

import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import attrs

from maas_backoff.commands.command import FAILED, OK, Arguments, Options, failed, on_queue, on_store, task_id
from maas_backoff.commands.json_text import print_json, print_json_line
from maas_backoff.commands.refusals import unknown
from maas_backoff.commands.selecting import selection_of, selection_options
from maas_backoff.commands.task_text import task_lines
from maas_backoff.commands.text import cell, clock, is_rich, moment, table
from maas_backoff.domain.page import Listing
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.language import is_translated, sentence, t
from maas_backoff.language.width import padded

if TYPE_CHECKING:  # see command.py
    from maas_backoff.scheduler import TaskBackoffScheduler
    from maas_backoff.store.queue_store import QueueStore


def _for_list(parser: Arguments) -> None:
    selection_options(parser)
    parser.add_argument("--reverse", action="store_true", help="the last of each state first")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="1 to 1000 (default: %(default)s)")
    parser.add_argument("--cursor", metavar="C", help="the cursor of the last page, to read the next one")


async def _list(store: "QueueStore", options: Options) -> int:
    from maas_backoff.client.selected import page_of  # imports redis-py

    selection = selection_of(options)
    if not selection.has_conditions and not options.select_state:
        selection = Selection(status=TaskStatus.PENDING)
    listing = Listing(options.limit, options.cursor, options.reverse, brief=not options.json)
    listing.check(TaskStatus.PENDING)
    page = await page_of(store.reader, selection, listing)
    if options.json:
        print_json({"tasks": [task.to_dict() for task in page.tasks], "cursor": page.cursor})
        return OK
    if is_rich():
        print(_narrow(page.tasks))
    else:
        print(_wide(page.tasks))
    if page.cursor is not None:
        print(t("There is more: {command}", command=f"--cursor {page.cursor!r}"))
    return OK


def _narrow(tasks: Sequence[TaskEntity]) -> str:
    """Return a table that fits a terminal: without columns that tell nothing, with short times."""
    has_worker, has_rank = any(task.worker for task in tasks), any(task.priority for task in tasks)
    head = ("id", "state", *(["prio"] if has_rank else []), "tries", "when", *(["worker"] if has_worker else []), "why")
    rows = [
        (
            task.task_id,
            t(task.status),
            *([task.priority] if has_rank else []),
            f"{task.attempt}/{task.max_retry_count + 1}",
            clock(task.finished_at or task.next_execute_time or task.started_at),
            *([_worker_of(task)] if has_worker else []),
            _why(task, when=False),
        )
        for task in tasks
    ]
    return table(head, rows)


def _wide(tasks: Sequence[TaskEntity]) -> str:
    """Return a table for programs and wide files."""
    has_worker = any(task.worker for task in tasks)
    head = ("id", "state", "priority", "attempt", "retries", "due", "ended", *(["worker"] if has_worker else []), "why")
    return table(head, (_row(task, has_worker=has_worker) for task in tasks))


async def _count(scheduler: "TaskBackoffScheduler", options: Options) -> int:
    number = await scheduler.count_tasks(selection_of(options))
    if options.json:
        print_json({"matched": number})
    else:
        print(number)
    return OK


def _row(task: TaskEntity, *, has_worker: bool) -> Sequence[object]:
    retries = f"{task.retry_count}/{task.max_retry_count}"
    due, ended = moment(task.next_execute_time), moment(task.finished_at)
    worker = [_worker_of(task)] if has_worker else []
    why = _why(task, when=False)
    return task.task_id, t(task.status), task.priority, task.attempt, retries, due, ended, *worker, why


def _worker_of(task: TaskEntity) -> str:
    """Return the worker and the GPU of the running or last attempt."""
    if task.worker is None or task.gpu is None:
        return task.worker or "-"
    return t("{worker} gpu {index}", worker=task.worker, index=task.gpu.index)


def _why(task: TaskEntity, *, when: bool = True) -> str:
    """Return why a task is in its state: its reason to wait, its progress, or its end."""
    error = "" if task.error is None else str(task.error)
    if task.status.finished:
        if task.cancel_reason == "expired":
            return t("expired, after {error}", error=error) if error else t("expired")
        return error or task.progress_message or ""
    if task.waiting_for is None:
        return task.progress_message or ""
    waits = task.waiting_for if when or not task.waiting_for.startswith("due at") else ""
    if not is_translated() and (waits == "slot" or waits.startswith("slot: ")):
        waits = f"waiting for a free {waits}"
    return t(", ").join(filter(None, (sentence(waits), error and t("after {error}", error=error))))


async def _get(scheduler: "TaskBackoffScheduler", options: Options) -> int:
    task = await scheduler.get_task(options.task_id)
    if task is None:
        return failed(options, unknown(options.task_id, scheduler.config.task.biz_prefix))
    retries = await scheduler.get_retries_ahead(options.task_id)
    if options.json:
        print_json({**task.to_dict(), "retries_ahead": list(map(attrs.asdict, retries))})
    else:
        print("\n".join(task_lines(task, retries)))
    return OK


async def _watch(scheduler: "TaskBackoffScheduler", options: Options) -> int:
    status = TaskStatus.PENDING
    with _drawing(options) as show:
        async for event in scheduler.watch(options.task_id):
            task = event.task
            status = task.status
            if options.json:
                print_json_line({"id": event.id, "task": task.to_dict()})
            else:
                state = t("{state} attempt {number}", state=padded(t(status), 10), number=task.attempt)
                line = t("{state}, {percent} %  {why}", state=state, percent=f"{task.progress:g}", why=cell(_why(task)))
                show(state, line.rstrip(), task.progress)
    return OK if status is TaskStatus.COMPLETED else FAILED


def _drawing(options: Options) -> AbstractContextManager[Callable[[str, str, float], None]]:
    if options.json or not is_rich():
        return nullcontext(lambda _state, line, _percent: print(line, flush=True))
    from maas_backoff.commands.rich_text import progress_bar

    return progress_bar()


def _for_check(parser: Arguments) -> None:
    parser.add_argument("--ready", action="store_true", help="also check for a ready worker of the queue on this host")


async def _check(store: "QueueStore", options: Options) -> int:
    here = [worker for worker in await store.registry.fleet() if worker.host == socket.gethostname()]
    why = ""
    if options.ready and not here:
        why = t("no worker of this queue is alive on this host")
    elif options.ready and not any(worker.ready for worker in here):
        why = t("no worker of this queue on this host is ready: {trouble}", trouble=sentence(here[0].trouble))
    if options.json:
        print_json({"ok": not why, "reason": why, "workers_here": len(here)})
        return FAILED if why else OK
    if why:
        return failed(options, why)
    print(t("ok: the server answers; live workers of this queue on this host: {number}", number=len(here)))
    return OK


COMMANDS = {
    "list": on_store(
        "List the tasks that match all options; without one, the pending tasks. States: pending (due, or scheduled for "
        "later), processing, completed, failed (no retry is left), cancelled.",
        "maas-backoff list --state failed --error CUDA --reverse",
        _list,
        _for_list,
    ),
    "count": on_queue(
        "Count the tasks that match all options.",
        "maas-backoff count --state processing --worker gpu-7",
        _count,
        selection_options,
    ),
    "get": on_queue(
        "Show a task with its params, its result, why it waits, its failed attempts, and the retries that it has left. "
        "Exit code 1: there is none.",
        "maas-backoff get img-1 --json",
        _get,
        task_id,
    ),
    "watch": on_queue(
        "Follow a task to its end. Exit code 1: it did not complete.", "maas-backoff watch img-1", _watch, task_id
    ),
    "check": on_store(
        "Check that the server answers; with --ready, that a worker of the queue on this host is ready. For probes.",
        "maas-backoff check --ready",
        _check,
        _for_check,
    ),
}
"""The commands by name."""
