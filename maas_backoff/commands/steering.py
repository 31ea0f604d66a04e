"""The commands that create, change and delete tasks."""

import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

from maas_backoff.commands.command import FAILED, OK, Arguments, Options, failed, on_queue
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.refusals import refusal, unknown
from maas_backoff.commands.selecting import (
    act_on_selection,
    act_options,
    are_done,
    is_selecting,
    print_matches,
    states_changed,
)
from maas_backoff.domain.reschedule import NewPlace
from maas_backoff.domain.selection import OnProgress, Selection
from maas_backoff.domain.spec import Reschedule
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.errors import InvalidValueError, PayloadError
from maas_backoff.language import t
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler


async def _act_on_task(
    scheduler: TaskBackoffScheduler, options: Options, words: str, act: Callable[[], Awaitable[bool]]
) -> int:
    """Change one task, and print whether it has changed, else why not; return the exit code.

    With --dry-run, print whether the task would change.
    """
    if options.dry_run:
        return await _look_at_task(scheduler, options)
    changed = await act()
    reason = "" if changed else await _why_not(scheduler, options)
    if options.json:
        print_json({"task_id": options.task_id, "changed": changed, "reason": reason})
        return OK if changed else FAILED
    if reason:
        return failed(options, reason)
    print(t(words))
    return OK


async def _look_at_task(scheduler: TaskBackoffScheduler, options: Options) -> int:
    task = await scheduler.get_task(options.task_id)
    matches = task is not None and _would_change(options, task)
    if matches or options.json:
        print_matches(options, int(matches))
        return OK if matches else FAILED
    return failed(options, await _why_not(scheduler, options))


def _would_change(options: Options, task: TaskEntity) -> bool:
    is_elsewhere = task.status is TaskStatus.PROCESSING and task.worker is None  # by `mark_task_processing`
    return task.status in states_changed(options) or (options.command == "delete" and is_elsewhere)


async def _why_not(scheduler: TaskBackoffScheduler, options: Options) -> str:
    task = await scheduler.get_task(options.task_id)
    if task is None:
        return unknown(options.task_id, scheduler.config.task.biz_prefix)
    return refusal(options.command, task)


def _for_create(parser: Arguments) -> None:
    parser.add_argument("params", metavar="JSON", help='the params, a JSON object; "-" reads them from stdin')
    parser.add_argument("--id", metavar="ID", help="id of the task, an idempotency key (default: a new id)")
    _for_reschedule(parser)


async def _create(scheduler: TaskBackoffScheduler, options: Options) -> int:
    text = sys.stdin.read() if options.params == "-" else options.params
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidValueError("params", "a JSON object", text) from error
    if not isinstance(params, dict):
        raise PayloadError("params", "a JSON object", params)
    task_id = await scheduler.create_task(cast("dict[str, Any]", params), options.id, **_reschedule(options))
    if options.json:
        print_json({"task_id": task_id})
    else:
        print(printable(task_id))
    return OK


def _for_reschedule(parser: Arguments) -> None:
    parser.add_argument("--priority", type=int, metavar="N", help="-1000 to 1000, lower first")
    parser.add_argument("--delay", type=float, metavar="S", help="seconds until the task is due")


def _reschedule(options: Options) -> Reschedule:
    reschedule: Reschedule = {}
    if options.priority is not None:
        reschedule["priority"] = options.priority
    if options.delay is not None:
        reschedule["delay"] = options.delay
    return reschedule


def _new_place(options: Options) -> Reschedule:
    """Return the new priority or time of tasks. Raises InvalidValueError."""
    reschedule = _reschedule(options)
    if not reschedule:
        raise InvalidValueError("update", "--priority or --delay", "neither")
    NewPlace.of("update", reschedule)
    return reschedule


def _for_update(parser: Arguments) -> None:
    act_options(parser)
    _for_reschedule(parser)


