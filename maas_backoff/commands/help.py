"""Help in the language of the command. It is translated when all arguments have been added to a parser."""

import argparse
from collections.abc import Iterable

from maas_backoff.commands.language import LANGUAGES, t


class Formatter(argparse.HelpFormatter):
    """argparse's formatter, with "usage: " in the language of the command."""

    def add_usage(
        self,
        usage: str | None,
        actions: Iterable[argparse.Action],
        groups: Iterable[argparse._MutuallyExclusiveGroup],  # pyright: ignore[reportPrivateUsage] - argparse's own type
        prefix: str | None = None,
    ) -> None:
        """Add the usage."""
        super().add_usage(usage, actions, groups, t("usage: ") if prefix is None else prefix)


def add_language(parser: argparse.ArgumentParser) -> None:
    """Add the option --lang. `main` looks for it before the parsers are made."""
    help_text = "language of texts; those of errors and of --json are English (default: by LC_ALL, LC_MESSAGES, LANG)"
    parser.add_argument("--lang", choices=LANGUAGES, help=help_text)


def translate(parser: argparse.ArgumentParser) -> None:
    """Translate the help of a parser, with its description."""
    parser.description = parser.description and t(parser.description)
    for group in parser._action_groups:  # noqa: SLF001 - argparse has no public list of its groups and actions
        group.title = group.title and t(group.title)
        group.description = group.description and t(group.description)
    for action in parser._actions:  # noqa: SLF001 - as above
        if action.help:
            action.help = _translated(action.help)


def _translated(text: str) -> str:
    """Return the help of an option; the default at its end may be a value."""
    about, between, default = text.partition("(default: ")
    if not between:
        return t(text)
    end = t(" (default: {value})", value=t(default.removesuffix(")")))
    return t(about.rstrip()) + end if about else end.lstrip()
