"""The parts of a command that reads or changes a queue."""

import argparse
import sys
from collections.abc import Awaitable, Callable

import attrs

from maas_backoff.config.options import kind_of
from maas_backoff.scheduler import TaskBackoffScheduler

OK, FAILED, USAGE, STORAGE, STOPPED = 0, 1, 2, 3, 130
"""Exit codes."""

Arguments = argparse.ArgumentParser
Options = argparse.Namespace
Run = Callable[[TaskBackoffScheduler, Options], Awaitable[int]]


def no_arguments(_: Arguments) -> None:
    """Add no arguments."""


def task_id(parser: Arguments) -> None:
    """Add the argument ID, the id of a task."""
    parser.add_argument("task_id", metavar="ID")


def one_to_a_hundred(text: str) -> int:
    """Return a whole number from 1 to 100. Raises ArgumentTypeError."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to 100, got {text!r}")
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


@attrs.frozen
class Command:
    """A command that reads or changes a queue. `run` returns the exit code.

    Each command also takes `--url` and `--queue`.
    """

    help: str
    run: Run
    arguments: Callable[[Arguments], object] = no_arguments
    prints_json: bool = False
    """Whether the command also takes `--json`."""


def failed(options: Options, why: str) -> int:
    """Print why a command failed; return the exit code FAILED."""
    print(f"maas-backoff {options.command}: {why}", file=sys.stderr)
    return FAILED
