"""The cancel of a call of users' code: as by a cancel scope of anyio around the call, but without a scope.

For each attempt, to enter and leave a scope takes three times as long as the asyncio task around the scope.
"""

import asyncio
import sys
from typing import Any

AGAIN = 0.005
"""Seconds after which a call that still runs is cancelled once more."""


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
