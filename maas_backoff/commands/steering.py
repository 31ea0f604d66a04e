"""The commands that create, change and delete tasks."""

import json
import sys

from maas_backoff.commands.command import FAILED, OK, Arguments, Options, failed, on_queue
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.refusals import refusal, unknown
from maas_backoff.commands.selecting import act_on_selection, act_options, are_done, is_selecting
from maas_backoff.domain.selection import OnProgress, Selection
from maas_backoff.domain.spec import Reschedule
from maas_backoff.errors import InvalidValueError
from maas_backoff.language import t
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler


async def _done(scheduler: TaskBackoffScheduler, options: Options, words: str, *, changed: bool) -> int:
    """Print whether the task has changed, else why not; return the exit code."""
    reason = "" if changed else await _why_not(scheduler, options)
    if options.json:
        print_json({"task_id": options.task_id, "changed": changed, "reason": reason})
        return OK if changed else FAILED
    if reason:
        return failed(options, reason)
    print(t(words))
    return OK


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
    task_id = await scheduler.create_task(params, options.id, **_reschedule(options))
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


def _for_update(parser: Arguments) -> None:
    act_options(parser)
    _for_reschedule(parser)


async def _update(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async def act(selection: Selection, dry_run: bool, show: OnProgress) -> int:
        return await scheduler.update_tasks(selection, dry_run=dry_run, on_progress=show, **_reschedule(options))

    if is_selecting(options):
        return await act_on_selection(options, "change", "changed", act)
    done = await scheduler.update_task(options.task_id, **_reschedule(options))
    return await _done(scheduler, options, "changed", changed=done)


def _for_cancel(parser: Arguments) -> None:
    act_options(parser)
    parser.add_argument("--running", action="store_true", help="also stop attempts that run")


async def _cancel(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async def act(selection: Selection, dry_run: bool, show: OnProgress) -> int:
        running = options.running
        return await scheduler.cancel_tasks(selection, running=running, dry_run=dry_run, on_progress=show)

    if is_selecting(options):
        return await act_on_selection(options, "cancel", "cancelled", act)
    done = await scheduler.cancel_task(options.task_id, running=options.running)
    return await _done(scheduler, options, "cancelled", changed=done)


async def _delete(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async def act(selection: Selection, dry_run: bool, show: OnProgress) -> int:
        return await scheduler.delete_tasks(selection, dry_run=dry_run, on_progress=show)

    if is_selecting(options):
        return await act_on_selection(options, "delete", "deleted", act)
    done = await scheduler.delete_task(options.task_id)
    return await _done(scheduler, options, "deleted", changed=done)


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
    done = await scheduler.retry_task(options.task_id)
    return await _done(scheduler, options, "pending again", changed=done)


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
