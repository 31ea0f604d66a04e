"""The producers and workers of a chaos run, which are processes of their own."""

import os
import random
import subprocess
import sys
from pathlib import Path

import attrs
from chaos.functions import FUNCTIONS, functions_of_worker

Process = subprocess.Popen[bytes]


@attrs.frozen
class Worker:
    """A worker process, and what its replacement is made from."""

    process: Process
    mode: str
    is_old: bool
    place: int


class Processes:
    """Starts producers and workers. In a mixed run, half of them have the code of the last release.

    In other runs, tasks and workers have kinds. Each function of functions.py has a place whose workers have it.
    """

    def __init__(self, port: int, folder: Path, old: str | None, choice: random.Random) -> None:
        self.old: str | None = old
        """The folder with the package of the last release, in a mixed run."""
        self._port = port
        self._folder = folder
        self._choice = choice

    def worker(self, place: int, mode: str) -> Worker:
        """Start the first worker at a place."""
        return self._worker(place, mode, is_old=self._is_old(place))

    def replacement(self, worker: Worker) -> Worker:
        """Start a worker in the place of another one. It may have other kinds.

        In a mixed run, it has the other one of the two codes.
        """
        return self._worker(worker.place, worker.mode, is_old=self.old is not None and not worker.is_old)

    def producer(self, place: int, *arguments: str) -> Process:
        functions = FUNCTIONS if self.old is None else FUNCTIONS[:1]
        return self._start("producer", *arguments, is_old=self._is_old(place), functions=functions)

    def _worker(self, place: int, mode: str, *, is_old: bool) -> Worker:
        functions = FUNCTIONS[:1]  # the last release knows no kinds
        if self.old is None:
            functions = functions_of_worker(self._choice, FUNCTIONS[place : place + 1])
        process = self._start("worker", mode=mode, is_old=is_old, functions=functions)
        return Worker(process, mode, is_old, place)

    def _is_old(self, place: int) -> bool:
        return self.old is not None and place % 2 == 0

    def _start(self, what: str, *arguments: str, is_old: bool, functions: tuple[str, ...], mode: str = "") -> Process:
        tests = str(Path(__file__).parent.parent)
        path = os.pathsep.join(filter(None, [self.old if is_old else None, tests, os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "CHAOS_FOLDER": str(self._folder), "CHAOS_MODE": mode}
        environment["CHAOS_FUNCTIONS"] = " ".join(name or "-" for name in functions)
        environment["PYTHONSAFEPATH"] = "1"  # otherwise the working directory comes before PYTHONPATH
        command = [sys.executable, "-m", f"chaos.{what}", str(self._port), *arguments]
        with (self._folder / f"{what}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
