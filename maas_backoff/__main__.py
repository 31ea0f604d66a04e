"""The command line: `maas-backoff worker module:scheduler`, and the commands that read or change a queue.

Exit codes: 0 success; 1 a task or the worker failed, a check is negative, or the task does not exist; 2 wrong usage or
a failed import; 3 the server cannot be reached; 130 stopped.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from maas_backoff.commands.catalogue import CATALOGUE, command
from maas_backoff.commands.help import Formatter, Parser, add_language, translate
from maas_backoff.commands.imports import without_collections
from maas_backoff.commands.left_behind import end_without, running_threads
from maas_backoff.commands.standard_streams import (
    discard_output,
    escape_output,
    flush_output,
    is_full,
    open_closed_streams,
)
from maas_backoff.commands.usage import UsageError
from maas_backoff.common.version import __version__
from maas_backoff.errors import MaasBackoffError, StorageError, TaskNotFoundError
from maas_backoff.language import language_of, sentence, speak, t

FAILED, USAGE, STORAGE, STOPPED = 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command, and end the process with its exit code."""
    open_closed_streams()
    escape_output()
    given = sys.argv[1:] if arguments is None else arguments
    speak(language_of(given, os.environ))
    with without_collections():
        options = _parsed(given)
    if getattr(options, "json", False):  # JSON is for programs
        speak("en")
    code = _run(options)
    end_without(running_threads, "threads", code)
    sys.exit(code)


def _parsed(given: Sequence[str]) -> argparse.Namespace:
    try:
        return parser([word for word in given if word in CATALOGUE][:1]).parse_args(given)
    except SystemExit:  # as by --help
        with suppress(OSError):
            flush_output()
        raise


def parser(names: Sequence[str] = tuple(CATALOGUE)) -> argparse.ArgumentParser:
    """Return the parser of the commands in `names`; others are not imported. Without a known name: of all."""
    made = Parser(
        prog="maas-backoff",
        description="Tasks with retries and backoff over Redis or Valkey.",
        epilog=t("maas-backoff COMMAND --help describes a command, with an example."),
        formatter_class=Formatter,
    )
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    add_language(made)
    translate(made)
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    known = [name for name in CATALOGUE if name in names]
    for name in known or CATALOGUE:  # 36 parsers take 15 ms
        one = commands.add_parser(name, help=t(CATALOGUE[name].help), formatter_class=Formatter)
        if known:
            command(name).add_to(one)
    return made


def _run(options: argparse.Namespace) -> int:
    try:
        code = command(options.command).run(options)
        flush_output()
    except MaasBackoffError as error:
        return _complain(options, sentence(str(error)), _code_of(error))
    except UsageError as error:  # it is in the language of the command
        return _complain(options, str(error), USAGE)
    except BrokenPipeError:  # as by `| head`
        discard_output()
        return FAILED
    except BaseException as error:
        if _is_stop(error):
            return _complain(options, t("stopped"), STOPPED)
        if not isinstance(error, OSError) or not is_full(error):
            raise
        discard_output()
        return _complain(options, t("cannot write the output: {error}", error=error.strerror), FAILED)
    return code


def _code_of(error: MaasBackoffError) -> int:
    if isinstance(error, StorageError):
        return STORAGE
    return FAILED if isinstance(error, TaskNotFoundError) else USAGE


def _is_stop(error: BaseException) -> bool:
    if isinstance(error, KeyboardInterrupt):
        return True
    from asyncio import CancelledError  # a command that asyncio cancels has imported it

    return isinstance(error, CancelledError)


def _complain(options: argparse.Namespace, why: str, code: int) -> int:
    print(f"maas-backoff {options.command}: {why}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
