"""A request that was sent to a child, at its parent's end."""

import asyncio
from collections.abc import Callable, Sequence

import attrs

from maas_backoff.worker.executors.base import Call
from maas_backoff.worker.executors.frames import Record


@attrs.define(eq=False)
class OpenRequest:
    """A request to a child; `call` is None for the one that makes the child ready."""

    call: Call | None
    ended: Callable[[bool], None] | None
    answer: asyncio.Future[Record] = attrs.field(factory=lambda: asyncio.get_running_loop().create_future())
    over: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Set when the child has answered, or has ended."""
    is_sent: bool = False
    has_begun: bool = False

    def begin(self) -> None:
        """Tell the call, once, that its handler begins."""
        if self.call is not None and not self.has_begun:
            self.call.started()
        self.has_begun = True

    def handler_ended(self, *, reusable: bool) -> None:
        """Note that the handler has ended, and whether its child can be used again."""
        if self.ended is not None and not self.answer.done():
            self.ended(reusable)

    def answered(self, record: Record) -> None:
        """Note the answer."""
        self.over.set()
        if not self.answer.done():
            self.answer.set_result(record)

    def failed(self, error: Exception) -> None:
        """Note that the child has ended. An answer that has arrived stays."""
        self.over.set()
        if not self.answer.done():
            self.answer.set_exception(error)

    def drop(self) -> None:
        """Note that nobody waits for the answer any more."""
        self.answer.cancel()
        if not self.answer.cancelled():
            self.answer.exception()  # else asyncio would log that nobody has read it


def turn_after(requests: Sequence[OpenRequest]) -> asyncio.Event:
    """Return an event that is set when the child has answered all of these requests, or has ended."""
    if requests:
        return requests[-1].over
    event = asyncio.Event()
    event.set()
    return event
