"""Help in the language of the command. It is translated when all arguments have been added to a parser."""

import argparse
import sys
from collections.abc import Iterable
from typing import NoReturn

from maas_backoff.language import LANGUAGES, sentence, t


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


class Parser(argparse.ArgumentParser):
    """argparse's parser, with its errors in the language of the command."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and what is wrong, and end with exit code 2."""
        self.print_usage(sys.stderr)
        self.exit(2, t("{program}: error: {message}", program=self.prog, message=sentence(message)) + "\n")


def add_language(parser: argparse.ArgumentParser) -> None:
    """Add the option --lang. `main` looks for it before the parsers are made."""
    help_text = (
        "language of texts; errors about values, logs and --json are English (default: by LC_ALL, LC_MESSAGES, LANG)"
    )
    parser.add_argument("--lang", type=_language, choices=LANGUAGES, help=help_text)


def _language(text: str) -> str:
    """Return "zh" for a name of Chinese such as zh-CN, and any other text as it is."""
    return "zh" if text.lower().startswith("zh") else text


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


def without_default(text: str) -> str:
    """Return the help of an option, in the language of the command, without the default at its end."""
    before_value, _, _ = t(" (default: {value})").partition("{value}")
    return text.partition(before_value.strip())[0].strip()
