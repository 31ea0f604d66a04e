"""The commands that are about a machine, a server, or a whole queue: demo, gpus, doctor, queues, dashboard."""

import argparse
import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from maas_backoff.commands.command import (
    FAILED,
    OK,
    Arguments,
    Command,
    Options,
    add_option,
    at_least_one,
    config_of,
    json_flag,
    one_to_a_hundred,
    queue_options,
    run_on_queue,
    run_on_store,
    run_to_the_end,
)
from maas_backoff.commands.imports import quick_imports
from maas_backoff.commands.json_text import print_json
from maas_backoff.commands.usage import UsageError
from maas_backoff.config import StorageConfig, TaskBackoffConfig
from maas_backoff.language import sentence, t

if TYPE_CHECKING:  # see command.py
    from maas_backoff.store.queue_store import QueueStore


def _for_demo(parser: Arguments) -> None:
    parser.add_argument(
        "--input", type=Path, metavar="FILE", help="a UTF-8 text file, one prompt a line (default: a sample)"
    )
    parser.add_argument(
        "--tasks-at-once", type=one_to_a_hundred, default=8, metavar="N", help="1 to 100 (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="decides which requests fail (default: %(default)s)"
    )
    parser.add_argument(
        "--tenants", action="store_true", help="show the shares of three tenants, and a limit that all workers share"
    )


def _demo(options: Options) -> int:
    from maas_backoff.demo.lines import InputError
    from maas_backoff.demo.run import run  # imports an HTTP server, which workers do not need

    if options.tenants:
        from maas_backoff.demo.tenants import run_tenants

        return run_tenants(options.seed)
    try:
        return run(options.input, tasks_at_once=options.tasks_at_once, seed=options.seed)
    except InputError as error:
        raise UsageError(str(error)) from error


def _for_gpus(parser: Arguments) -> None:
    add_option(parser, StorageConfig, "url")
    json_flag(parser)


def _gpus(options: Options) -> int:
    with quick_imports():
        from maas_backoff.commands.gpus import as_table, gpus

    given = StorageConfig(url=options.url) if options.url is not None else TaskBackoffConfig.from_env().storage
    storage = None if given == StorageConfig() else given
    try:
        found = asyncio.run(gpus(storage))
    except LookupError as error:
        print("[]" if options.json else t("no GPU can be used here: {why}", why=sentence(error.args[0])))
        return FAILED
    if options.json:
        print_json([device.to_dict() for device in found])
    else:
        print(as_table(found, reservations=storage is not None))
    return OK


def _keys(parser: Arguments, text: str) -> None:
    parser.add_argument(
        "--keys", type=at_least_one, default=1_000_000, metavar="N", help=f"{text} (default: %(default)s)"
    )


def _for_doctor(parser: Arguments) -> None:
    queue_options(parser)
    json_flag(parser)
    parser.add_argument("--repair", action="store_true", help="put back tasks that are in no index of the queue")
    _keys(parser, "search N keys for such tasks")


def _doctor(options: Options) -> int:
    with quick_imports():
        from maas_backoff.commands.doctor import examine, views

    logging.getLogger("maas_backoff").addHandler(logging.NullHandler())  # its warnings are in the result

    async def run(store: "QueueStore", options: Options) -> int:
        lines = await examine(store, repair=options.repair, keys=options.keys)
        if options.json:
            print_json(views(lines))
        else:
            print("\n".join(map(str, lines)))
        return FAILED if any(line.kind == "wrong" for line in lines) else OK

    return run_on_store(run, options)


def _for_queues(parser: Arguments) -> None:
    add_option(parser, StorageConfig, "url")
    json_flag(parser)
    _keys(parser, "search N keys")


def _queues(options: Options) -> int:
    with quick_imports():
        from maas_backoff.commands.queues import run

    options.queue = None
    return run_to_the_end(run(config_of(options), options))


def _for_dashboard(parser: Arguments) -> None:
    parser.add_argument("--port", type=_port, default=8080, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--act", action="store_true", help="show the buttons that cancel, retry and pause")
    parser.add_argument("--payloads", action="store_true", help="show params, results and errors of tasks")
    parser.add_argument("--errors", action="store_true", help="show error messages and tracebacks of tasks")
    parser.add_argument("--all", action="store_true", help="show all queues of the server")
    queue_options(parser)


def _for_metrics(parser: Arguments) -> None:
    parser.add_argument("--port", type=_port, default=9200, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: all of them (default: %(default)s)"
    )
    parser.add_argument(
        "--show", choices=["alerts", "grafana"], help="print the alert rules, or the Grafana dashboard, and end"
    )
    queue_options(parser)


def _metrics(options: Options) -> int:
    if options.show is not None:
        from maas_backoff.prometheus.files import FILES, text_of

        print(text_of(FILES[options.show]), end="")
        return OK
    from maas_backoff.commands.exporter import serve

    return run_on_queue(serve, options)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(t("expected a port from 1 to 65535, got {got}", got=repr(text)))
    return int(text)


def _dashboard(options: Options) -> int:
    from maas_backoff.commands.dashboard import serve

    if options.all:
        options.queue = "all"
    return run_on_queue(serve, options)


COMMANDS = {
    "demo": Command(
        "Start an embedded server and a small model server, run one task for each line of a text file, and check that "
        "every line has exactly one result. Then show the stream of one more task.",
        "maas-backoff demo --input prompts.txt --tasks-at-once 4",
        _demo,
        _for_demo,
    ),
    "gpus": Command(
        "Show this machine's GPUs as workers see them: memory that other processes use, that all queues have reserved, "
        "and that is free; and the running tasks. --url or the environment (MAAS_BACKOFF_URL, …) names the server; "
        "without a server, reservations are unknown. Exit code 1: no GPU can be used here.",
        "maas-backoff gpus --url redis://localhost:6379/0",
        _gpus,
        _for_gpus,
    ),
    "doctor": Command(
        "Check the server, the clocks, the workers, the queue and this machine's GPUs. Each line is ok, a warning, or "
        "wrong, and says what to do. Exit code 1: a line is wrong.",
        "maas-backoff doctor --queue image-gen",
        _doctor,
        _for_doctor,
    ),
    "queues": Command(
        "List the queues of a server that have been used, with their numbers of tasks. The user of the server needs "
        "the right +scan. In a Cluster, the queues of one node are listed.",
        "maas-backoff queues --url redis://localhost:6379/0",
        _queues,
        _for_queues,
    ),
    "dashboard": Command(
        "Serve the page of a queue on 127.0.0.1 until Ctrl-C. Without --act, the page is read-only.",
        "maas-backoff dashboard --queue image-gen --port 8080 --act",
        _dashboard,
        _for_dashboard,
    ),
    "metrics": Command(
        "Serve the numbers of a queue until SIGTERM, SIGHUP or Ctrl-C: GET /metrics for Prometheus, and GET "
        "/scale?within=60, the workers that would finish the waiting tasks within 60 s, as JSON. No password is asked "
        "for. With --show, print a file for Prometheus or Grafana instead.",
        "maas-backoff metrics --queue image-gen --port 9200",
        _metrics,
        _for_metrics,
    ),
}
"""The commands by name."""
