"""The commands on workers and GPUs."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime

import attrs

from maas_backoff.commands.command import FAILED, OK, Arguments, Options, failed, on_queue
from maas_backoff.commands.json_text import gib, print_json
from maas_backoff.commands.text import span, table
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.worker import Device, Worker
from maas_backoff.language import sentence, t
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
    tasks = await running_tasks(scheduler) if options.json or options.tasks > 0 else {}
    now = datetime.now(UTC)
    if options.json:
        print_json([worker_view(one, tasks.get(one.name, ()), now) for one in fleet])
    else:
        head = ("worker", "host", "pid", "slots", "loop lag", "gpus", "version", "state")
        print(table(head, map(_row, fleet)))
        for worker in fleet:
            _print_tasks(worker, tasks.get(worker.name, ()), options.tasks, now)
    return OK if fleet else FAILED


async def running_tasks(scheduler: TaskBackoffScheduler) -> Tasks:
    """Return the running tasks by worker."""
    page = await scheduler.list_tasks(Selection(status=TaskStatus.PROCESSING), limit=MOST_READ, brief=True)
    found: Tasks = defaultdict(list)
    for task in sorted(page.tasks, key=lambda one: one.started_at or one.created_at):
        if task.worker is not None:
            found[task.worker].append(task)
    return found


def _row(one: Worker) -> Sequence[object]:
    slots = f"{one.running}/{one.slots}"
    return one.name, one.host, one.pid, slots, span(one.lag), len(one.devices), one.version, state_of(one)


def state_of(one: Worker) -> str:
    """Return in words whether a worker is ready."""
    return sentence(one.trouble) if one.trouble else t("quiet") if one.quiet else t("ready")


def worker_view(one: Worker, tasks: Sequence[TaskEntity], now: datetime) -> dict[str, object]:
    """Return a worker and its tasks as values for JSON."""
    plain = attrs.asdict(one, filter=lambda field, _: field.name != "devices")
    gpus = list(map(_device_view, one.devices))
    return {**plain, "ready": one.ready, "gpus": gpus, "tasks": [_task_view(task, now) for task in tasks]}


def _device_view(one: Device) -> dict[str, object]:
    """Return a GPU with the names and units of `maas-backoff gpus --json`."""
    return {
        "uuid": one.uuid,
        "index": one.index,
        "name": one.name,
        "total_gb": gib(one.total),
        "free_gb": gib(one.free),
        "room_gb": gib(one.room),
        "most_gb": gib(one.most),
        "other_processes_gb": gib(one.other_processes),
        "utilization": one.utilization,
        "temperature": one.temperature,
        "health": one.health,
        "closed": one.closed,
        "age": one.age,
    }


def _task_view(task: TaskEntity, now: datetime) -> dict[str, object]:
    gpu = None if task.gpu is None else task.gpu.uuid
    seconds = seconds_of(task, now)
    return {"task_id": task.task_id, "kind": task.kind, "attempt": task.attempt, "gpu": gpu, "running_for": seconds}


def seconds_of(task: TaskEntity, now: datetime) -> float | None:
    """Return for how long a running task has run; None: unknown."""
    return None if task.started_at is None else max(0.0, (now - task.started_at).total_seconds())


def _print_tasks(worker: Worker, tasks: Sequence[TaskEntity], most: int, now: datetime) -> None:
    for task in tasks[:most]:
        what = printable(task.task_id)
        what = t("{task} of kind {kind}", task=what, kind=task.kind) if task.kind else what
        told = t("{worker}: {task} runs for {span}", worker=worker.name, task=what, span=span(seconds_of(task, now)))
        print(told + (t(" on GPU {index}", index=task.gpu.index) if task.gpu else ""))
    if len(tasks) > most > 0:
        command = f"list --state processing --worker {worker.name}"
        print(t("{worker}: {n} more: {command}", worker=worker.name, n=f"{len(tasks) - most:,}", command=command))


def _for_quiet(parser: Arguments) -> None:
    parser.add_argument("worker", metavar="WORKER", help="its name, the beginning of the name up to a -, or a host")
    parser.add_argument("--off", action="store_true", help="let it claim again")


async def _quiet(scheduler: TaskBackoffScheduler, options: Options) -> int:
    meant = await scheduler.quiet_workers(options.worker, on=not options.off)
    if options.json:
        print_json({"workers": [worker.name for worker in meant], "quiet": not options.off})
        return OK if meant else FAILED
    for worker in meant:
        if options.off:
            print(t("{name} claims again after its next heartbeat", name=worker.name))
        else:
            print(t("{name} claims nothing more after its next heartbeat", name=worker.name))
    why = t("no live worker has the name or host {name}", name=printable(options.worker))
    return OK if meant else failed(options, why)


def _gpu(parser: Arguments) -> None:
    parser.add_argument("gpu", metavar="GPU", help="its UUID, or the beginning")


def _for_quarantine(parser: Arguments) -> None:
    _gpu(parser)
    parser.add_argument("--reason", default="", metavar="TEXT", help="is shown with the GPU")


async def _quarantine(scheduler: TaskBackoffScheduler, options: Options) -> int:
    uuid = await scheduler.quarantine_gpu(options.gpu, options.reason)
    if options.json:
        print_json({"gpu": uuid, "quarantine": True, "changed": True})
    else:
        print(t("{gpu} takes no new tasks: {command}", gpu=uuid, command=f"maas-backoff release {uuid}"))
    return OK


async def _release(scheduler: TaskBackoffScheduler, options: Options) -> int:
    changed = await scheduler.release_gpu(options.gpu)
    if options.json:
        print_json({"gpu": options.gpu, "quarantine": False, "changed": changed})
    else:
        print(t("released") if changed else t("{gpu} was in no quarantine", gpu=printable(options.gpu)))
    return OK


COMMANDS = {
    "workers": on_queue(
        "List the live workers, and the tasks that each runs, longest first. Exit code 1: no worker is alive.",
        "maas-backoff workers --tasks 20",
        _workers,
        _for_workers,
    ),
    "quiet": on_queue(
        "Tell a worker, or all workers of a host, to claim nothing more. Attempts that run go on. --off undoes it.",
        "maas-backoff quiet gpu-7",
        _quiet,
        _for_quiet,
    ),
    "quarantine": on_queue(
        "Start no task of any queue on a GPU until `maas-backoff release`.",
        'maas-backoff quarantine GPU-8a3f --reason "ECC errors"',
        _quarantine,
        _for_quarantine,
    ),
    "release": on_queue(
        "End the quarantine of a GPU, also that of a GPU that workers have found broken.",
        "maas-backoff release GPU-8a3f",
        _release,
        _gpu,
    ),
}
"""The commands by name."""
