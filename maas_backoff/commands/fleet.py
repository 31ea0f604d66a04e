"""The commands on workers and GPUs."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import attrs

from maas_backoff.commands.command import FAILED, OK, Arguments, Command, Options, failed
from maas_backoff.commands.text import span, table
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.task import TaskEntity, TaskStatus
from maas_backoff.domain.worker import Worker
from maas_backoff.logs import printable
from maas_backoff.scheduler import TaskBackoffScheduler

MOST_READ = 1000
"""Running tasks that `workers` reads."""

Tasks = dict[str, list[TaskEntity]]
"""Running tasks by their worker, those that have run longest first."""


def _for_workers(parser: Arguments) -> None:
    parser.add_argument("--tasks", type=int, default=5, metavar="N", help="tasks of each worker (default: %(default)s)")


async def _workers(scheduler: TaskBackoffScheduler, options: Options) -> int:
    fleet = await scheduler.workers()
    tasks = await _running(scheduler) if options.json or options.tasks > 0 else {}
    now = datetime.now(UTC)
    if options.json:
        views = [
            {**attrs.asdict(one), "tasks": [_task_view(task, now) for task in tasks.get(one.name, ())]} for one in fleet
        ]
        print(json.dumps(views, indent=2, default=str))
    else:
        head = ("worker", "host", "pid", "slots", "loop lag", "gpus", "version", "state")
        print(table(head, map(_row, fleet)))
        for worker in fleet:
            _print_tasks(worker, tasks.get(worker.name, ()), options.tasks, now)
    return OK if fleet else FAILED


async def _running(scheduler: TaskBackoffScheduler) -> Tasks:
    page = await scheduler.list_tasks(Selection(status=TaskStatus.PROCESSING), limit=MOST_READ, brief=True)
    found: Tasks = defaultdict(list)
    for task in sorted(page.tasks, key=lambda one: one.started_at or one.created_at):
        if task.worker is not None:
            found[task.worker].append(task)
    return found


def _row(one: Worker) -> Sequence[object]:
    state = one.trouble or ("quiet" if one.quiet else "ready")
    slots = f"{one.running}/{one.slots}"
    return one.name, one.host, one.pid, slots, span(one.lag), len(one.devices), one.version, state


def _task_view(task: TaskEntity, now: datetime) -> dict[str, object]:
    gpu = None if task.gpu is None else task.gpu.uuid
    seconds = _seconds(task, now)
    return {"task_id": task.task_id, "kind": task.kind, "attempt": task.attempt, "gpu": gpu, "running_for": seconds}


def _seconds(task: TaskEntity, now: datetime) -> float | None:
    return None if task.started_at is None else max(0.0, (now - task.started_at).total_seconds())


def _print_tasks(worker: Worker, tasks: Sequence[TaskEntity], most: int, now: datetime) -> None:
    for task in tasks[:most]:
        what = f"{printable(task.task_id)}{f' of kind {task.kind}' if task.kind else ''}"
        where = f" on GPU {task.gpu.index}" if task.gpu else ""
        print(f"{worker.name}: {what} runs for {span(_seconds(task, now))}{where}")
    if len(tasks) > most > 0:
        print(f"{worker.name}: {len(tasks) - most:,} more: list --state processing --worker {worker.name}")


def _for_quiet(parser: Arguments) -> None:
    parser.add_argument("worker", metavar="WORKER", help="its name, the beginning of the name up to a -, or a host")
    parser.add_argument("--off", action="store_true", help="let it claim again")


async def _quiet(scheduler: TaskBackoffScheduler, options: Options) -> int:
    meant = await scheduler.quiet_workers(options.worker, on=not options.off)
    for worker in meant:
        print(f"{worker.name} {'claims again' if options.off else 'claims nothing more'} after its next heartbeat")
    return OK if meant else failed(options, "no live worker has this name or host")


def _gpu(parser: Arguments) -> None:
    parser.add_argument("gpu", metavar="GPU", help="its UUID, or the beginning")


def _for_quarantine(parser: Arguments) -> None:
    _gpu(parser)
    parser.add_argument("--reason", default="", metavar="TEXT", help="is shown with the GPU")


async def _quarantine(scheduler: TaskBackoffScheduler, options: Options) -> int:
    uuid = await scheduler.quarantine_gpu(options.gpu, options.reason)
    print(f"{uuid} takes no new tasks: maas-backoff release {uuid}")
    return OK


async def _release(scheduler: TaskBackoffScheduler, options: Options) -> int:
    print("released" if await scheduler.release_gpu(options.gpu) else "it was in no quarantine")
    return OK


COMMANDS = {
    "workers": Command("list the live workers and their tasks (1: none)", _workers, _for_workers, prints_json=True),
    "quiet": Command("tell a worker, or all of a host, to claim nothing more; --off undoes it", _quiet, _for_quiet),
    "quarantine": Command("start no task on a GPU until it is released", _quarantine, _for_quarantine),
    "release": Command("end the quarantine of a GPU", _release, _gpu),
}
"""The commands by name."""
