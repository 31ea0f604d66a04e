"""`maas-backoff map module:scheduler in.jsonl out.jsonl`: its arguments, its worker, its signals, its summary."""

import argparse
import logging
import os
import sys
import time
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import anyio

from maas_backoff.commands.command import FAILED, OK, STOPPED, Arguments, Command, Options
from maas_backoff.commands.left_behind import end_loop_without_handlers
from maas_backoff.commands.load import load_scheduler
from maas_backoff.commands.mapping.output import Output
from maas_backoff.commands.mapping.pipeline import Pipeline
from maas_backoff.commands.mapping.progress import AboveProgress, Progress
from maas_backoff.commands.mapping.records import COMPLETED
from maas_backoff.commands.mapping.source import Source
from maas_backoff.commands.mapping.tasks import LineTasks
from maas_backoff.commands.stderr import LEVELS, log_to_stderr
from maas_backoff.commands.usage import UsageError
from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.until_stopped import stop_signals
from maas_backoff.domain.kind import NAMELESS
from maas_backoff.domain.seconds import span
from maas_backoff.domain.validation import new_task_id
from maas_backoff.errors import MaasBackoffError, WorkerEndedError
from maas_backoff.language import sentence, t
from maas_backoff.scheduler import TaskBackoffScheduler

if TYPE_CHECKING:
    from maas_backoff.kinds.kind import TaskKind

log: Log = log_for("command")

MOST_IN_FLIGHT = 100_000
LONGEST_PREFIX = 200


def _arguments(parser: Arguments) -> None:
    parser.add_argument(
        "scheduler", metavar="module:scheduler", help="where the scheduler, or a function that returns it, is defined"
    )
    parser.add_argument("input", metavar="IN", help='the file with the lines; "-" reads stdin')
    parser.add_argument("output", metavar="OUT", help='the file of the results, which must not exist; "-": stdout')
    parser.add_argument("--kind", metavar="NAME", help="lines have the arguments of this kind of tasks")
    parser.add_argument("--text", action="store_true", help='lines are plain text: the params are {"text": line}')
    parser.add_argument(
        "--id", metavar="PREFIX", help="tasks are named PREFIX-1, PREFIX-2, … (default: by the content of the file)"
    )
    parser.add_argument("--tasks-at-once", type=int, metavar="N", help="(default: concurrency of the scheduler)")
    parser.add_argument(
        "--in-flight", type=_in_flight, default=1000, metavar="N", help="lines read ahead (default: %(default)s)"
    )
    parser.add_argument("--no-worker", action="store_true", help="run no tasks here: workers run elsewhere")
    parser.add_argument("--quiet", action="store_true", help="show no progress and no summary")
    parser.add_argument("--log-level", choices=LEVELS, help="log all events, also those of tasks (default: warnings)")


