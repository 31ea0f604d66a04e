"""The producers and workers of a chaos run, which are processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import attrs

Process = subprocess.Popen[bytes]


@attrs.frozen
class Worker:
    """A worker process, and what its replacement is made from."""

    process: Process
    mode: str
    is_old: bool


class Processes:
    """Starts producers and workers. In a mixed run, half of them have the code of the last release."""

    def __init__(self, port: int, folder: Path, old: str | None) -> None:
        self.old: str | None = old
        """The folder with the package of the last release, in a mixed run."""
        self._port = port
        self._folder = folder

    def worker(self, place: int, mode: str) -> Worker:
        """Start the first worker at a place."""
        return self._worker(mode, is_old=self._is_old(place))

    def replacement(self, worker: Worker) -> Worker:
        """Start a worker in the place of another one. In a mixed run, it has the other one of the two codes."""
        return self._worker(worker.mode, is_old=self.old is not None and not worker.is_old)

    def producer(self, place: int, *arguments: str) -> Process:
        return self._start("producer", *arguments, is_old=self._is_old(place))

    def _worker(self, mode: str, *, is_old: bool) -> Worker:
        return Worker(self._start("worker", mode=mode, is_old=is_old), mode, is_old)

    def _is_old(self, place: int) -> bool:
        return self.old is not None and place % 2 == 0

    def _start(self, what: str, *arguments: str, is_old: bool, mode: str = "") -> Process:
        tests = str(Path(__file__).parent.parent)
        path = os.pathsep.join(filter(None, [self.old if is_old else None, tests, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "CHAOS_FOLDER": str(self._folder), "CHAOS_MODE": mode}
        environment["PYTHONSAFEPATH"] = "1"  # otherwise the working directory comes before PYTHONPATH
        command = [sys.executable, "-m", f"chaos.{what}", str(self._port), *arguments]
        with (self._folder / f"{what}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
