"""A small process beside a worker that runs child processes: it ends what they have started, if the worker is killed.

It is `orphans.py`, run as a script, with nothing of this package loaded: 12 MiB, which do nothing until then. Without
it, the next worker on the machine does the same.
"""

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from maas_backoff.common import orphans
from maas_backoff.common.guard import Log, log_for

log: Log = log_for("worker")

PATIENCE = 5.0
"""Seconds that the process has to end, after it was asked to end."""


class Cleaner:
    """The process, from `start` to `stop`. Both block for some ms, and do nothing the second time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process, on Linux. A failure to start is logged."""
        if self._process is not None:
            return
        worker, script = orphans.this_process(), Path(orphans.__file__)
        if worker is None or not script.is_file():
            return
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(script), str(worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is not for it
                env=orphans.unmarked(os.environ),
                cwd="/",
            )
        except (OSError, MemoryError, RuntimeError, subprocess.SubprocessError) as error:
            log.info("no process stands by to end what handlers start, if this worker is killed: %s", error)

    def stop(self) -> None:
        """End the process: this worker stops in order."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with suppress(OSError), process.stdin as stdin:
            stdin.write(b".")
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
