"""The options that select tasks, and the commands that act on all of them."""

import argparse
import shutil
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Self

from maas_backoff.commands.command import OK, Arguments, Options, failed, json_flag
from maas_backoff.commands.json_text import print_json
from maas_backoff.domain.selection import (
    CHANGED_IN,
    FIELDS,
    OnProgress,
    Selection,
    SelectionProgress,
    Statuses,
    either,
)
from maas_backoff.errors import InvalidValueError
from maas_backoff.language import sentence, t
from maas_backoff.language.width import cut

Act = Callable[[Selection, bool, OnProgress], Awaitable[int]]
"""Changes the tasks of a selection, or counts them in a dry run, and returns their number."""

_CLEAR = "\r\x1b[K"
_METAVARS = {
    "state": "STATE",
    "kind": "NAME",
    "tenant": "NAME",
    "label": "LABEL",
    "id_prefix": "TEXT",
    "error": "TEXT",
    "error_type": "NAME",
    "worker": "NAME",
    "gpu": "UUID",
    "text": "TEXT",
    "params": "TEXT",
}


def selection_options(parser: Arguments) -> None:
    """Add the options that select tasks, all of which must hold."""
    group = parser.add_argument_group("which tasks", "Tasks that match all of these options.")
    for name, about in FIELDS.items():
        flag, metavar = f"--{name.replace('_', '-')}", _METAVARS.get(name, "TIME")
        kind = partial(_checked, name)
        group.add_argument(flag, metavar=metavar, dest=f"select_{name}", action="append", type=kind, help=about)


def _checked(name: str, text: str) -> str:
    """Return the text of a condition. Raises ArgumentTypeError."""
    try:
        Selection.of_texts({name: [text]})
    except InvalidValueError as error:
        told = t("expected {expected}, got {got}", expected=sentence(error.expected), got=repr(text))
        raise argparse.ArgumentTypeError(told) from None
    return text


def selection_of(options: Options) -> Selection:
    """Return the selection in the options of a command. Raises InvalidValueError."""
    return Selection.of_texts({name: getattr(options, f"select_{name}") or () for name in FIELDS})


def act_options(parser: Arguments) -> None:
    """Add the ID of a command that changes one task, or all tasks of a selection, and the options of the latter."""
    parser.add_argument("task_id", metavar="ID", nargs="?", help="one task; without it, all tasks that match")
    selection_options(parser)
    parser.add_argument("--all", action="store_true", help="all tasks, without another condition")
    parser.add_argument("--dry-run", action="store_true", help="only print how many tasks match, and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask before tasks that match are changed")
    json_flag(parser)


def is_selecting(options: Options) -> bool:
    """Return whether a command names a selection, and no id. Raises InvalidValueError for both, or neither."""
    conditions = any(getattr(options, f"select_{name}") for name in FIELDS)
    if (conditions or options.all) == (options.task_id is not None):
        expected = "an ID, or options that select tasks, such as --state and --kind, or --all"
        raise InvalidValueError(options.command, expected, "none of them" if options.task_id is None else "both")
    if options.all and conditions:
        raise InvalidValueError("all", "--all alone, or other options that select tasks", "both")
    return options.task_id is None


def states_changed(options: Options) -> Statuses:
    """Return the states in which a command changes a task."""
    running = getattr(options, "running", False)
    return CHANGED_IN[f"{options.command} running" if running else options.command]


def _check_states(options: Options, selection: Selection) -> None:
    """Raise InvalidValueError for a selection of tasks that a command never changes."""
    states = states_changed(options)
    if any(one not in states for one in selection.status):
        given = ", ".join(selection.status)
        if options.command == "cancel" and not options.running:
            raise InvalidValueError("--state", "pending, or processing with --running", given)
        raise InvalidValueError("--state", either(states), given)


async def act_on_selection(options: Options, verb: str, done: str, act: Act) -> int:
    """Count the tasks of a selection, ask, and change them. `done` says how they are then. Both are English."""
    selection = selection_of(options)
    _check_states(options, selection)
    with _Line(verb) as line:
        number = await act(selection, True, line.show)
    if options.dry_run or not number:
        return print_matches(options, number)
    if not options.yes:
        if not sys.stdin.isatty():
            tasks = "1 task" if number == 1 else f"{number:,} tasks"
            raise InvalidValueError(options.command, f"--yes, as {tasks} would be changed", "none")
        if not _agrees(t("{verb} {tasks}?", verb=t(verb), tasks=tasks_in_words(number))):
            return failed(options, t("nothing is changed"))
    with _Line(verb, number) as line:
        changed = await act(selection, False, line.show)
    return _print(options, number, changed, are_done(changed, done))


def print_matches(options: Options, number: int) -> int:
    """Print how many tasks match while nothing is changed; return the exit code."""
    return _print(options, number, 0, _matches(number))


def _print(options: argparse.Namespace, matched: int, changed: int, words: str) -> int:
    if options.json:
        print_json({"matched": matched, "changed": changed, "dry_run": options.dry_run})
    else:
        print(words)
    return OK


def tasks_in_words(number: int) -> str:
    """Return a number of tasks in words."""
    return t("1 task") if number == 1 else t("{n} tasks", n=f"{number:,}")


def are_done(number: int, done: str) -> str:
    """Return in words that a number of tasks is `done`, which is English."""
    tasks = tasks_in_words(number)
    return (
        t("{tasks} is {done}", tasks=tasks, done=t(done))
        if number == 1
        else t("{tasks} are {done}", tasks=tasks, done=t(done))
    )


def _matches(number: int) -> str:
    return t("1 task matches") if number == 1 else t("{n} tasks match", n=f"{number:,}")


def _agrees(question: str) -> bool:
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


class _Line:
    """A line on a terminal that shows the progress of a call. The line is removed at the end."""

    def __init__(self, verb: str, number: int = 0) -> None:
        self._verb = verb
        self._number = number
        self._is_live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_live:
            print(_CLEAR, end="", file=sys.stderr, flush=True)

    def show(self, progress: SelectionProgress) -> None:
        if not self._is_live:
            return
        counts = t("{n} match", n=f"{progress.matched:,}")
        if self._number:
            counts = t("{number} of {most}", number=f"{progress.changed:,}", most=f"{self._number:,}")
        text = t("{verb}: {counts}, {n} tasks are read", verb=t(self._verb), counts=counts, n=f"{progress.read:,}")
        print(_CLEAR + cut(text, shutil.get_terminal_size().columns - 1), end="", file=sys.stderr, flush=True)
