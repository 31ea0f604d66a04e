"""`maas-backoff completion SHELL`: a script that completes the commands and their options.

The script has the words of all commands. They are read from the argument parsers when the script is printed.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence

import attrs

from maas_backoff.commands.catalogue import CATALOGUE, command
from maas_backoff.commands.command import OK, Arguments, Command, Options
from maas_backoff.commands.help import without_default
from maas_backoff.language import t

SHELLS = ("bash", "zsh", "fish")


@attrs.frozen
class Flag:
    """An option, or for an empty `name` the first argument, with its help, and the values that it may have."""

    name: str
    help: str
    takes_value: bool
    choices: Sequence[str] = ()


Words = Mapping[str, Sequence[Flag]]
"""The options of each command."""


def words() -> Words:
    """Return the options of all commands, as their parsers have them."""
    found: dict[str, Sequence[Flag]] = {}
    for name in CATALOGUE:
        parser = argparse.ArgumentParser(prog=name)
        command(name).add_to(parser)
        found[name] = list(_flags(parser))
    return found


def _flags(parser: argparse.ArgumentParser) -> Iterator[Flag]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of its actions
        text = without_default(action.help or "").replace("%%", "%")
        choices = list(map(str, action.choices or ()))
        if not action.option_strings and choices:
            yield Flag("", text, takes_value=True, choices=choices)
        for option in action.option_strings:
            yield Flag(option, text, takes_value=action.nargs != 0, choices=choices)


def bash(known: Words) -> str:
    """Return a script for bash."""
    cases = "\n".join(
        f"    {name}) words={_quoted(' '.join(flag.name for flag in flags if flag.name))} ;;"
        for name, flags in known.items()
    )
    values = "\n".join(
        f"    {_quoted(f'{name} {flag.name}')}) words={_quoted(' '.join(flag.choices))} ;;"
        for name, flags in known.items()
        for flag in flags
        if flag.name and flag.choices
    )
    takes = " ".join(
        sorted({flag.name for flags in known.values() for flag in flags if flag.name and flag.takes_value})
    )
    return f"""# Completion of maas-backoff for bash. Load it: source <(maas-backoff completion bash)
_maas_backoff() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
  local command="${{COMP_WORDS[1]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W {_quoted(" ".join([*known, "--help", "--version"]))} -- "$current"))
    return
  fi
  case "$command $previous" in
{values}
  esac
  if [ -z "$words" ]; then
    case {_quoted(f" {takes} ")} in *" $previous "*) return ;; esac
    case "$current" in
      -*) ;;
      *) case "$command" in
{_first_arguments(known)}
      esac ;;
    esac
  fi
  [ -n "$words" ] || case "$command" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _maas_backoff maas-backoff
"""


def _first_arguments(known: Words) -> str:
    return "\n".join(
        f"      {name}) words={_quoted(' '.join(flag.choices))} ;;"
        for name, flags in known.items()
        for flag in flags
        if not flag.name
    )


def zsh(known: Words) -> str:
    """Return a script for zsh."""
    names = "\n".join(f"    {_quoted(f'{name}:{_plain(t(CATALOGUE[name].help))}')}" for name in known)
    cases = "\n".join(
        f"    {name}) _arguments {' '.join([*map(_zsh_option, flags), _quoted('*:file:_files')])} ;;"
        for name, flags in known.items()
    )
    return f"""#compdef maas-backoff
# Completion of maas-backoff for zsh. Load it: source <(maas-backoff completion zsh)
_maas_backoff() {{
  local -a commands
  commands=(
{names}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command="$words[2]"
  shift words
  (( CURRENT-- ))
  case "$command" in
{cases}
  esac
}}
compdef _maas_backoff maas-backoff
"""


def _zsh_option(flag: Flag) -> str:
    choices = f"({' '.join(flag.choices)})" if flag.choices else ""
    if not flag.name:
        return _quoted(f"1:{_plain(flag.help) or 'value'}:{choices}")
    value = f":value:{choices}" if flag.takes_value else ""
    return _quoted(f"{flag.name}[{_plain(flag.help)}]{value}")


def fish(known: Words) -> str:
    """Return a script for fish."""
    lines = ["# Completion of maas-backoff for fish. Load it: maas-backoff completion fish | source"]
    for name, flags in known.items():
        about = _quoted(t(CATALOGUE[name].help))
        lines.append(f"complete -c maas-backoff -n __fish_use_subcommand -f -a {name} -d {about}")
        lines += [_fish_option(name, flag) for flag in flags]
    return "\n".join(lines) + "\n"


def _fish_option(name: str, flag: Flag) -> str:
    parts = [f"complete -c maas-backoff -n '__fish_seen_subcommand_from {name}'"]
    if flag.name:
        parts.append(f"-l {flag.name[2:]}" if flag.name.startswith("--") else f"-s {flag.name[1:]}")
        parts.append("-r" if flag.takes_value else "")
    if flag.choices:
        parts.append(f"-f -a {_quoted(' '.join(flag.choices))}")
    parts.append(f"-d {_quoted(flag.help)}")
    return " ".join(filter(None, parts))


def _plain(text: str) -> str:
    """Return text without the characters that mean something in the specifications of zsh."""
    return "".join(" " if char in "[]:'\\`$" else char for char in text)


def _quoted(text: str) -> str:
    """Return text in single quotes, which all three shells read alike without quotes and backslashes inside."""
    return "'" + "".join(char for char in text if char not in "'\\") + "'"


_SCRIPTS = {"bash": bash, "zsh": zsh, "fish": fish}


def _arguments(parser: Arguments) -> None:
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def _completion(options: Options) -> int:
    print(_SCRIPTS[options.shell](words()), end="")
    return OK


COMMANDS = {
    "completion": Command(
        "Print a script that completes the commands and their options. Load it in the start file of the shell, or save "
        "it where the shell looks for completions.",
        "source <(maas-backoff completion bash)",
        _completion,
        _arguments,
    )
}
"""The command by its name."""
