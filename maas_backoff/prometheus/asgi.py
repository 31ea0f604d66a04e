"""An ASGI application that answers GET with one text."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping

import attrs

Send = Callable[[dict[str, object]], Awaitable[None]]


@attrs.frozen
class Answer:
    """The answer to a request."""

    text: bytes
    content_type: str
    status: int = 200


class OneAnswer(ABC):
    """Answers GET and HEAD with the text of `answer`."""

    @abstractmethod
    async def answer(self, query: str) -> Answer:
        """Return the answer to a request with this query string."""

    async def __call__(self, scope: Mapping[str, object], _: object, send: Send) -> None:
        """Answer a request of ASGI 3."""
        if scope["type"] != "http":
            return
        found = Answer(b"expected GET\n", "text/plain", 405)
        if scope["method"] in {"GET", "HEAD"}:
            query = scope.get("query_string", b"")
            found = await self.answer(query.decode("latin-1") if isinstance(query, bytes) else "")
        text = found.text
        headers = [(b"content-type", found.content_type.encode()), (b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": found.status, "headers": headers})
        await send({"type": "http.response.body", "body": text})
