"""A stream of server-sent events to one page, and how many there are."""

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from maas_backoff.common.guard import Log, log_for

log: Log = log_for("dashboard")

MOST_STREAMS = 200
"""Pages that may be open at once, of one process."""

SEND_TIMEOUT = 10.0
"""Seconds after which a client that takes nothing is dropped; it comes back by itself."""


class Open:
    """How many streams are open."""

    count = 0

    @property
    def full(self) -> bool:
        """Whether there is room for no other."""
        return self.count >= MOST_STREAMS


class Stream(EventSourceResponse):
    """Events until their end, or that of the client, or of uvicorn."""

    def __init__(self, opened: Open, events: AsyncIterator[dict[str, str]]) -> None:
        headers = {"Cache-Control": "no-store"}
        super().__init__(events, send_timeout=SEND_TIMEOUT, headers=headers)  # pyright: ignore[reportUnknownMemberType] - of its `content`
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them; the response is ended also where sse-starlette leaves it open, as uvicorn stops."""
        ended = False

        async def send_and_see(message: Message) -> None:
            nonlocal ended
            ended = ended or (message["type"] == "http.response.body" and not message.get("more_body"))
            await send(message)

        self._opened.count += 1
        try:
            await super().__call__(scope, receive, send_and_see)
            if not ended:
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            log.info("a page that has taken nothing for %g s is dropped", SEND_TIMEOUT)
        finally:
            self._opened.count -= 1
