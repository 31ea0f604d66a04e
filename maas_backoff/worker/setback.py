"""Whether a worker can start child processes, or threads, and how many tasks are left to a worker that cannot."""

import asyncio
import random
import time
from collections.abc import Callable

from maas_backoff.common.guard import Log, log_for

log: Log = log_for("worker")

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
"""Seconds between two tries to start a child, at most."""

CHILD, THREAD = "child process", "thread"
CANNOT_START = {CHILD: "no child process can be started", THREAD: "no thread can be started"}


class Setback:
    """The state of a worker's child processes, or threads, since the last one that it could not start.

    The task of that child goes back unharmed, so it would come back at once: the sick worker would be the fastest of
    all. From then on the worker claims for the children that it has. It tries to start another one by itself, after
    pauses that grow, until that works.
    """

    def __init__(
        self, children: Callable[[], int], changed: Callable[[], None] = lambda: None, *, kind: str = CHILD
    ) -> None:
        """`children` counts the children that are ready and were given no GPU. `changed` is called at each change.

        `kind` names the children: THREAD means that every task needs one, also a task with a GPU.
        """
        self._children = children
        self.kind = kind
        self.changed = changed
        self._failures = 0
        self._reason = ""
        self._began = 0.0
        self._failed_at = 0.0
        self._tries = 0
        """Tasks that may be claimed although they need a new child, to see whether it can be started."""
        self.is_trial: bool = False
        """Whether all but a GPU's part of a start has worked since: a task must show the rest."""
        self.begun: asyncio.Event = asyncio.Event()
        """Set while children cannot be started."""

    @property
    def held(self) -> bool:
        """Whether the last child could not be started."""
        return self._failures > 0

    @property
    def trouble(self) -> str | None:
        """The reason why children cannot be started, in one line; None if none is known."""
        if not self.held or self.is_trial:
            return None
        lines = self._reason.splitlines() or [""]
        shown = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
        return f"{CANNOT_START[self.kind]}: {shown[:500]}"

    @property
    def children(self) -> int:
        """How many tasks that need no GPU may run while children cannot be started."""
        return self._children() + self._tries

    @property
    def pause(self) -> float:
        """Seconds until the next try; a random part keeps workers from trying at the same time."""
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * (1 << min(self._failures - 1, 10)))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads the tries

    def failed(self, reason: str, *, probe: bool = False) -> None:
        """Note that a child could not be started. `probe`: the worker tried by itself; it waits longer then."""
        self._failed_at = time.monotonic()
        self._reason = reason
        if not self.held:
            self._failures, self._began = 1, self._failed_at
            self.begun.set()
            log.warning(
                "%s; this worker claims tasks only for those that it has (%d), and tries again until one starts: %s",
                CANNOT_START[self.kind],
                self._children(),
                reason,
            )
        elif probe or self.is_trial:
            self._failures += 1
        self._tries, self.is_trial = 0, False
        self.changed()

    def worked(self, begun_at: float) -> None:
        """Note that a child whose start began at this moment, by time.monotonic(), is ready for tasks."""
        if not self.held or begun_at < self._failed_at:
            return
        log.warning(
            "a %s could be started again, after %d failures (%.0f s)",
            self.kind,
            self._failures,
            time.monotonic() - self._began,
        )
        self._failures, self._tries, self.is_trial = 0, 0, False
        self.begun.clear()
        self.changed()

    def let_one_try(self) -> None:
        """Let one task try: a child starts as far as it can without a GPU, and the rest only a task can show."""
        self._tries, self.is_trial = 1, True
        self.changed()

    def take_try(self) -> bool:
        """Return whether a task that needs a new child may be claimed; if it may, no other one may after it."""
        if not self.held:
            return True
        allowed, self._tries = self._tries > 0, 0
        return allowed
