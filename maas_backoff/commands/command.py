"""The parts of a command on a queue."""

import argparse
import sys
from collections.abc import Awaitable, Callable

import attrs

from maas_backoff.config.options import kind_of
from maas_backoff.scheduler import TaskBackoffScheduler

OK, FAILED = 0, 1

Arguments = argparse.ArgumentParser
Options = argparse.Namespace
Run = Callable[[TaskBackoffScheduler, Options], Awaitable[int]]


def no_arguments(_: Arguments) -> None:
    """For a command that has none of its own."""


def task_id(parser: Arguments) -> None:
    """For a command on one task."""
    parser.add_argument("task_id", metavar="ID")


def add_option(parser: Arguments, section: type[attrs.AttrsInstance], name: str, flag: str = "") -> None:
    """Add the flag of an option of the configuration: its type and its help are those of the declaration."""
    option = attrs.fields_dict(section)[name]
    otherwise = "" if option.default in {"", None} else f", or {option.default}"
    told = f"{option.metadata['help']} (default: MAAS_BACKOFF_{name.upper()}{otherwise})"
    flag = flag or f"--{name.replace('_', '-')}"
    kind = kind_of(option)
    parser.add_argument(flag, type=kind, metavar=_METAVARS.get(kind), help=told.replace("%", "%%"))


_METAVARS: dict[type[bool | float | str], str] = {float: "X", int: "N"}


@attrs.frozen
class Command:
    """A command on a queue: what it does, what it runs, and its own arguments; the result is the exit code.

    All take `--url` and `--queue` besides.
    """

    help: str
    run: Run
    arguments: Callable[[Arguments], object] = no_arguments
    prints_json: bool = False
    """Whether it takes `--json`, too, to print what it has read."""


def not_so(options: Options, why: str) -> int:
    """Say why a command has done nothing; its exit code."""
    print(f"maas-backoff {options.command}: {why}", file=sys.stderr)
    return FAILED
