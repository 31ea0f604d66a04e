"""Readers of streams and logs: woken by what tasks emit. Their reads that meet travel together."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial

from maas_backoff.client.gathering import Gathering, with_own_errors
from maas_backoff.domain.stream import LogLine, StreamPart, checked_after
from maas_backoff.domain.validation import checked_task_id
from maas_backoff.errors import InvalidValueError, TaskNotFoundError
from maas_backoff.store.streams import LOG, PARTS, Place, Read, Streams
from maas_backoff.store.waiters import Waiters

MOST_READS = 100
"""Streams in one call: below 1 ms of the server's time."""

MOST_LINES = 1000


class Follower:
    """Follows the streams and logs of one queue. Nothing is kept for a slow reader: it reads on when it is ready."""

    def __init__(
        self, streams: Streams, listening: Callable[[], Awaitable[Waiters]], timeout: float, renewal: float
    ) -> None:
        """Take what returns the waiters of this event loop, and the seconds that a read may take.

        After `renewal` seconds, a reader reads by itself, and renews its watch.
        """
        self._streams = streams
        self._listening = listening
        self._renewal = renewal
        self._reads: Gathering[Place, Read | None] = Gathering(self._read, timeout, MOST_READS)
        # As in reader.py: a watch writes.
        watch = partial(self._read, watch=2 * renewal)
        self._watches: Gathering[Place, Read | None] = Gathering(watch, timeout, MOST_READS)

    def stream(self, task_id: str, after: str | None) -> AsyncGenerator[StreamPart, None]:
        return self._parts(Place(PARTS, checked_task_id(task_id), checked_after(after)))

    async def _parts(self, place: Place) -> AsyncGenerator[StreamPart, None]:
        async with contextlib.aclosing(self._follow(place)) as reads:
            async for read in reads:
                for part in read.parts():
                    yield part

    def logs(self, task_id: str, after: str | None, last: int | None, *, follow: bool) -> AsyncGenerator[LogLine, None]:
        checked_task_id(task_id)
        start = checked_after(after)
        if last is not None:
            if isinstance(last, bool) or not isinstance(last, int) or not 1 <= last <= MOST_LINES:
                raise InvalidValueError("last", f"a whole number from 1 to {MOST_LINES}, or None", last)
            if start:
                raise InvalidValueError("last", "either after or last", last)
            start = f"last {last}"
        return self._lines(Place(LOG, task_id, start), to_end=follow)

    async def _lines(self, place: Place, *, to_end: bool) -> AsyncGenerator[LogLine, None]:
        async with contextlib.aclosing(self._follow(place, to_end=to_end)) as reads:
            async for read in reads:
                for line in read.lines():
                    yield line

    async def aclose(self) -> None:
        """Wait for the calls on their way."""
        await self._reads.aclose()
        await self._watches.aclose()

    async def _follow(self, place: Place, *, to_end: bool = True) -> AsyncGenerator[Read, None]:
        """Yield what comes after a place, and again whenever there is more.

        `to_end`: until the task is finished, else until all that is there was yielded.
        """
        renew_at = 0.0
        async with (await self._listening()).waiting(place.task_id, emitted=True) as woken:
            while True:
                woken.clear()
                now = time.monotonic()
                is_due = to_end and now >= renew_at
                read = await (self._watches if is_due else self._reads).ask(place)
                if read is None:
                    raise TaskNotFoundError(place.task_id)
                if is_due:
                    renew_at = now + self._renewal
                place = read.next(place)
                if read.items or read.restart:
                    yield read
                if read.more:
                    continue
                if read.has_ended or not to_end:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.001, min(renew_at - time.monotonic(), read.expires))):
                        await woken.wait()
                if woken.first is not None and place.what == PARTS and not place.after:
                    # As if it had been read when it was published: the next read tells whether it is void since.
                    read = Read(read.status, read.attempt, [woken.first])
                    place = read.next(place)
                    yield read

    async def _read(
        self, places: Sequence[Place], deadline: float, *, watch: float = 0
    ) -> Sequence[Read | Exception | None]:
        return await with_own_errors(lambda some: self._streams.read_first(some, deadline, watch=watch), places)
