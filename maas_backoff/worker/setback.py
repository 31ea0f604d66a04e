"""The record of child processes or threads that a worker could not start, and the tasks that it may claim then."""

import asyncio
import random
import time
from collections.abc import Callable

from maas_backoff.common.guard import Log, log_for

log: Log = log_for("worker")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""The most seconds between two tries to start a child: after the first failure, and after many."""

CHILD, THREAD = "child process", "thread"
CANNOT_START = {CHILD: "no child process can be started", THREAD: "no thread can be started"}


class Setback:
    """The state of a worker's child processes, or threads, since the last one that it could not start.

    The task of a child that could not be started is handed back. Without a limit, the sick worker would claim it again
    at once, faster than all other workers. So the worker claims only as many tasks as it has children. It tries to
    start another child by itself, after growing pauses, until a child starts.
    """

    def __init__(
        self, children: Callable[[], int], changed: Callable[[], None] = lambda: None, *, kind: str = CHILD
    ) -> None:
        """`children` returns the number of ready children without a GPU. `changed` is called at each change.

        `kind` is CHILD or THREAD. With THREAD, a task with a GPU needs a thread of this count, too.
        """
        self._children = children
        self.kind = kind
        self.changed = changed
        self._failures = 0
        self._reason = ""
        self._began = 0.0
        self._failed_at = 0.0
        self._tries = 0
        """The number of tasks that may be claimed to try whether a new child starts."""
        self.is_trial: bool = False
        """Whether a start without a GPU has worked since: only a task can show whether a start with a GPU works."""
        self.begun: asyncio.Event = asyncio.Event()
        """Set while children cannot be started."""

    @property
    def held(self) -> bool:
        """Whether the last child could not be started."""
        return self._failures > 0

    @property
    def trouble(self) -> str | None:
        """The reason why children cannot be started, in one line; None if they can, or during a trial."""
        if not self.held or self.is_trial:
            return None
        lines = self._reason.splitlines() or [""]
        shown = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
        return f"{CANNOT_START[self.kind]}: {shown[:500]}"

    @property
    def children(self) -> int:
        """The number of tasks without a GPU that may run while children cannot be started."""
        return self._children() + self._tries

    @property
    def pause(self) -> float:
        """Seconds until the next try, in part random, so that workers do not try at the same time."""
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * (1 << min(self._failures - 1, 10)))
        return longest * random.uniform(0.5, 1)  # noqa: S311 - spreads the tries

    def failed(self, reason: str, *, probe: bool = False) -> None:
        """Note that a child could not be started. `probe`: the worker tried by itself; its next pause is longer."""
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
        """Note that a child is ready for tasks; its start began at `begun_at`, by time.monotonic()."""
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
        """Let one task try to start a child with a GPU. A start without a GPU has worked."""
        self._tries, self.is_trial = 1, True
        self.changed()

    def take_try(self) -> bool:
        """Return whether a task that needs a new child may be claimed, and use up the try that allows it."""
        if not self.held:
            return True
        allowed, self._tries = self._tries > 0, 0
        return allowed
