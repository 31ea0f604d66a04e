"""The process of a child, from its parent's side: killed, and reaped."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import anyio

from maas_backoff.worker.executors.exits import ExitWatch, Process, description, has_ended, kill_group


class ChildProcess:
    """A process that leads a group of its own, from its start until it is reaped."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._killed = False
        self._killer: asyncio.TimerHandle | None = None
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    @property
    def usable(self) -> bool:
        """Whether the process runs, and nobody has asked it to end."""
        return not self.leaving and not has_ended(self._process)

    @property
    def leaving(self) -> bool:
        """Whether the process was killed or has to end, or is known to have ended."""
        return self._killed or self.in_grace or self.gone

    @property
    def in_grace(self) -> bool:
        """Whether the process has some time to end by itself, before it is killed."""
        return self._killer is not None

    @property
    def gone(self) -> bool:
        """Whether the process has ended and is reaped."""
        return self._ended.is_set()

    def watch(self, ended: Callable[[], None]) -> None:
        """Call `ended` once the process has ended. `ended` must call `reap`."""
        ExitWatch(self._process, ended)

    def kill(self) -> None:
        """Kill the process and its group; loops/orphans.py ends what has left the group."""
        if not self.gone:
            self._killed = True
            kill_group(self._process)

    def kill_after(self, grace: float) -> None:
        """Kill the process if it has not ended by itself in `grace` seconds."""
        self._killer = asyncio.get_running_loop().call_later(grace, self.kill)

    def kill_group(self) -> None:
        """Kill the group of a process that has ended. The number of the group is its own until `reap`."""
        kill_group(self._process)

    def reap(self, fault: str | None) -> str:
        """Reap the process, which has ended, and return how it ended. `fault` is the reason why it was killed."""
        code = self._process.wait()
        self._ended.set()
        if self._killer is not None:
            self._killer.cancel()
        return fault or "child process closed its connection" if self._killed else description(code)

    async def ended(self) -> None:
        """Wait until the process is reaped, whatever is cancelled meanwhile."""
        await until(self._ended)


async def until(event: asyncio.Event) -> None:
    """Wait until an event is set, whatever is cancelled meanwhile."""
    while not event.is_set():
        # The shield holds off anyio's cancellation, `suppress` that of task.cancel().
        with suppress(asyncio.CancelledError), anyio.CancelScope(shield=True):
            await event.wait()
