"""The cancel of a call of users' code: as by a cancel scope of anyio around the call, but without a scope.

For each attempt, to enter and leave a scope takes three times as long as the asyncio task around the scope.
"""

import asyncio
import sys
from pathlib import Path
from types import FrameType
from typing import Any

AGAIN = 0.005
"""Seconds after which a call that still runs is cancelled once more."""

PATIENCE = 5.0
"""Seconds after which a call that still runs is named in the log."""

_NOT_OF_USERS = (str(Path(asyncio.__file__).parents[1]), str(Path(__file__).parents[1]))
"""The folders of Python's own modules, and of this package."""


def cancel_call(call: "asyncio.Task[Any]") -> None:
    """Cancel a call again and again until it has ended, also a call that swallows its cancel.

    A part that anyio shields (`CancelScope(shield=True)`, `to_thread.run_sync`) may end first.
    """
    if call.done():
        return
    if not is_shielded(call):
        call.cancel()
    call.get_loop().call_later(AGAIN, cancel_call, call)


def is_shielded(call: "asyncio.Task[Any]") -> bool:
    """Return whether the asyncio task is inside a shielded scope of anyio.

    The public API of anyio answers for the current task only, so this reads a private record of anyio. If a later
    anyio keeps the record elsewhere, shields have no effect here; a test fails then.
    """
    states: Any = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", {})
    scope: Any = getattr(states.get(call), "cancel_scope", None)
    while scope is not None:
        if scope.shield:
            return True
        scope = getattr(scope, "_parent_scope", None)
    return False


def place_of(call: "asyncio.Task[Any]") -> str:
    """Return where a call waits, as "tasks.py:12 in render": in users' code if the coroutines show it, else "".

    `Task.get_stack` has only the outermost coroutine, which is one of this package.
    """
    place = ""
    waits: Any = call.get_coro()
    while waits is not None:
        frame: FrameType | None = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None)
        file = "" if frame is None else frame.f_code.co_filename
        if frame is not None and not file.startswith(_NOT_OF_USERS) and "site-packages" not in file:
            place = f"{Path(file).name}:{frame.f_lineno} in {frame.f_code.co_name}"
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    return place
