"""The kind of a task: the name of the function that runs it."""

import re
from collections.abc import Mapping
from functools import cached_property

import attrs

from maas_backoff.domain.batching import Batching
from maas_backoff.errors import InvalidValueError

NAMELESS = ""
"""The kind of the tasks that the handler of `set_custom_task_handler` runs."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


def checked_kind(name: object) -> str:
    """Return `name` if it can name a kind. Keys and scripts have the name in them, without quotes."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        expected = "a letter or _, and up to 63 more letters, digits, _, . or -, all ASCII"
        raise InvalidValueError("kind", expected, name)
    return name


@attrs.frozen(slots=False)
class Kinds:
    """The kinds of tasks that a worker runs."""

    names: tuple[str, ...] = (NAMELESS,)
    exec_timeouts: Mapping[str, float] = attrs.field(factory=dict[str, float])
    """The timeout in seconds of the attempts of a kind, where it differs from that of the worker."""
    batches: Mapping[str, Batching] = attrs.field(factory=dict[str, Batching])
    """The kinds whose tasks run in batches."""

    @cached_property
    def text(self) -> str:
        """The kinds as an argument of a script: names, separated by spaces; "-" is the nameless kind."""
        return " ".join(name or "-" for name in self.names)

    @cached_property
    def alone(self) -> str:
        """The same text, of the kinds whose tasks run one by one."""
        return " ".join(name or "-" for name in self.names if name not in self.batches)

    @cached_property
    def ranked(self) -> str:
        """The end of the kinds of a claim that asks how urgent the kinds in batches are; "" if there is no choice."""
        return f" ~ {' '.join(self.batches)}" if self.batches and len(self.names) > 1 else ""


ONLY_NAMELESS = Kinds()
