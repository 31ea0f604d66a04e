"""The command line: `maas-backoff worker module:scheduler`, and the commands that read or change a queue.

Exit codes: 0 success; 1 a task or the worker failed, a check is negative, or the task does not exist; 2 wrong usage or
a failed import; 3 the server cannot be reached; 130 stopped.
"""

import argparse
import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import anyio

from maas_backoff.commands import fleet, logs, preview, reading, steering, worker
from maas_backoff.commands.command import FAILED, OK, STOPPED, STORAGE, USAGE, add_option, one_to_a_hundred
from maas_backoff.commands.load import UsageError
from maas_backoff.commands.mapping import command as mapping
from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.version import __version__
from maas_backoff.config import StorageConfig, TaskBackoffConfig, TaskConfig
from maas_backoff.demo.lines import InputError
from maas_backoff.errors import MaasBackoffError, StorageError, TaskNotFoundError
from maas_backoff.scheduler import TaskBackoffScheduler

log: Log = log_for("command")

ON_QUEUES = reading.COMMANDS | logs.COMMANDS | steering.COMMANDS | fleet.COMMANDS

LINGER = 1.0
"""Seconds that threads have to end after the command has ended."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and end the process with its exit code."""
    code = _run(_parser().parse_args(arguments))
    threading.Thread(target=_leave_threads_behind, args=(code,), daemon=True).start()
    sys.exit(code)


