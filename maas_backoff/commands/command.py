"""The parts of a command."""

import argparse
import sys
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import attrs

from maas_backoff.commands.help import add_language, translate
from maas_backoff.commands.imports import quick_imports, without_last_collection
from maas_backoff.commands.usage import UsageError
from maas_backoff.config import StorageConfig, TaskBackoffConfig, TaskConfig
from maas_backoff.config.options import kind_of
from maas_backoff.language import t

if TYPE_CHECKING:  # imported late: --help needs neither, and a command needs the scheduler or the store
    from maas_backoff.scheduler import TaskBackoffScheduler
    from maas_backoff.store.queue_store import QueueStore

OK, FAILED, USAGE, STORAGE, STOPPED = 0, 1, 2, 3, 130
"""Exit codes."""

Arguments = argparse.ArgumentParser
Options = argparse.Namespace
Run = Callable[[Options], int]
RunOnQueue = Callable[["TaskBackoffScheduler", Options], Awaitable[int]]
RunOnStore = Callable[["QueueStore", Options], Awaitable[int]]


def no_arguments(_: Arguments) -> None:
    """Add no arguments."""


def task_id(parser: Arguments) -> None:
    """Add the argument ID, the id of a task."""
    parser.add_argument("task_id", metavar="ID", help="the id of the task")


def json_flag(parser: Arguments) -> None:
    """Add the option --json."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def queue_options(parser: Arguments) -> None:
    """Add the options that name the server and the queue."""
    add_option(parser, StorageConfig, "url")
    add_option(parser, TaskConfig, "biz_prefix", "--queue")


def one_to_a_hundred(text: str) -> int:
    """Return a whole number from 1 to 100. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 100:
        told = t("expected a whole number from 1 to {most}, got {got}", most=100, got=repr(text))
        raise argparse.ArgumentTypeError(told)
    return int(text)


def at_least_one(text: str) -> int:
    """Return a whole number from 1 on. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(t("expected a whole number from 1 on, got {got}", got=repr(text)))
    return int(text)


def add_option(parser: Arguments, section: type[attrs.AttrsInstance], name: str, flag: str = "") -> None:
    """Add a flag for an option of the configuration, with the type and the help of its declaration."""
    option = attrs.fields_dict(section)[name]
    otherwise = "" if option.default in {"", None} else f", or {option.default}"
    text = f"{option.metadata['help']} (default: MAAS_BACKOFF_{name.upper()}{otherwise})"
    flag = flag or f"--{name.replace('_', '-')}"
    kind = kind_of(option)
    parser.add_argument(flag, type=kind, metavar=_METAVARS.get(kind), help=text.replace("%", "%%"))


_METAVARS: dict[type[bool | float | str], str] = {float: "X", int: "N"}


class Command(NamedTuple):
    """A command: a description, an example, its arguments, and a function that runs it and returns the exit code."""

    about: str
    example: str
    run: Run
    arguments: Callable[[Arguments], object] = no_arguments

    def add_to(self, parser: Arguments) -> None:
        """Add the description, the example and the arguments to a parser."""
        parser.description = self.about
        parser.epilog = t("Example: {command}", command=self.example).replace("%", "%%")
        self.arguments(parser)
        add_language(parser)
        translate(parser)


def on_queue(
    about: str,
    example: str,
    run: RunOnQueue,
    arguments: Callable[[Arguments], object] = no_arguments,
    *,
    prints_json: bool = True,
) -> Command:
    """Return a command that reads or changes one queue. It also takes `--url` and `--queue`."""
    return _command(about, example, partial(run_on_queue, run), arguments, prints_json=prints_json)


def on_store(
    about: str, example: str, run: RunOnStore, arguments: Callable[[Arguments], object] = no_arguments
) -> Command:
    """Return a command that needs only the store of a queue, with the options of `on_queue`.

    Its function takes the store: the import of the scheduler would be a tenth of the command's time.
    """
    return _command(about, example, partial(run_on_store, run), arguments, prints_json=True)


def _command(
    about: str, example: str, run: Run, arguments: Callable[[Arguments], object], *, prints_json: bool
) -> Command:
    def add(parser: Arguments) -> None:
        arguments(parser)
        queue_options(parser)
        if prints_json:
            json_flag(parser)

    return Command(about, example, run, add)


def run_to_the_end(command: Coroutine[object, object, int]) -> int:
    """Run the asynchronous part of a command that is over soon, and return its exit code."""
    import asyncio  # not needed for help

    without_last_collection()
    return asyncio.run(command)


def run_on_queue(run: RunOnQueue, options: Options) -> int:
    """Run a function with the scheduler of a queue, and return its exit code."""
    return run_to_the_end(_run_on_queue(run, options))


async def _run_on_queue(run: RunOnQueue, options: Options) -> int:
    with quick_imports():  # the first scheduler imports redis-py and the client
        from maas_backoff.scheduler import TaskBackoffScheduler

        scheduler = TaskBackoffScheduler(config_of(options))
    try:
        return await run(scheduler, options)
    finally:
        await scheduler.disconnect()  # no such command starts the scheduler: nothing is to be drained


def run_on_store(run: RunOnStore, options: Options) -> int:
    """Run a function with the store of a queue, and return its exit code."""
    return run_to_the_end(_run_on_store(run, options))


async def _run_on_store(run: RunOnStore, options: Options) -> int:
    config = config_of(options)
    with quick_imports():
        from maas_backoff.store.queue_store import QueueStore

        store = QueueStore.of(config)
    try:
        return await run(store, options)
    finally:
        await store.aclose()


def config_of(options: Options) -> TaskBackoffConfig:
    """Return the configuration of the environment and of the options. Raises UsageError, ConfigError."""
    config = TaskBackoffConfig.from_env()
    if options.url is not None:
        config.storage = StorageConfig(url=options.url, timeout=config.storage.timeout)
    if options.queue is not None:
        config.task.biz_prefix = options.queue
    if config.storage.url is None and config.storage.type == "embedded" and config.storage.path is None:
        told = "an embedded server without a path belongs to one process: set MAAS_BACKOFF_PATH to that of the queue"
        raise UsageError(t(told))
    return config


def failed(options: Options, why: str) -> int:
    """Print why a command failed; return the exit code FAILED."""
    print(f"maas-backoff {options.command}: {why}", file=sys.stderr)
    return FAILED
