"""A stream of server-sent events to one page, and the number of open streams."""

from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from maas_backoff.common.guard import Log, log_for

log: Log = log_for("dashboard")

MOST_STREAMS = 200
"""The most open streams of one process, one for each page."""

SEND_TIMEOUT = 10.0
"""Seconds after which a client that reads nothing is disconnected; the page reconnects by itself."""


class OpenStreams:
    """The number of open streams."""

    count = 0

    @property
    def full(self) -> bool:
        """Whether no other stream may be opened."""
        return self.count >= MOST_STREAMS


class Stream(EventSourceResponse):
    """A stream that ends with its events, its client, or uvicorn."""

    def __init__(self, opened: OpenStreams, events: AsyncIterator[dict[str, str]]) -> None:
        headers = {"Cache-Control": "no-store"}
        super().__init__(events, send_timeout=SEND_TIMEOUT, headers=headers)  # pyright: ignore[reportUnknownMemberType] - of its `content`
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. End the response also if uvicorn stops: sse-starlette leaves it open then."""
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
            log.info("disconnected a page that read nothing for %g s", SEND_TIMEOUT)
        finally:
            self._opened.count -= 1
