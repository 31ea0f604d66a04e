"""`maas-backoff worker module:scheduler`: one worker, or a parent of several."""

import argparse
import math
import os

import anyio

from maas_backoff.commands.command import FAILED, OK, Arguments, Command, Options, add_option, one_to_a_hundred
from maas_backoff.commands.left_behind import end_loop_without_handlers
from maas_backoff.commands.load import load_scheduler
from maas_backoff.commands.processes import Processes
from maas_backoff.commands.stderr import LEVELS, log_to_stderr
from maas_backoff.commands.usage import UsageError
from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.parent import drain_with_parent
from maas_backoff.config import SchedulerConfig, TaskBackoffConfig
from maas_backoff.errors import MaasBackoffError, WorkerEndedError
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler

log: Log = log_for("command")


def _arguments(worker: Arguments) -> None:
    worker.add_argument(
        "scheduler", metavar="module:scheduler", help="where the scheduler, or a function that returns it, is defined"
    )
    worker.add_argument(
        "--processes",
        type=one_to_a_hundred,
        metavar="N",
        help="workers to run, and to replace when they end, 1 to 100; without it: one, which is not replaced",
    )
    worker.add_argument("--burst", action="store_true", help="end with exit code 0 when nothing is due for the worker")
    worker.add_argument(
        "--burst-wait",
        type=_seconds,
        metavar="S",
        help="with --burst: also wait for tasks that are due within S seconds (default: 0)",
    )
    add_option(worker, SchedulerConfig, "worker_name", "--name")
    worker.add_argument("--log-level", choices=LEVELS, help="(default: info, or what the module has set)")
    worker.add_argument("--log-format", choices=["plain", "json"], help="(default: plain, or what the module has set)")


def _run(options: Options) -> int:
    if options.burst_wait is not None and not options.burst:
        raise UsageError(t("--burst-wait is for a worker with --burst"))
    if options.processes is not None:
        log_to_stderr(options.log_level, options.log_format)
        return _workers(options)
    drain_with_parent(os.environ)
    scheduler = load_scheduler(options.scheduler)
    if options.name is not None:
        scheduler.config.scheduler.worker_name = options.name
    log_to_stderr(options.log_level, options.log_format)
    queue, slots = scheduler.config.task.biz_prefix, scheduler.config.threadpool.concurrency
    log.info("starting: queue %r, %d at a time, pid %d", queue, slots, os.getpid())

    try:
        anyio.run(_run_one, scheduler, (options.burst_wait or 0) if options.burst else None)
    except WorkerEndedError:  # it is logged already
        return FAILED
    except MaasBackoffError:
        raise
    except Exception:
        log.exception("the worker has died")
        return FAILED
    log.info("stopped")
    return OK


async def _run_one(scheduler: TaskBackoffScheduler, burst_wait: float | None) -> None:
    """Run a worker until it is stopped, or, if `burst_wait` is given, until it has no more work."""

    async def until_idle() -> None:
        log.info("burst: %s", await scheduler.until_idle(burst_wait or 0))

    code = FAILED
    try:
        await scheduler.run_until_stopped(until=None if burst_wait is None else until_idle)
        code = OK
    finally:
        end_loop_without_handlers(code)


def _workers(options: Options) -> int:
    own: list[str] = [options.scheduler]
    for flag, value in (("--log-level", options.log_level), ("--log-format", options.log_format)):
        own += [] if value is None else [flag, value]
    if options.burst:
        own += ["--burst", "--burst-wait", f"{options.burst_wait or 0}"]
    name = options.name or TaskBackoffConfig.from_env().scheduler.worker_name

    async def run() -> int:
        return await Processes(own, options.processes, name, burst=options.burst).run()

    return anyio.run(run)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(t("expected seconds from 0 on, got {got}", got=repr(text)))
    return seconds


COMMANDS = {
    "worker": Command(
        "Run the tasks of a TaskBackoffScheduler. SIGTERM, SIGHUP or Ctrl-C: finish running tasks and end; "
        "a second signal: hand back running tasks. With --processes, a small parent starts as many workers, replaces "
        "those that end, and hands signals on.",
        "maas-backoff worker my_service.tasks:scheduler --processes 2",
        _run,
        _arguments,
    )
}
"""The command by its name."""
