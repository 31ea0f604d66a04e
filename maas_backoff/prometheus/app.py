"""The ASGI application that Prometheus scrapes."""

from collections.abc import Awaitable, Callable, Mapping

import anyio

from maas_backoff.prometheus.exposition import CONTENT_TYPE, metrics
from maas_backoff.scheduler import TaskBackoffScheduler

Send = Callable[[dict[str, object]], Awaitable[None]]


class MetricsApp:
    """Answers GET with the numbers of a scheduler's queue: `app.mount("/metrics", MetricsApp(scheduler))`.

    The outer application starts and stops the scheduler. Scrapes that arrive during another scrape share one answer.
    """

    def __init__(self, scheduler: TaskBackoffScheduler) -> None:
        self._scheduler = scheduler
        self._one_at_a_time = anyio.Lock()
        self._scrapes = 0
        self._text = b""

    async def __call__(self, scope: Mapping[str, object], _: object, send: Send) -> None:
        """Answer a request of ASGI 3."""
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
