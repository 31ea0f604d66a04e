"""The input of `map`: a file, or a pipe, whose lines are read while their tasks run."""

import os
import stat
from collections.abc import AsyncGenerator, Sequence
from hashlib import blake2b
from typing import NamedTuple

import anyio
from anyio import to_thread

from maas_backoff.commands.usage import UsageError
from maas_backoff.language import t

CHUNK = 262_144
"""Bytes that are read at a time."""

_STDIN = 0

_BOM = b"\xef\xbb\xbf"


class InputLine(NamedTuple):
    """A line: its number, from 1 on, and its bytes without the newline; None if the line is too long."""

    number: int
    content: bytes | None


class Splitter:
    """Splits bytes into lines. Only a newline ends a line: a JSON text may have other separators inside."""

    def __init__(self, longest: int) -> None:
        """`longest` is the most bytes of a line. The bytes of a longer line are dropped."""
        self._longest = longest
        self._number = 0
        self._begun: bytes | None = b""

    def feed(self, data: bytes) -> list[InputLine]:
        """Return the lines that end in `data`."""
        *ends, begun = data.split(b"\n")
        lines = [self._line(end) for end in ends]
        self._begun = self._joined(begun)
        return lines

    def end(self) -> list[InputLine]:
        """Return the last line, if it has no newline."""
        return [] if self._begun == b"" else [self._line(b"")]

    def _line(self, end: bytes) -> InputLine:
        content, self._begun = self._joined(end), b""
        self._number += 1
        if content is not None and self._number == 1:
            content = content.removeprefix(_BOM)
        return InputLine(self._number, content)

    def _joined(self, more: bytes) -> bytes | None:
        if self._begun is None or len(self._begun) + len(more) > self._longest:
            return None
        return self._begun + more


class Source:
    """The input. `name` is a path, or "-" for stdin.

    A file is read as long as it is at the start. `digest` is that of its content, and `total` the number of its lines;
    for a pipe, which can be read only once, both are None.
    """

    def __init__(self, name: str, longest: int) -> None:
        """Open the input, and read a file once for its digest. `longest` is the most bytes of a line.

        Raises UsageError if the input cannot be read.
        """
        self.name = name
        self.digest: str | None = None
        self.total: int | None = None
        self._longest = longest
        self._left: int | None = None
        try:
            self._file = _STDIN if name == "-" else os.open(name, os.O_RDONLY | os.O_CLOEXEC)
            mode = os.fstat(self._file).st_mode
            # A file and /dev/null are always ready, and epoll refuses them.
            self._is_pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(self._file)
            if stat.S_ISDIR(mode):
                raise UsageError(t("cannot read {file}: it is a folder", file=repr(name)))
            if stat.S_ISREG(mode):
                self._look()
        except OSError as error:
            raise UsageError(t("cannot read {file}: {error}", file=repr(name), error=error.strerror)) from error

    def close(self) -> None:
        """Close the file."""
        if self.name != "-":
            os.close(self._file)

    def _look(self) -> None:
        begin = os.lseek(self._file, 0, os.SEEK_CUR)
        content, size, lines, last = blake2b(digest_size=8), 0, 0, b"\n"
        while data := os.read(self._file, 4 * CHUNK):
            content.update(data)
            size, lines, last = size + len(data), lines + data.count(b"\n"), data[-1:]
        os.lseek(self._file, begin, os.SEEK_SET)
        self.digest, self.total, self._left = content.hexdigest(), lines + (last != b"\n"), size

    async def lines(self) -> AsyncGenerator[Sequence[InputLine], None]:
        """Yield the lines, some at a time. Raises OSError, and UsageError if the file has changed meanwhile."""
        splitter, content = Splitter(self._longest), blake2b(digest_size=8)
        while data := await self._read():
            content.update(data)
            yield splitter.feed(data)
        yield splitter.end()
        if self.digest is not None and content.hexdigest() != self.digest:
            told = "{file} has changed while it was read: its results may be those of two versions"
            raise UsageError(t(told, file=repr(self.name)))

    async def _read(self) -> bytes:
        if self._is_pipe:
            await anyio.wait_readable(self._file)
            return os.read(self._file, CHUNK)
        size = CHUNK if self._left is None else min(CHUNK, self._left)
        data = await to_thread.run_sync(os.read, self._file, size, limiter=anyio.CapacityLimiter(1))
        if self._left is not None:
            self._left -= len(data)
        return data
