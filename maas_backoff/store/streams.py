"""The streams and the logs of tasks: attempts append to them, and clients read them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from maas_backoff.domain.emission import Part, Unsent
from maas_backoff.domain.status import TaskStatus
from maas_backoff.domain.stream import LogLine, StreamPart
from maas_backoff.domain.waiting import at
from maas_backoff.store import scripts
from maas_backoff.store.codec import EXTERNAL, now_and_ahead
from maas_backoff.store.connection import QueueConnection
from maas_backoff.store.replies import StreamItem, StreamRow

READ_BYTES = 262_144
"""A reply with several streams ends after the one that fills it."""

PARTS, LOG = "parts", "log"


class Emitted(NamedTuple):
    """The parts and lines that an attempt has not sent yet. A line begins with its time in ms, by the queue's clock."""

    task_id: str
    token: int
    attempt: int
    unsent: Unsent


class Place(NamedTuple):
    """A place in a stream, behind which a reader goes on. `after` is an id, empty, or `last <n>`."""

    what: str
    task_id: str
    after: str


class Read(NamedTuple):
    """The parts or lines after a place."""

    status: TaskStatus
    attempt: int
    items: Sequence[StreamItem]
    restart: str = ""
    """If not empty, all that the reader has is void: the items begin behind this id."""
    more: bool = False
    expires: float = math.inf
    """Seconds until the pending task expires if no attempt starts."""
    ahead_ms: float = 0

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes after the items."""
        return not self.more and (self.status.finished or self.expires <= 0)

    def next(self, place: Place) -> Place:
        """Return the place behind the items, which came after `place`."""
        if self.items:
            return place._replace(after=self.items[-1][0])
        # A reader that wants the last lines of an empty log gets all lines that come.
        return place._replace(after=self.restart or (place.after if "-" in place.after else ""))

    def parts(self) -> list[StreamPart]:
        """Return the items as parts, after one that says that the stream begins anew, if it does."""
        found = [StreamPart(item, Part(form[:1], text).data, int(form[1:])) for item, form, text in self.items]
        if self.restart:
            attempt = found[0].attempt if found else self.attempt
            found.insert(0, StreamPart(self.restart, None, attempt, restarted=True))
        return found

    def lines(self) -> list[LogLine]:
        """Return the items as lines."""
        found: list[LogLine] = []
        for item, form, text in self.items:
            moment, _, line = text.partition(" ")
            found.append(LogLine(item, line, int(form[1:]), at(float(moment) - self.ahead_ms)))
        return found


class Streams:
    """The calls on the streams and logs of one queue."""

    def __init__(self, queue: QueueConnection) -> None:
        self._queue = queue

    async def emit(self, emitted: Sequence[Emitted]) -> list[int | None]:
        """Append parts and lines, once. If StorageUnavailableError is raised, send the same again.

        Return the length of each stream; None if the task is another attempt's.
        """
        queue = self._queue
        args: list[Any] = [queue.keys.prefix]
        for one in emitted:
            continues, place, parts, line, lines = one.unsent
            args += one.task_id, one.token, one.attempt, int(continues), place, len(parts), line, len(lines)
            for part in parts:
                args += part
            args += lines
        client = await queue.server.connect()
        lengths = await client.run(scripts.EMIT, queue.keys.all(scripts.EMIT.keys), args)
        return [None if length < 0 else length for length in lengths]

    async def read_first(
        self, places: Sequence[Place], deadline: float | None = None, *, watch: float = 0
    ) -> list[Read | None]:
        """Return what comes after the first of these places, at least one; None for a task that is not there.

        Parts and lines are published for `watch` seconds from now on. The deadline is as in `Server.patiently`.
        """
        queue = self._queue
        args: list[Any] = [queue.clock, queue.keys.prefix, f"{watch * 1000:.0f}", READ_BYTES]
        for place in places:
            args += place
        reply = await queue.server.run(scripts.STREAM, queue.keys.all(scripts.STREAM.keys), args, deadline)
        now_ms, ahead_ms = now_and_ahead(reply.now)
        return [None if row is None else self._read(StreamRow._make(row), now_ms, ahead_ms) for row in reply.rows]

    def _read(self, row: StreamRow, now_ms: float, ahead_ms: float) -> Read:
        state = row.state.decode()
        limits = self._queue.policies.limits(row.overrides)
        return Read(
            TaskStatus.PROCESSING if state == EXTERNAL else TaskStatus(state),
            int(row.attempt),
            [
                (item.decode(), form.decode(), text.decode())
                for item, form, text in zip(*[iter(row.items)] * 3, strict=True)
            ],
            row.restart.decode(),
            bool(row.more),
            math.inf if limits is None else (limits.expiry - now_ms) / 1000,
            ahead_ms,
        )

    async def all_parts(self, task_id: str) -> list[Part]:
        """Return all parts of a stream: those of earlier attempts, for an attempt that has emitted nothing."""
        found: list[Part] = []
        after, more = "", True
        while more:
            (read,) = await self.read_first([Place(PARTS, task_id, after)])
            if read is None:
                break
            if read.restart:
                found.clear()  # the server has lost some between two reads
            found += [Part(form[:1], text) for _, form, text in read.items]
            after, more = read.items[-1][0] if read.items else after, read.more
        return found
