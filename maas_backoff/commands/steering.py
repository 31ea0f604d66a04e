"""The commands that change a queue or its tasks."""

import json
import sys

from maas_backoff.commands.command import OK, Arguments, Command, Options, failed
from maas_backoff.commands.selecting import OnProgress, act_on_selection, act_options, is_selecting
from maas_backoff.domain.limit import rate_of
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.spec import Reschedule
from maas_backoff.errors import InvalidValueError
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler


def _done(text: str) -> int:
    print(text)
    return OK


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
    print(printable(await scheduler.create_task(params, options.id, **_reschedule(options))))
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
    return _done("changed") if done else failed(options, "it is not pending")


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
    return _done("cancelled") if done else failed(options, "it is running (add --running), finished, or unknown")


async def _delete(scheduler: TaskBackoffScheduler, options: Options) -> int:
    async def act(selection: Selection, dry_run: bool, show: OnProgress) -> int:
        return await scheduler.delete_tasks(selection, dry_run=dry_run, on_progress=show)

    if is_selecting(options):
        return await act_on_selection(options, "delete", "deleted", act)
    done = await scheduler.delete_task(options.task_id)
    return _done("deleted") if done else failed(options, "it is running, or unknown")


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
    return _done("pending again") if done else failed(options, "it is neither failed nor cancelled")


def _for_pause(parser: Arguments) -> None:
    parser.add_argument("--kind", metavar="NAME", help="only the tasks of this kind (default: the whole queue)")
    parser.add_argument("--tenant", metavar="NAME", help="only the tasks of this tenant")


async def _pause(scheduler: TaskBackoffScheduler, options: Options) -> int:
    done = await scheduler.pause(kind=options.kind, tenant=options.tenant)
    return _done("paused" if done else "it was paused already")


async def _resume(scheduler: TaskBackoffScheduler, options: Options) -> int:
    done = await scheduler.resume(kind=options.kind, tenant=options.tenant)
    return _done("goes on" if done else "it was not paused")


def _for_weight(parser: Arguments) -> None:
    parser.add_argument("tenant", metavar="TENANT")
    parser.add_argument("weight", metavar="X", type=float, help="0.001 to 1000; it is 1 at first")


async def _weight(scheduler: TaskBackoffScheduler, options: Options) -> int:
    done = await scheduler.set_weight(options.tenant, options.weight)
    return _done("set" if done else "it was so before")


def _for_limit(parser: Arguments) -> None:
    parser.add_argument("name", metavar="NAME", help="its name, or user:* for all names that begin with user:")
    parser.add_argument("--concurrency", type=int, metavar="N", help="most tasks that run at once")
    parser.add_argument("--rate", metavar="N/TIME", help="most tasks that start in a time, such as 500/1m")
    parser.add_argument("--tokens", metavar="X/TIME", help="most units that tasks use in a time, such as 120000/1m")
    parser.add_argument("--remove", action="store_true", help="remove the limit")


async def _limit(scheduler: TaskBackoffScheduler, options: Options) -> int:
    rate = None if options.rate is None else rate_of("rate", options.rate, whole=True)
    tokens = None if options.tokens is None else rate_of("tokens", options.tokens, whole=False)
    if options.remove == any(value is not None for value in (options.concurrency, rate, tokens)):
        expected = "--concurrency, --rate and --tokens, or --remove alone"
        raise InvalidValueError("limit", expected, "both" if options.remove else "none of them")
    if options.remove:
        return _done("removed" if await scheduler.remove_limit(options.name) else "it was not set")
    done = await scheduler.set_limit(options.name, concurrency=options.concurrency, rate=rate, tokens=tokens)
    return _done("set" if done else "it was so before")


def _for_purge(parser: Arguments) -> None:
    parser.add_argument("state", choices=["pending", "completed", "failed", "cancelled"])
    parser.add_argument("--yes", action="store_true", help="confirm the deletion")


async def _purge(scheduler: TaskBackoffScheduler, options: Options) -> int:
    if not options.yes:
        raise InvalidValueError("purge", "--yes, as the tasks are deleted for good", "none")
    return _done(f"{await scheduler.purge_tasks(options.state)} tasks are deleted")


COMMANDS = {
    "create": Command("create a task, and print its id", _create, _for_create),
    "update": Command("change the priority or the time of a pending task, or of all that match", _update, _for_update),
    "cancel": Command("cancel a task, or all that match", _cancel, _for_cancel),
    "retry": Command("make a failed or cancelled task, or all that match, pending again", _retry, _for_retry),
    "delete": Command("delete a task that is not running, or all that match", _delete, act_options),
    "pause": Command("stop the claims of the queue's workers; running tasks go on", _pause, _for_pause),
    "resume": Command("let the queue's workers claim again", _resume, _for_pause),
    "weight": Command("set the share of a tenant", _weight, _for_weight),
    "limit": Command("set or remove a limit that all workers share", _limit, _for_limit),
    "purge": Command("delete all tasks in a state", _purge, _for_purge),
}
"""The commands by name."""
