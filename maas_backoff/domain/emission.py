"""The emission of one attempt: the parts of the task's stream, and lines of its log."""

import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from maas_backoff.domain import jsontext
from maas_backoff.errors import PayloadError, StreamError, StreamFullError

TEXT, JSON, LINE, KEEP = "t", "j", "l", "k"
"""The forms of what a handler emits: a text, a JSON value, a line of the log, and the wish to keep earlier parts."""

MERGED = 16_384
"""Characters up to which texts that wait to be sent become one part."""

OF_A_VALUE = 16
"""Bytes that a JSON value counts in addition to its text: small ones take memory, too."""

MANY_PARTS, LARGE_PART = 50_000, 1024
"""After so many parts, a text is sent only when it has so many characters, or when the attempt ends."""

LONGEST_LINE = 2000
"""Characters of a line that are kept."""

MOST_LINES = 1000
"""Lines of one attempt that wait to be sent; the oldest are dropped."""

Report = Callable[[str, str], None]
"""Is called with the form and the text of each part or line."""

Stamp = Callable[[], str]
"""Returns what stands before a line in the log: its time."""


def no_stamp() -> str:
    """Return an empty text: another process writes the log."""
    return ""


class Part(NamedTuple):
    """A part of a stream: its form, TEXT or JSON, and its text."""

    form: str
    text: str

    @property
    def data(self) -> Any:
        """The text, or the JSON value."""
        return self.text if self.form == TEXT else jsontext.parse(self.text)

    @property
    def size(self) -> int:
        """The bytes that it counts."""
        return jsontext.size_of(self.text) + (OF_A_VALUE if self.form == JSON else 0)


class Unsent(NamedTuple):
    """Parts and lines that are to be sent. `place` is that of the first part in the stream, from 1 on."""

    continues: bool
    place: int
    parts: Sequence[Part]
    line: int
    """The number of the first line."""
    lines: Sequence[str]


