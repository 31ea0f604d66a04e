"""`maas-backoff worker --processes N`: a small parent that starts N workers, and replaces those that end."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from subprocess import SubprocessError

import anyio

from maas_backoff.commands.command import FAILED, OK, STOPPED, USAGE
from maas_backoff.common.guard import Log, log_for
from maas_backoff.common.parent import PARENT
from maas_backoff.common.until_stopped import stop_signals

log: Log = log_for("command")

SECOND = 2
"""The signal that hands running tasks back; the next one ends a worker at once."""

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before a worker is replaced that has ended soon after its start; twice as many each time."""

WELL = 30.0
"""Seconds after which a worker counts as well: if it ends later, the pause is the shortest."""

_NOTHING_LEFT = (OSError, MemoryError, RuntimeError, SubprocessError)
"""The errors if no process, thread, memory or file is left for a worker. The other workers go on."""


class Processes:
    """Runs the workers of one command until it is told to stop. Each signal is handed on to each worker."""

    def __init__(self, arguments: Sequence[str], count: int, name: str | None, *, burst: bool = False) -> None:
        """`arguments` are those of one `maas-backoff worker`. With a `name`, the first is called `name-1`.

        `burst`: a worker that ends with exit code 0 has no more work, and is not replaced.
        """
        self._command = [sys.executable, "-m", "maas_backoff", "worker", *arguments]
        self._count = count
        self._name = name
        self._burst = burst
        self._running: set[asyncio.subprocess.Process] = set()
        self._stopping = asyncio.Event()
        self._code = OK
        self._signals = 0
        # The workers have one end of a pipe, whose other end is closed when this process has ended.
        self._end, self._mine = os.pipe()

    async def run(self) -> int:
        """Return the exit code: 0 after an orderly stop, or a burst, else that of a worker that failed."""
        loop = asyncio.get_running_loop()
        for number in stop_signals():
            loop.add_signal_handler(number, self._hand_on, number)
        log.info("starting %d workers, pid %d", self._count, os.getpid())
        async with asyncio.TaskGroup() as group:
            for place in range(1, self._count + 1):
                group.create_task(self._keep(place))
        return self._code

    def _is_orderly(self, code: int) -> bool:
        """Whether a worker has ended in order: the second signal may come when it has done so, and only exits."""
        return code == OK or (self._signals <= SECOND and (code == STOPPED or -code in stop_signals()))

    def _hand_on(self, number: signal.Signals) -> None:
        self._stopping.set()
        self._signals += 1
        for process in self._running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    async def _keep(self, place: int) -> None:
        """Keep one worker running until the stop."""
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                code = await self._run_worker(place)
                how = _how(code)
            except _NOTHING_LEFT as error:
                code, how = FAILED, f"cannot be started: {error}"
            if self._stopping.is_set():
                self._code = max(self._code, OK if self._is_orderly(code) else FAILED)
            elif code == OK and self._burst:
                return
            elif code == USAGE:  # it would be the same each time
                self._code = USAGE
                self._hand_on(signal.SIGTERM)
            else:
                pause = FIRST_PAUSE if time.monotonic() - started > WELL else min(2 * pause, LONGEST_PAUSE)
                log.error("worker %d %s; the next one starts in %g s", place, how, pause / 2)
                with anyio.move_on_after(pause / 2):
                    await self._stopping.wait()

    async def _run_worker(self, place: int) -> int:
        name = ["--name", f"{self._name}-{place}"] if self._name else []
        environment = {**os.environ, PARENT: str(self._end)}
        # Not in the group of this process: a Ctrl-C reaches each worker once, by way of here.
        process = await asyncio.create_subprocess_exec(
            *self._command, *name, env=environment, pass_fds=[self._end], process_group=0
        )
        self._running.add(process)
        try:
            if self._stopping.is_set():  # during the start
                process.terminate()
            return await process.wait()
        finally:
            self._running.discard(process)


def _how(code: int) -> str:
    """Return in words how a process has ended."""
    if code >= 0:
        return f"has ended with exit code {code}"
    try:
        return f"has ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"has ended by signal {-code}"
