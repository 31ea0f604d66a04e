"""The output of `map`: a file beside the given one, until all lines are there; or stdout."""

import fcntl
import os
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from maas_backoff.commands.mapping.records import Record, read
from maas_backoff.commands.usage import UsageError
from maas_backoff.language import t

PARTIAL = ".partial"
"""The ending of the file that has the first lines of a run that is not over."""

LONGEST = 1 << 30
"""Bytes of a line of the output."""


class Output:
    """Writes records in the order of their lines, each once. `path` is that of the file at the end, "-" is stdout.

    A run that was stopped or killed leaves its first lines in the partial file, and the next run goes on after them.
    `last` is the number of the last line that is written, and `counts` has the number of lines by status, both with
    the lines of earlier runs.
    """

    def __init__(self, path: str, prefix: str) -> None:
        """Open the output. `prefix` is that of the ids of the tasks, which tells the lines of the same input.

        Raises UsageError if there is a file already, if another process writes it, or if it cannot be written.
        """
        self.path = path
        self.partial: str | None = None
        self.last: int = 0
        self.counts: Counter[str] = Counter[str]()
        self._lock = threading.Lock()
        self._file: BinaryIO
        if path == "-":
            self._file = sys.stdout.buffer
            return
        try:
            if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - a name such as /dev/fd/63
                self._file = Path(path).open("wb")  # noqa: SIM115 - closed by `close`
                return
            self._refuse_existing()
            self._file = _locked(path + PARTIAL)
        except OSError as error:
            file = repr(error.filename or path)
            raise UsageError(t("cannot write {file}: {error}", file=file, error=error.strerror)) from error
        self.partial = path + PARTIAL
        try:
            self._refuse_existing()  # the run that had the lock may have ended
            self._resume(prefix)
        except UsageError:
            self._file.close()
            raise

    def _refuse_existing(self) -> None:
        if Path(self.path).exists():
            raise UsageError(t("{file} exists: give another name, or delete it", file=repr(self.path)))

    def _resume(self, prefix: str) -> None:
        """Find the end of the last whole record of an earlier run, and cut off what follows."""
        end = 0
        while text := self._file.readline(LONGEST):
            record = read(text, prefix)
            if record is None or record.line <= self.last:
                break
            self._count(record)
            end += len(text)
        if not end and text.endswith(b"\n"):
            told = "{file} has lines of another input, kind or --id: give another name for the output, or delete it"
            raise UsageError(t(told, file=repr(self.partial)))
        self._file.seek(end)
        self._file.truncate()

    def _count(self, record: Record) -> None:
        self.last = record.line
        self.counts[record.status] += 1

    def write(self, records: Sequence[Record]) -> None:
        """Write records in the order of their lines. Leave out those that are written already. Raises OSError."""
        with self._lock:
            new = [record for record in records if record.line > self.last]
            self._file.write(b"".join([record.text for record in new]))
            self._file.flush()
            for record in new:
                self._count(record)

    def finish(self) -> None:
        """Give the file its name: all lines are written. Raises OSError."""
        if self.partial is None:
            return
        os.fsync(self._file.fileno())
        Path(self.partial).replace(self.path)
        folder = os.open(Path(self.path).parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self.partial = None

    def close(self) -> None:
        """Close the file. A partial file with lines stays for the next run."""
        if self.partial is not None and not self.last:
            Path(self.partial).unlink(missing_ok=True)
        if self.path != "-":
            with suppress(OSError):  # `write` has raised it: the disk is full
                self._file.close()


def _locked(path: str) -> BinaryIO:
    """Open a file that no other process writes. Raises UsageError if another one does, and OSError."""
    while True:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino == Path(path).stat().st_ino:
                return file
        except BlockingIOError:
            file.close()
            raise UsageError(t("another process writes {file}", file=repr(path))) from None
        except FileNotFoundError:
            pass
        file.close()  # the process that had the lock has given the file another name, or deleted it
