"""An ASGI application for the scraper."""

from collections.abc import Awaitable, Callable, Mapping

import anyio

from maas_backoff.prometheus.exposition import CONTENT_TYPE, metrics
from maas_backoff.scheduler import TaskBackoffScheduler

Send = Callable[[dict[str, object]], Awaitable[None]]


class MetricsApp:
    """Answers GET with the numbers of a scheduler's queue: `app.mount("/metrics", MetricsApp(scheduler))`.

    The scheduler is started and stopped by the application that it is mounted in. Scrapes that come while one is on
    its way share its answer.
    """

    def __init__(self, scheduler: TaskBackoffScheduler) -> None:
        self._scheduler = scheduler
        self._one_at_a_time = anyio.Lock()
        self._scrapes = 0
        self._text = b""

    async def __call__(self, scope: Mapping[str, object], _: object, send: Send) -> None:
        """Answer a request, as ASGI 3 asks for."""
        if scope["type"] != "http":
            return
        status, text = (200, await self._latest()) if scope["method"] in {"GET", "HEAD"} else (405, b"expected GET\n")
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(text)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    async def _latest(self) -> bytes:
        seen = self._scrapes
        async with self._one_at_a_time:
            if self._scrapes == seen:
                self._text = await metrics(self._scheduler)
                self._scrapes += 1
            return self._text
