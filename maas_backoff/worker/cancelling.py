"""How a call of users' code is cancelled: as by a cancel scope of anyio around it, which is made only when needed.

To enter and leave a scope takes three times as long as the asyncio task that it would be in, for each attempt.
"""

import asyncio
import sys
from typing import Any

AGAIN = 0.005
"""Seconds after which a call that goes on is cancelled once more."""


def cancel_call(call: "asyncio.Task[Any]") -> None:
    """Cancel a call, and again until it has ended: one that swallows its cancel is met at its next wait.

    A part that anyio shields (`CancelScope(shield=True)`, `to_thread.run_sync`) may end first.
    """
    if call.done():
        return
    if not is_shielded(call):
        call.cancel()
    call.get_loop().call_later(AGAIN, cancel_call, call)


def is_shielded(call: "asyncio.Task[Any]") -> bool:
    """Whether the asyncio task is inside a shielded scope of anyio.

    anyio tells this of the current task only, so its own record is read. If a later anyio keeps the record elsewhere,
    shields hold nothing off; a test fails then.
    """
    states: Any = getattr(sys.modules.get("anyio._backends._asyncio"), "_task_states", {})
    scope: Any = getattr(states.get(call), "cancel_scope", None)
    while scope is not None:
        if scope.shield:
            return True
        scope = getattr(scope, "_parent_scope", None)
    return False
