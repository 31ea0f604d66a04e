"""The page's reads: all numbers once, their changes as a stream, and tasks."""

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from maas_backoff.common.guard import Log, log_for
from maas_backoff.dashboard.feed import MINUTES, PATIENCE, PERIOD, Feed
from maas_backoff.dashboard.selecting import Shown, number, selection_of
from maas_backoff.dashboard.stream import OpenStreams, Stream
from maas_backoff.dashboard.views import (
    SHOWN_LINES,
    View,
    breakdown_view,
    groups_view,
    line_view,
    retries_view,
    row_view,
    task_view,
)
from maas_backoff.domain.task import TaskEntity
from maas_backoff.domain.validation import checked_task_id
from maas_backoff.errors import InvalidValueError, StorageUnavailableError, TaskNotFoundError
from maas_backoff.scheduler import TaskBackoffScheduler

log: Log = log_for("dashboard")

LARGEST_PAGE = 100

GROUPED = 1000
"""The failed tasks, the last ones, that are grouped by their errors."""

FINISHED_PERIOD = 5.0
"""Seconds between two reads of an open finished task, which may be retried."""

STREAM_LIFE = 300.0
"""Seconds after which a stream ends. The page requests it again, and `authorize` is called again."""

_NO_STORE = {"Cache-Control": "no-store"}


class Reading:
    """The responses to GET requests for data."""

    def __init__(self, scheduler: TaskBackoffScheduler, feed: Feed, shown: Shown) -> None:
        self._scheduler = scheduler
        self._feed = feed
        self._shown = shown
        self._open = OpenStreams()
        self._run = secrets.token_hex(4)

    async def snapshot(self, _: Request) -> Response:
        """Return all parts of the page."""
        parts = await self._feed.changes(0)
        return JSONResponse({name: json.loads(text) for name, text in parts.items()}, headers=_NO_STORE)

    async def events(self, request: Request) -> Response:
        """Return a stream of the parts and of the open task (`?task=`), each whenever it changes."""
        if self._open.full:
            raise HTTPException(503, "too many pages are open", {"Retry-After": "10"})
        task_id = request.query_params.get("task")
        if task_id is not None:
            checked_task_id(task_id)
        run, _, version = request.headers.get("last-event-id", "").partition(".")
        since = int(version) if run == self._run and version.isdecimal() and len(version) < 18 else 0
        return Stream(self._open, self._events(since, task_id))

    async def _events(self, since: int, task_id: str | None) -> AsyncIterator[dict[str, str]]:
        """Yield the parts and the task whenever they change, for STREAM_LIFE seconds."""
        yield {"event": "clock", "data": f"{time.time():.3f}"}
        end, shown, next_read = time.monotonic() + STREAM_LIFE, "", 0.0
        while time.monotonic() < end:
            parts = list((await self._feed.changes(since)).items())
            since = self._feed.version
            for name, text in parts[:-1]:
                yield {"event": name, "data": text}
            for name, text in parts[-1:]:  # the id goes with the last part: then the page has all parts of this version
                yield {"event": name, "id": f"{self._run}.{since}", "data": text}
            if task_id is not None and next_read <= time.monotonic():
                text, period = await self._task(task_id)
                next_read = time.monotonic() + period
                if text and text != shown:
                    shown = text
                    yield {"event": "task", "data": text}
            await anyio.sleep(PERIOD)

    async def _task(self, task_id: str) -> tuple[str, float]:
        """Return a task as JSON, and the seconds until its next read; an empty text if the server does not answer."""
        try:
            with anyio.fail_after(PATIENCE):
                task, more = await self._with_more(task_id)
        except (StorageUnavailableError, TimeoutError):
            return "", 0  # the feed reports it
        except Exception as error:
            log.exception("task %r cannot be shown", task_id)  # other code has overwritten it
            return json.dumps({"task_id": task_id, "unreadable": type(error).__name__}), FINISHED_PERIOD
        if task is None:
            return "null", FINISHED_PERIOD
        period = FINISHED_PERIOD if task.status.finished else PERIOD / 2
        return json.dumps(task_view(task, self._shown) | more), period

    async def _with_more(self, task_id: str) -> tuple[TaskEntity | None, View]:
        """Return a task, with the end of its log and the retries that it has left."""
        # Calls that meet travel together: the two are one read.
        task, retries = await asyncio.gather(
            self._scheduler.get_task(task_id), self._scheduler.get_retries_ahead(task_id)
        )
        more = {} if task is None else {"log": await self._log(task_id), "retries_ahead": retries_view(retries)}
        return task, more

    async def _log(self, task_id: str) -> list[View]:
        """Return the last lines that a task has logged."""
        with contextlib.suppress(TaskNotFoundError):  # deleted since
            return [line_view(line) async for line in self._scheduler.logs(task_id, last=SHOWN_LINES)]
        return []

    async def task(self, request: Request) -> Response:
        """Return one task, `?id=`."""
        task, more = await self._with_more(request.query_params.get("id", ""))
        if task is None:
            raise HTTPException(404)
        return JSONResponse(task_view(task, self._shown) | more, headers=_NO_STORE)

    async def tasks(self, request: Request) -> Response:
        """Return a page of tasks without their payloads: `?cursor=&limit=`, and a selection as `selection_of` reads it.

        The last finished task comes first. A task whose id equals `text` is found in any state.
        """
        query = request.query_params
        cursor, text = query.get("cursor"), query.get("text", "")
        limit = number("limit", query.get("limit", "50"))
        if not 1 <= limit <= LARGEST_PAGE:
            raise InvalidValueError("limit", f"a whole number from 1 to {LARGEST_PAGE}", query["limit"])
        selection = selection_of(query, self._shown)
        reverse = all(status.finished for status in selection.status)
        found = await self._scheduler.list_tasks(selection, limit=limit, cursor=cursor, reverse=reverse, brief=True)
        tasks = {task.task_id: task for task in found.tasks}
        if text and cursor is None and (named := await self._named(text)) is not None:
            tasks = {named.task_id: named} | tasks
        views = [row_view(task, self._shown) for task in tasks.values()]
        return JSONResponse({"tasks": views, "cursor": found.cursor}, headers=_NO_STORE)

    async def groups(self, _: Request) -> Response:
        """Return the last failed tasks in groups with the same error."""
        failed = await self._scheduler.list_tasks("failed", limit=GROUPED, reverse=True, brief=True)
        return JSONResponse(groups_view(failed.tasks, self._shown), headers=_NO_STORE)

    async def breakdown(self, request: Request) -> Response:
        """Return the last hour of the kind or tenant `?by=&name=`; without both, the names of the largest of each."""
        query = request.query_params
        if "name" not in query:
            kinds, tenants = [await self._scheduler.get_breakdown(by, hours=1) for by in ("kind", "tenant")]
            return JSONResponse({"kind": list(kinds.names), "tenant": list(tenants.names)}, headers=_NO_STORE)
        name = query["name"]
        found = await self._scheduler.get_breakdown(query.get("by", ""), MINUTES, name=name)
        return JSONResponse(breakdown_view(found, name), headers=_NO_STORE)

    async def count(self, request: Request) -> Response:
        """Return the number of tasks of a selection."""
        selection = selection_of(request.query_params, self._shown)
        return JSONResponse({"count": await self._scheduler.count_tasks(selection)}, headers=_NO_STORE)

    async def _named(self, task_id: str) -> TaskEntity | None:
        with contextlib.suppress(InvalidValueError):
            return await self._scheduler.get_task(task_id)
        return None
