"""The dashboard as an ASGI application."""

from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from maas_backoff.dashboard.access import Authorize, Guard
from maas_backoff.dashboard.actions import Actions
from maas_backoff.dashboard.assets import Assets
from maas_backoff.dashboard.feed import Feed
from maas_backoff.dashboard.reading import Reading
from maas_backoff.dashboard.selecting import Shown
from maas_backoff.errors import MaasBackoffError, StorageError
from maas_backoff.scheduler import TaskBackoffScheduler


def dashboard(
    scheduler: TaskBackoffScheduler,
    *,
    authorize: Authorize | None = None,
    title: str | None = None,
    payloads: bool = False,
    errors: bool | None = None,
) -> ASGIApp:
    """Return a page that shows the scheduler's queue, as an application for `app.mount("/tasks", …)`.

    `authorize` is called for each request. It returns the rights of the request: `Access.ACT` (or True), `Access.READ`,
    or `Access.NONE` (or False), or a `Visitor` with one of them and a name for the log. Without `authorize` everybody
    may read and nobody may act. `title` is the name of the queue if None. `payloads` shows the params and results of
    tasks. `errors` shows error messages and tracebacks, which often have a part of the params; None: as `payloads`. The
    type of an error is always shown. The application needs no lifespan, and may be mounted any number of times. The
    scheduler may be a producer, started or not. Raises MissingExtraError without the extra `dashboard`.
    """
    shown = Shown.of(payloads=payloads, errors=errors)
    return Guard(unguarded(scheduler, Assets(), title=title, shown=shown), authorize)


def unguarded(
    scheduler: TaskBackoffScheduler, assets: Assets, *, title: str | None, shown: Shown, queues: str = ""
) -> Starlette:
    """Return the application without its guard. `queues` is the address of the page of all queues; empty: none."""
    feed = Feed(scheduler)
    reading, actions = Reading(scheduler, feed, shown), Actions(scheduler, feed, shown)

    async def page(request: Request) -> Response:
        queue = scheduler.config.task.biz_prefix
        text = assets.page(
            title=title or queue,
            queue=queue,
            queues=queues,
            access=request.state.access,
            payloads="shown" if shown.payloads else "hidden",
            errors="shown" if shown.errors else "hidden",
        )
        return HTMLResponse(text, headers={"Cache-Control": "no-store"})

    return Starlette(
        routes=[
            Route("/", page),
            Route("/static/{version}/{name}", assets.file),
            Route("/api/snapshot", reading.snapshot),
            Route("/api/events", reading.events),
            Route("/api/tasks", reading.tasks),
            Route("/api/count", reading.count),
            Route("/api/groups", reading.groups),
            Route("/api/breakdown", reading.breakdown),
            Route("/api/task", reading.task),
            Route("/api/task/{action}", actions.on_task, methods=["POST"]),
            Route("/api/selection/{action}", actions.on_selection, methods=["POST"]),
            Route("/api/worker/{action}", actions.on_worker, methods=["POST"]),
            Route("/api/gpu/{action}", actions.on_gpu, methods=["POST"]),
            Route("/api/queue/{action}", actions.on_queue, methods=["POST"]),
        ],
        exception_handlers=HANDLERS,
    )


async def _http_error_response(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _error_response(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 503 if isinstance(error, StorageError) else 400)


HANDLERS: Mapping[Any, Any] = {MaasBackoffError: _error_response, HTTPException: _http_error_response}
"""The responses to errors, in JSON."""
