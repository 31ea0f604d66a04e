"""What the page reads: all at once, as it changes, and tasks."""

import json
import secrets
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import anyio
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from maas_backoff.dashboard.feed import PERIOD, Feed
from maas_backoff.dashboard.search import search
from maas_backoff.dashboard.views import task_view
from maas_backoff.domain.page import TaskPage
from maas_backoff.errors import InvalidValueError
from maas_backoff.scheduler import TaskBackoffScheduler

MOST_STREAMS = 200
"""Pages that may be open at once, of one process."""

LARGEST_PAGE = 100

FINISHED_PERIOD = 5.0
"""Seconds between two looks at an open task that is finished: it may be retried."""

SEND_TIMEOUT = 10.0
"""Seconds after which a client that takes nothing is dropped; it comes back by itself."""

_NO_STORE = {"Cache-Control": "no-store"}


class Reading:
    """The answers to GET requests for data."""

    def __init__(self, scheduler: TaskBackoffScheduler, feed: Feed, *, payloads: bool) -> None:
        self._scheduler = scheduler
        self._feed = feed
        self._payloads = payloads
        self._streams = 0
        self._run = secrets.token_hex(4)

    async def snapshot(self, _: Request) -> Response:
        """Return all parts of the page, once."""
        parts = await self._feed.changes(0)
        return JSONResponse({name: json.loads(text) for name, text in parts.items()}, headers=_NO_STORE)

    async def events(self, request: Request) -> Response:
        """Return a stream of the parts as they change, and of the task whose page is open (`?task=`)."""
        if self._streams >= MOST_STREAMS:
            raise HTTPException(503, "too many pages are open", {"Retry-After": "10"})
        run, _, version = request.headers.get("last-event-id", "").partition(".")
        since = int(version) if run == self._run and version.isdecimal() else 0
        stream = self._events(since, request.query_params.get("task"))
        return EventSourceResponse(stream, send_timeout=SEND_TIMEOUT, headers=_NO_STORE)

    async def _events(self, since: int, task_id: str | None) -> AsyncIterator[dict[str, str]]:
        self._streams += 1
        try:
            shown, look_at = "", 0.0
            while True:
                parts = await self._feed.changes(since)
                since = self._feed.version
                if task_id is not None and look_at <= time.monotonic():
                    text, period = await self._task(task_id)
                    look_at = time.monotonic() + period
                    if text != shown:
                        shown = parts["task"] = text
                for name, text in parts.items():
                    yield {"event": name, "id": f"{self._run}.{since}", "data": text}
                await anyio.sleep(PERIOD)
        finally:
            self._streams -= 1

    async def _task(self, task_id: str) -> tuple[str, float]:
        """Return a task as JSON, and after how many seconds to look again."""
        task = await self._scheduler.get_task(task_id)
        if task is None:
            return "null", FINISHED_PERIOD
        period = FINISHED_PERIOD if task.status.finished else PERIOD / 2
        return json.dumps(task_view(task, payloads=self._payloads)), period

    async def task(self, request: Request) -> Response:
        """Return one task, `?id=`."""
        task = await self._scheduler.get_task(request.query_params.get("id", ""))
        if task is None:
            raise HTTPException(404)
        return JSONResponse(task_view(task, payloads=self._payloads), headers=_NO_STORE)

    async def tasks(self, request: Request) -> Response:
        """Return a page of tasks without their payloads: `?state=&cursor=&limit=&waiting_for=&due_from=&text=`.

        Finished tasks come with the last first.
        """
        query = request.query_params
        state, cursor, text = query.get("state", "pending"), query.get("cursor"), query.get("text", "")
        limit = _number("limit", query.get("limit", "50"))
        if not 1 <= limit <= LARGEST_PAGE:
            raise InvalidValueError("limit", f"a whole number from 1 to {LARGEST_PAGE}", query["limit"])
        waiting_for = query.get("waiting_for")
        due_from = datetime.fromtimestamp(_number("due_from", query["due_from"]), UTC) if "due_from" in query else None

        async def page(size: int, start: str | None) -> TaskPage:
            reverse = state not in {"pending", "processing"}
            return await self._scheduler.list_tasks(
                state, limit=size, cursor=start, reverse=reverse, waiting_for=waiting_for, due_from=due_from, brief=True
            )

        found = await search(page, text, limit, cursor) if text else await page(limit, cursor)
        views = [task_view(task, payloads=False) for task in found.tasks]
        return JSONResponse({"tasks": views, "cursor": found.cursor}, headers=_NO_STORE)


def _number(option: str, text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 11:
        raise InvalidValueError(option, "a whole number", text)
    return int(text)