async def _update(scheduler: TaskBackoffScheduler, options: Options) -> int:
    reschedule = _new_place(options)

    async def act(selection: Selection, dry_run: bool, show: OnProgress) -> int:
        return await scheduler.update_tasks(selection, dry_run=dry_run, on_progress=show, **reschedule)

    if is_selecting(options):
        return await act_on_selection(options, "change", "changed", act)
    return await _act_on_task(
        scheduler, options, "changed", lambda: scheduler.update_task(options.task_id, **reschedule)
    )


def _for_cancel(parser: Arguments) -> None:
    act_options(parser)
    parser.add_argument("--running", action="store_true", help="also stop attempts that run")


async def _cancel(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async def act(selection: Selection, dry_run: bool, show: OnProgress) -> int:
        running = options.running
        return await scheduler.cancel_tasks(selection, running=running, dry_run=dry_run, on_progress=show)

    if is_selecting(options):
        return await act_on_selection(options, "cancel", "cancelled", act)
    return await _act_on_task(
        scheduler, options, "cancelled", lambda: scheduler.cancel_task(options.task_id, running=options.running)
    )


async def _delete(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async def act(selection: Selection, dry_run: bool, show: OnProgress) -> int:
        return await scheduler.delete_tasks(selection, dry_run=dry_run, on_progress=show)

    if is_selecting(options):
        return await act_on_selection(options, "delete", "deleted", act)
    return await _act_on_task(scheduler, options, "deleted", lambda: scheduler.delete_task(options.task_id))


def _for_retry(parser: Arguments) -> None:
    act_options(parser)
    parser.add_argument("--all-failed", action="store_true", help="as --state failed --yes")


async def _retry(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async def act(selection: Selection, dry_run: bool, show: OnProgress) -> int:
        return await scheduler.retry_tasks(selection, dry_run=dry_run, on_progress=show)

    if options.all_failed:
        if options.select_state:
            raise InvalidValueError("all-failed", "--all-failed, or --state", "both")
        options.select_state, options.yes = ["failed"], True
    if is_selecting(options):
        return await act_on_selection(options, "retry", "pending again", act)
    return await _act_on_task(scheduler, options, "pending again", lambda: scheduler.retry_task(options.task_id))


def _for_purge(parser: Arguments) -> None:
    parser.add_argument("state", choices=["pending", "completed", "failed", "cancelled"])
    parser.add_argument("--yes", action="store_true", help="confirm the deletion")


async def _purge(scheduler: TaskBackoffScheduler, options: Options) -> int:
    if not options.yes:
        raise InvalidValueError("purge", "--yes, as the tasks are deleted for good", "none")
    number = await scheduler.purge_tasks(options.state)
    if options.json:
        print_json({"state": options.state, "changed": number})
    else:
        print(are_done(number, "deleted"))
    return OK


COMMANDS = {
    "create": on_queue(
        "Create a task, and print its id. An id that exists already changes nothing.",
        """maas-backoff create '{"prompt": "a cat"}' --id img-1""",
        _create,
        _for_create,
    ),
    "update": on_queue(
        "Change the priority or the time of a pending task, or of all pending tasks that match.",
        "maas-backoff update img-1 --priority -5",
        _update,
        _for_update,
        prints_json=False,
    ),
    "cancel": on_queue(
        "Cancel a task, or all tasks that match. Without --running, tasks that run go on.",
        "maas-backoff cancel img-1 --running",
        _cancel,
        _for_cancel,
        prints_json=False,
    ),
    "retry": on_queue(
        "Make a failed or cancelled task, or all that match, pending again, with all retries.",
        "maas-backoff retry --state failed --error timeout",
        _retry,
        _for_retry,
        prints_json=False,
    ),
    "delete": on_queue(
        "Delete a task that is not running, or all tasks that match.",
        "maas-backoff delete --state completed --ended-to 2d",
        _delete,
        act_options,
        prints_json=False,
    ),
    "purge": on_queue("Delete all tasks in a state, for good.", "maas-backoff purge failed --yes", _purge, _for_purge),
}
"""The commands by name."""