def _in_flight(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= MOST_IN_FLIGHT:
        told = t("expected a whole number from 1 to {most}, got {got}", most=MOST_IN_FLIGHT, got=repr(text))
        raise argparse.ArgumentTypeError(told)
    return int(text)


def _run(options: Options) -> int:
    level = options.log_level or ("error" if options.quiet else "warning")
    # The output has the failures of tasks.
    keep = None if options.log_level else _is_of_no_task
    log_to_stderr(level, stream=AboveProgress(sys.stderr), keep=keep)
    scheduler = load_scheduler(options.scheduler, needs_handler=not options.no_worker)
    kind = _checked(scheduler, options)
    # JSON may write each byte as \u0000, and have spaces.
    source = Source(options.input, 6 * scheduler.config.task.max_payload_bytes + 65_536)
    try:
        prefix = _prefix(options, source)
        output = Output(options.output, prefix)
        try:
            tasks = LineTasks(scheduler, prefix, kind, is_text=options.text)
            return _Run(options, scheduler, source, output, tasks).run()
        finally:
            output.close()
    finally:
        source.close()


def _is_of_no_task(record: logging.LogRecord) -> bool:
    return not hasattr(record, "event")


def _checked(scheduler: TaskBackoffScheduler, options: Options) -> "TaskKind[..., Any] | None":
    """Return the kind of the tasks. Raises UsageError and InvalidValueError for options that do not fit together."""
    if options.no_worker and options.tasks_at_once is not None:
        raise UsageError(t("--tasks-at-once is for the worker of this process, and --no-worker runs none"))
    storage = scheduler.config.storage
    if options.no_worker and storage.url is None and storage.type == "embedded" and storage.path is None:
        raise UsageError(t("no other worker can use an embedded server without a path: leave out --no-worker"))
    if options.tasks_at_once is not None:
        scheduler.config.threadpool.concurrency = options.tasks_at_once
    if options.kind is None:
        if not options.no_worker and NAMELESS not in scheduler.kinds:
            kinds = ", ".join(scheduler.kinds)
            told = "{scheduler} has no handler for tasks without a kind: add --kind ({kinds})"
            raise UsageError(t(told, scheduler=repr(options.scheduler), kinds=kinds))
        return None
    kind = scheduler.kind(options.kind)
    kind.declaration.check_resolved()
    return kind


def _prefix(options: Options, source: Source) -> str:
    """Return the first part of the ids of the tasks: the same for the same content and kind."""
    if options.id is not None:
        if not 1 <= len(options.id) <= LONGEST_PREFIX or not options.id.isprintable():
            told = "--id: expected 1 to {most} printable characters, got {got}"
            raise UsageError(t(told, most=LONGEST_PREFIX, got=repr(options.id)))
        return str(options.id)
    if source.digest is None:
        return f"map-{new_task_id()}"
    content = f"{source.digest} {options.kind or ''} {'text' if options.text else ''}"
    return f"map-{blake2b(content.encode(), digest_size=8).hexdigest()}"


class _Run:
    """One run of the command."""

    def __init__(
        self, options: Options, scheduler: TaskBackoffScheduler, source: Source, output: Output, tasks: LineTasks
    ) -> None:
        self._options = options
        self._scheduler = scheduler
        self._source = source
        self._output = output
        self._tasks = tasks
        self._pipeline = Pipeline(source, output, tasks, options.in_flight)
        self._started = time.monotonic()

    def run(self) -> int:
        """Run to the end or to a signal, print the summary, and return the exit code."""
        try:
            anyio.run(self._run)
        except WorkerEndedError:  # it is logged already
            return FAILED
        except (MaasBackoffError, UsageError, BrokenPipeError):
            raise
        except OSError as error:
            log.error("%s: %s", error.filename or self._output.partial or self._output.path, error.strerror)  # noqa: TRY400 - the disk is full
            return FAILED
        except Exception:
            log.exception("the run has failed")
            return FAILED
        return self._code()

    def _code(self) -> int:
        if not self._pipeline.is_done:
            return STOPPED
        return OK if self._output.counts.keys() <= {COMPLETED} else FAILED

    async def _run(self) -> None:
        code = FAILED
        try:
            await (self._without_worker() if self._options.no_worker else self._with_worker())
            code = self._code()
        finally:
            end_loop_without_handlers(code)
            if not self._options.quiet:
                print(f"maas-backoff map: {self._summary()}", file=sys.stderr, flush=True)

    async def _with_worker(self) -> None:
        grace = self._scheduler.config.scheduler.shutdown_grace
        await self._scheduler.run_until_stopped(until=partial(self._lines, max(1.0, grace)))

    async def _without_worker(self) -> None:
        failure: Exception | None = None
        with anyio.open_signal_receiver(*stop_signals()) as signals:
            await self._scheduler.start(run_tasks=False)
            async with anyio.create_task_group() as group:
                scope = anyio.CancelScope()

                async def stop_at_signal() -> None:
                    await anext(signals)
                    scope.cancel()
                    os._exit(128 + await anext(signals))

                group.start_soon(stop_at_signal)
                with scope:
                    try:
                        await self._lines(0)
                    except Exception as error:  # noqa: BLE001 - raised after the shutdown
                        failure = error
                group.cancel_scope.cancel()
            await self._scheduler.shutdown()
        if failure is not None:
            raise failure

    async def _lines(self, grace: float) -> None:
        progress = Progress(self._output, self._source.total, self._waits_for)
        beside = anyio.sleep_forever if self._options.quiet else progress.run
        await self._pipeline.run(beside, grace=grace)

    async def _waits_for(self) -> str:
        """Return in words what the next line waits for."""
        line = self._pipeline.head
        if line is None:
            return t("no line has come")
        task = await self._tasks.task(line)
        if task is None:
            return t("line {line} has no task yet", line=line)
        return t("line {line}: {why}", line=line, why=sentence(task.waiting_for or "") or t(task.status))

    def _summary(self) -> str:
        """Return the counts in words, and what to do if lines are left."""
        counts = self._output.counts
        by_status = t(", ").join(
            t("{n} {state}", n=f"{number:,}", state=t(one)) for one, number in counts.most_common()
        )
        written = t("{n} lines", n=f"{counts.total():,}")
        if by_status:
            written = t("{lines} ({states})", lines=written, states=by_status)
        if self._pipeline.is_done:
            return t("{lines} in {span}", lines=written, span=sentence(span(time.monotonic() - self._started)))
        in_flight = f"{self._pipeline.in_flight:,}"
        left = t("stopped: {lines} are written, {n} are in flight", lines=written, n=in_flight)
        goes_on = self._source.digest is not None or self._options.id is not None
        if not goes_on or self._output.partial is None:
            return left
        return t("{stopped}; run the same command again to go on", stopped=left)


COMMANDS = {
    "map": Command(
        "Run a task for each line of a file, and write the results in the order of the lines. A line is a JSON object: "
        "the params of the task. A run that was stopped or killed goes on where it was when the command is run again. "
        "Exit codes: 0 all completed, 1 some failed, 2 wrong usage, 3 no server, 130 stopped.",
        "maas-backoff map my_service.tasks:scheduler prompts.jsonl results.jsonl",
        _run,
        _arguments,
    )
}
"""The command by its name."""