def _run(options: argparse.Namespace) -> int:
    try:
        own = {"demo": _demo, "worker": worker.run, "gpus": _gpus, "preview": _preview, "doctor": _doctor}
        own |= {"dashboard": _dashboard, "map": mapping.run, "queues": _queues}
        return own.get(options.command, _queue)(options)
    except StorageError as error:
        return _complain(options, error, STORAGE)
    except TaskNotFoundError as error:
        return _complain(options, error, FAILED)
    except (UsageError, InputError, MaasBackoffError) as error:
        return _complain(options, error, USAGE)
    except (KeyboardInterrupt, asyncio.CancelledError):
        return _complain(options, "stopped", STOPPED)
    except BrokenPipeError:  # as by `| head`; the last flush of the interpreter must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _complain(options: argparse.Namespace, error: object, code: int) -> int:
    print(f"maas-backoff {options.command}: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maas-backoff", description="Tasks with retries and backoff over Redis or Valkey."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser(
        "demo",
        help="send the lines of a text file through a slow, overloaded model server, without set-up",
        description="Start an embedded server and a small model server, run one task for each line of a text file, and "
        "check that every line has exactly one result. Then show the stream of one more task.",
    )
    demo.add_argument(
        "--input", type=Path, metavar="FILE", help="a UTF-8 text file, one prompt a line (default: a sample)"
    )
    demo.add_argument(
        "--tasks-at-once", type=one_to_a_hundred, default=8, metavar="N", help="1 to 100 (default: %(default)s)"
    )
    demo.add_argument(
        "--seed", type=int, default=1, metavar="N", help="decides which requests fail (default: %(default)s)"
    )
    demo.add_argument(
        "--tenants", action="store_true", help="show the shares of three tenants, and a limit that all workers share"
    )
    worker.arguments(commands.add_parser("worker", help=worker.HELP))
    mapping.arguments(commands.add_parser("map", help=mapping.HELP))
    gpus = commands.add_parser(
        "gpus",
        help="show this machine's GPUs, and what is reserved on them",
        description="Show this machine's GPUs as workers see them: memory that other processes use, that all queues "
        "have reserved, and that is free; and the running tasks. --url or the environment (MAAS_BACKOFF_URL, …) names "
        "the server; without a server, reservations are unknown.",
    )
    add_option(gpus, StorageConfig, "url")
    gpus.add_argument("--json", action="store_true", help="print JSON")
    preview.arguments(commands.add_parser("preview", help="show when a policy retries, as a table and a bar chart"))
    doctor = commands.add_parser("doctor", help="find faults of server, queue and GPUs (1: there is one)")
    _queue_of(doctor)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--repair", action="store_true", help="put back tasks that are in no index of the queue")
    doctor.add_argument(
        "--keys", type=int, default=1_000_000, metavar="N", help="search N keys for such tasks (default: %(default)s)"
    )
    queues = commands.add_parser("queues", help="list the queues of a server that have been used")
    add_option(queues, StorageConfig, "url")
    queues.add_argument("--json", action="store_true", help="print JSON")
    queues.add_argument("--keys", type=int, default=1_000_000, metavar="N", help="search N keys (default: %(default)s)")
    dashboard = commands.add_parser("dashboard", help="show and change a queue in a browser on this machine")
    dashboard.add_argument("--port", type=_port, default=8080, metavar="N", help="(default: %(default)s)")
    dashboard.add_argument("--act", action="store_true", help="show the buttons that cancel, retry and pause")
    dashboard.add_argument("--payloads", action="store_true", help="show params, results and errors of tasks")
    dashboard.add_argument("--errors", action="store_true", help="show error messages and tracebacks of tasks")
    dashboard.add_argument("--all", action="store_true", help="show all queues of the server")
    _queue_of(dashboard)
    for name, command in ON_QUEUES.items():
        one = commands.add_parser(name, help=command.help)
        command.arguments(one)
        _queue_of(one)
        if command.prints_json:
            one.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _queue_of(parser: argparse.ArgumentParser) -> None:
    add_option(parser, StorageConfig, "url")
    add_option(parser, TaskConfig, "biz_prefix", "--queue")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return int(text)


def _demo(options: argparse.Namespace) -> int:
    from maas_backoff.demo.run import run  # imports an HTTP server, which workers do not need

    if options.tenants:
        from maas_backoff.demo.tenants import run_tenants

        return run_tenants(options.seed)
    return run(options.input, tasks_at_once=options.tasks_at_once, seed=options.seed)


def _gpus(options: argparse.Namespace) -> int:
    from maas_backoff.commands.gpus import as_json, as_table, gpus

    given = StorageConfig(url=options.url) if options.url is not None else TaskBackoffConfig.from_env().storage
    storage = None if given == StorageConfig() else given
    try:
        found = anyio.run(gpus, storage)
    except LookupError as error:
        print("[]" if options.json else f"no GPU can be used here: {error.args[0]}")
        return FAILED
    print(as_json(found) if options.json else as_table(found, reservations=storage is not None))
    return OK


def _preview(options: argparse.Namespace) -> int:
    print(preview.preview(options, TaskBackoffConfig.from_env().task))
    return OK


def _queue(options: argparse.Namespace) -> int:
    async def run() -> int:
        scheduler = TaskBackoffScheduler(_config(options))
        try:
            return await ON_QUEUES[options.command].run(scheduler, options)
        finally:
            await scheduler.shutdown()

    return anyio.run(run)


def _doctor(options: argparse.Namespace) -> int:
    from maas_backoff.commands.doctor import as_json, examine
    from maas_backoff.store.queue_store import QueueStore

    logging.getLogger("maas_backoff").addHandler(logging.NullHandler())  # its warnings are in the result

    async def run() -> int:
        scheduler = TaskBackoffScheduler(_config(options))
        store = QueueStore.of(scheduler.config)
        try:
            lines = await examine(scheduler, store, repair=options.repair, keys=options.keys)
        finally:
            await store.aclose()
            await scheduler.shutdown()
        print(as_json(lines) if options.json else "\n".join(map(str, lines)))
        return FAILED if any(line.kind == "wrong" for line in lines) else OK

    return anyio.run(run)


def _queues(options: argparse.Namespace) -> int:
    from maas_backoff.commands.queues import run

    options.queue = None
    return anyio.run(run, _config(options), options)


def _dashboard(options: argparse.Namespace) -> int:
    from maas_backoff.commands.dashboard import serve

    if options.all:
        options.queue = "all"

    async def run() -> int:
        scheduler = TaskBackoffScheduler(_config(options))
        try:
            await serve(scheduler, options)
        finally:
            await scheduler.shutdown()
        return OK

    return anyio.run(run)


def _config(options: argparse.Namespace) -> TaskBackoffConfig:
    config = TaskBackoffConfig.from_env()
    if options.url is not None:
        config.storage = StorageConfig(url=options.url, timeout=config.storage.timeout)
    if options.queue is not None:
        config.task.biz_prefix = options.queue
    if config.storage.url is None and config.storage.type == "embedded" and config.storage.path is None:
        raise UsageError(
            "an embedded server without a path belongs to one process: set MAAS_BACKOFF_PATH to that of the queue"
        )
    return config


def _leave_threads_behind(code: int) -> None:
    """End the process if threads keep it alive, such as those of handlers that never return.

    Runs in a daemon thread, beside the usual end of the interpreter, which joins thread pools and calls atexit hooks.
    """
    time.sleep(LINGER)
    left = [
        thread.name for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()
    ]
    if left:
        log.warning("left behind, as they do not end: threads %s", ", ".join(left))
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