class Emission:
    """The stream and the log of an attempt, as they are in this process. Threads may share an emission.

    Parts that `take` has returned never change: they are sent again unchanged if the server has lost them.
    """

    def __init__(self, most_bytes: int, earlier: Sequence[Part], report: Report, stamp: Stamp = no_stamp) -> None:
        """Take the size that the stream may have, and the parts of earlier attempts.

        `report` is told of each new part and line. `stamp` returns the beginning of a line.
        """
        self.fault: str = ""
        """The reason why nothing more can be sent, if there is one."""
        self.continues: bool = False
        """Whether the parts of earlier attempts are kept."""
        self.has_begun: bool = False
        """Whether something was taken to be sent."""
        self._most_bytes = most_bytes
        self._earlier = earlier
        self._report = report
        self._parts: list[Part] = []
        self._size = 0
        self._fixed = self._sent = 0
        self._lines = _Lines(stamp)
        self._lock = threading.RLock()  # a finaliser may log while its thread is in here

    def add(self, part: Part) -> None:
        """Add a part. Raises StreamFullError if the stream would be too large, and StreamError after a fault."""
        with self._lock:
            if self.fault:
                raise StreamError(self.fault)
            if self._size + part.size > self._most_bytes:
                raise StreamFullError(self._most_bytes)
            self._size += part.size
            last = self._parts[-1] if len(self._parts) > self._fixed else part
            if last is not part and last.form == part.form == TEXT and len(last.text) + len(part.text) <= MERGED:
                self._parts[-1] = Part(TEXT, last.text + part.text)
            else:
                self._parts.append(part)
            self._report(part.form, part.text)

    def keep(self) -> None:
        """Continue the stream of earlier attempts. Raises StreamError if this attempt has emitted a part."""
        with self._lock:
            if self.continues:
                return
            if self._parts:
                raise StreamError("keep_emitted() must be called before the first emit() of an attempt")
            self.continues, self.has_begun = True, False
            self._parts = list(self._earlier)
            self._fixed = self._sent = len(self._parts)
            self._size = sum(part.size for part in self._parts)
            self._report(KEEP, "")

    def log(self, line: str) -> None:
        """Add a line to the log."""
        with self._lock:
            self._lines.add(line)
            self._report(LINE, line)

    def parts(self) -> Sequence[Part]:
        """Return the parts of the stream: those of earlier attempts until this attempt emits its first one."""
        with self._lock:
            return tuple(self._parts if self._parts or self.continues else self._earlier)

    # For the worker that sends the parts

    def take(self, room: int, *, at_end: bool) -> Unsent | None:
        """Return parts that are not on the server yet, of about `room` characters. None: nothing is to be sent.

        `at_end`: the attempt has ended, so that no text has to wait for more text.
        """
        with self._lock:
            parts = self._parts[self._sent :]
            is_open = len(parts) > 0 and len(self._parts) > self._fixed and parts[-1].form == TEXT
            if is_open and len(self._parts) > MANY_PARTS and len(parts[-1].text) < LARGE_PART and not at_end:
                parts.pop()
            size = 0
            for number, part in enumerate(parts, 1):
                size += len(part.text)
                if size >= room:
                    parts = parts[:number]
                    break
            lines = self._lines.waiting[:]
            if not parts and not lines and not self._owes_keep:
                return None
            self.has_begun = True
            self._fixed = max(self._fixed, self._sent + len(parts))
            return Unsent(self.continues, self._sent + 1, parts, self._lines.first, lines)

    def sent(self, unsent: Unsent, length: int) -> None:
        """Note that the stream has `length` parts on the server: fewer than before if the server has lost some."""
        with self._lock:
            if self.continues and length < len(self._earlier):
                # The parts of earlier attempts are not all there any more. They come again as parts of this attempt,
                # and readers begin anew: the ids of the lost parts are unknown here.
                self.continues = False
                length = 0
            if self.continues or unsent.parts:
                self._sent = min(length, len(self._parts))
            self._lines.drop_until(unsent.line + len(unsent.lines))

    @property
    def stored(self) -> int:
        """The parts that the server must have at the end; 0: this attempt has none there, or a fault."""
        return 0 if self.fault else len(self._parts)

    def send_again(self) -> None:
        """Have the parts of this attempt sent again: the server has lost some that it had acknowledged."""
        with self._lock:
            # If parts are kept, the empty call shows whether those of earlier attempts are lost, too.
            self._sent = len(self._earlier) if self.continues else 0
            self.has_begun = False

    def drop(self, fault: str) -> None:
        """Forget what is not sent, as it cannot be sent any more."""
        with self._lock:
            self.fault, self.has_begun = fault, True
            self._sent = self._fixed = len(self._parts)
            self._lines.drop_until(self._lines.first + len(self._lines.waiting))

    @property
    def is_sent(self) -> bool:
        """Whether nothing waits to be sent."""
        return self._sent == len(self._parts) and not self._lines.waiting and not self._owes_keep

    @property
    def _owes_keep(self) -> bool:
        return self.continues and not self.has_begun


class _Lines:
    """The lines of an attempt that wait to be sent, and the number of the first one."""

    def __init__(self, stamp: Stamp) -> None:
        self.waiting: list[str] = []
        self.first: int = 1
        self._stamp = stamp

    def add(self, line: str) -> None:
        self.waiting.append(self._stamp() + line)
        if len(self.waiting) > MOST_LINES:
            self.drop_until(self.first + 1)

    def drop_until(self, number: int) -> None:
        """Drop the lines before a number; they may be dropped already."""
        gone = max(0, number - self.first)
        del self.waiting[:gone]
        self.first += gone


def checked_part(part: object) -> Part | None:
    """Return what a handler emits as a part; None for an empty text. Raises PayloadError for what is no JSON."""
    if isinstance(part, str):
        if not jsontext.is_utf8(part):
            raise PayloadError("part", "text that UTF-8 can hold (no lone surrogates)", part)
        return Part(TEXT, str(part)) if part else None
    return Part(JSON, jsontext.canonical(part, "part", sys.maxsize))


def checked_line(line: object) -> str:
    """Return the part of a line that is kept. Raises PayloadError unless it is text in UTF-8."""
    if not isinstance(line, str) or not jsontext.is_utf8(line):
        raise PayloadError("line", "text that UTF-8 can hold", line)
    return line[:LONGEST_LINE]
