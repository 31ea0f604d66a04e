"""Write the blocking calls of `maas_backoff/sync` from the calls that are awaited: `python .ci/sync_calls.py`.

The signatures and docstrings are those of `maas_backoff/client`. A test compares the files with the output.
`call`, `logs`, `stream` and `watch` are blocks and iterators: `maas_backoff/sync/scheduler.py` has them by hand.
"""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "maas_backoff"
BY_HAND = {"call", "logs", "stream", "watch"}

SHARES_HEAD = '''"""The blocking calls on tenants and limits. Written by `.ci/sync_calls.py`: change no line here."""

from maas_backoff.domain.limit import Rate
from maas_backoff.domain.shares import LimitList, TenantStats
from maas_backoff.sync.part import SyncPart


class SyncShareCalls(SyncPart):
    """The part of SyncScheduler that says whose tasks are taken next, and how many may start."""
'''

SELECTIONS_HEAD = '''"""The blocking calls on many tasks. Written by `.ci/sync_calls.py`: change no line here."""

from typing import Unpack

from maas_backoff.domain.selection import OnProgress, Selection
from maas_backoff.domain.spec import Reschedule
from maas_backoff.sync.part import SyncPart


class SyncSelectionCalls(SyncPart):
    """The part of SyncScheduler that counts and changes many tasks at once: see SelectionCalls.

    `on_progress` is called in the thread of the event loop.
    """
'''

FLEET_HEAD = '''"""The blocking calls on workers and GPUs. Written by `.ci/sync_calls.py`: change no line here."""

from maas_backoff.domain.gpu import GpuStatus
from maas_backoff.domain.worker import Worker
from maas_backoff.sync.part import SyncPart


class SyncFleetCalls(SyncPart):
    """The part of SyncScheduler that looks at workers and GPUs, and takes them out of use."""
'''

CALLS_HEAD = '''"""The blocking calls on one queue. Written by `.ci/sync_calls.py`: change no line here."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Unpack

from maas_backoff.domain.breakdown import Breakdown
from maas_backoff.domain.history import History
from maas_backoff.domain.page import TaskPage
from maas_backoff.domain.retries_ahead import RetryAhead
from maas_backoff.domain.selection import Selection
from maas_backoff.domain.spec import Ensured, Reschedule, TaskOptions, TaskSpec
from maas_backoff.domain.stats import QueueStats
from maas_backoff.domain.task import TaskEntity
from maas_backoff.sync.fleet import SyncFleetCalls
from maas_backoff.sync.items import items_of
from maas_backoff.sync.selections import SyncSelectionCalls
from maas_backoff.sync.shares import SyncShareCalls


class SyncCalls(SyncShareCalls, SyncSelectionCalls, SyncFleetCalls):
    """The calls of TaskBackoffScheduler that need no worker. Each blocks until it has its result."""
'''

FILES = {
    "sync/shares.py": (SHARES_HEAD, "client/shares.py", "ShareCalls"),
    "sync/selections.py": (SELECTIONS_HEAD, "client/selection_calls.py", "SelectionCalls"),
    "sync/fleet.py": (FLEET_HEAD, "client/fleet_calls.py", "FleetCalls"),
    "sync/calls.py": (CALLS_HEAD, "client/calls.py", "QueueCalls"),
}
"""Each file with its head, and the file and the class that it is written from."""


def written() -> dict[Path, str]:
    """Return the text of each file."""
    return {PACKAGE / path: head + _methods(PACKAGE / source, name) for path, (head, source, name) in FILES.items()}


def _methods(source: Path, name: str) -> str:
    text = source.read_text(encoding="utf-8")
    owner = next(node for node in ast.parse(text).body if isinstance(node, ast.ClassDef) and node.name == name)
    calls = [node for node in owner.body if isinstance(node, ast.AsyncFunctionDef) and node.name not in BY_HAND]
    return "".join(f"\n{_blocking(call, text.splitlines())}" for call in calls)


def _blocking(call: ast.AsyncFunctionDef, lines: list[str]) -> str:
    """Return a call with its signature and its docstring, and a body that blocks."""
    told = call.body[0]
    assert ast.get_docstring(call), f"{call.name} has no docstring"
    head = "\n".join(lines[call.lineno - 1 : told.end_lineno]).replace("async def", "def", 1)
    if len(call.args.args) + len(call.args.kwonlyargs) == 1 and call.args.kwarg is None:
        body = f"self._run(self._calls.{call.name})"
    else:
        body = _wrapped(call.name, _given(call.args))
    head = re.sub(r"\bawait ", "", head)
    signature = re.sub(r"\(\n +(.*)\n +\)", r"(\1)", head.partition('"""')[0])
    if len(signature.strip("\n ")) <= 116 and "\n" not in signature.strip("\n "):  # shorter by the word "async"
        head = signature + '"""' + head.partition('"""')[2]
    return f"{head}\n        return {body}\n"


def _given(args: ast.arguments) -> list[str]:
    given = [_taken(one) for one in args.args[1:]] + [f"{one.arg}={one.arg}" for one in args.kwonlyargs]
    return given + ([f"**{args.kwarg.arg}"] if args.kwarg else [])


def _taken(arg: ast.arg) -> str:
    """Return the argument; an iterable is read in the caller's thread, to which a database cursor may be bound."""
    return f"items_of({arg.arg})" if ast.unparse(arg.annotation or arg).startswith("Iterable[") else arg.arg


def _wrapped(name: str, given: list[str]) -> str:
    """Return the expression, in lines of at most 120 characters, as the formatter writes them."""
    short = f"self._run(lambda: self._calls.{name}({', '.join(given)}))"
    if len(f"        return {short}") <= 120:
        return short
    inner = f"            lambda: self._calls.{name}({', '.join(given)})"
    if len(inner) <= 120:
        return f"self._run(\n{inner}\n        )"
    rows = "".join(f"                {one},\n" for one in given)
    return f"self._run(\n            lambda: self._calls.{name}(\n{rows}            )\n        )"


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text, encoding="utf-8")
