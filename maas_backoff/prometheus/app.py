"""The ASGI application that Prometheus scrapes."""

import anyio

from maas_backoff.prometheus.asgi import Answer, OneAnswer
from maas_backoff.prometheus.exposition import CONTENT_TYPE, metrics
from maas_backoff.scheduler import TaskBackoffScheduler


class MetricsApp(OneAnswer):
    """Answers GET with the numbers of a scheduler's queue: `app.mount("/metrics", MetricsApp(scheduler))`.

    The outer application starts and stops the scheduler. Scrapes that arrive during another scrape share one answer.
    """

    def __init__(self, scheduler: TaskBackoffScheduler) -> None:
        self._scheduler = scheduler
        self._one_at_a_time = anyio.Lock()
        self._scrapes = 0
        self._text = b""

    async def answer(self, query: str) -> Answer:  # noqa: ARG002 - a scrape has no options
        """Return the numbers in the text format of Prometheus."""
        seen = self._scrapes
        async with self._one_at_a_time:
            if self._scrapes == seen:
                self._text = await metrics(self._scheduler)
                self._scrapes += 1
            return Answer(self._text, CONTENT_TYPE)
