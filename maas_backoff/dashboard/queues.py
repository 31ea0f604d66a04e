"""A page of all queues of a server, with a page for each of them."""

import time

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from maas_backoff.dashboard.access import Authorize, Guard
from maas_backoff.dashboard.app import HANDLERS, unguarded
from maas_backoff.dashboard.assets import Assets
from maas_backoff.dashboard.selecting import Shown
from maas_backoff.dashboard.views import View, summary_view
from maas_backoff.scheduler import TaskBackoffScheduler
from maas_backoff.store.server_queues import ServerQueues, read_queues

PERIOD = 3.0
"""Seconds for which the numbers of all queues are kept: each read opens a connection for each queue."""

KEYS = 100_000
"""About the most keys of the server that are looked at."""


def server_dashboard(
    scheduler: TaskBackoffScheduler,
    *,
    authorize: Authorize | None = None,
    payloads: bool = False,
    errors: bool | None = None,
) -> ASGIApp:
    """Return a page that lists the queues of the scheduler's server, and has a dashboard for each of them.

    The options are those of `dashboard`, for all queues: an `authorize` that grants rights on one queue only has to
    look at the path, `/queue/NAME/`. The scheduler's configuration is used with other names of queues. Raises
    MissingExtraError without the extra `dashboard`.
    """
    shown = Shown.of(payloads=payloads, errors=errors)
    assets = Assets()
    queues = _Queues(scheduler, assets, shown)

    async def page(_: Request) -> Response:
        return HTMLResponse(assets.page("queues.html"), headers={"Cache-Control": "no-store"})

    async def numbers(_: Request) -> Response:
        return JSONResponse(_view(await queues.found()), headers={"Cache-Control": "no-store"})

    routes = [
        Route("/", page),
        Route("/static/{version}/{name}", assets.file),
        Route("/api/queues", numbers),
        Mount("/queue/{queue}", queues),
    ]
    return Guard(Starlette(routes=routes, exception_handlers=HANDLERS), authorize)


def _view(found: ServerQueues) -> View:
    return {"queues": [summary_view(one) for one in found.queues], "complete": found.complete}


class _Queues:
    """The dashboards of the queues, each made when it is asked for the first time."""

    def __init__(self, scheduler: TaskBackoffScheduler, assets: Assets, shown: Shown) -> None:
        self._config = scheduler.config
        self._assets = assets
        self._shown = shown
        self._lock = anyio.Lock()
        self._pages: dict[str, ASGIApp] = {}
        self._found = ServerQueues([], complete=True)
        self._due = 0.0

    async def found(self) -> ServerQueues:
        """Return the queues of the server, as of PERIOD ago or later."""
        async with self._lock:
            if self._due <= time.monotonic():
                self._found = await read_queues(self._config, KEYS)
                self._due = time.monotonic() + PERIOD
            return self._found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on to the dashboard of its queue. A queue that nobody has used has none."""
        name = scope["path_params"]["queue"]
        if name not in self._pages:
            if all(one.name != name for one in (await self.found()).queues):
                raise HTTPException(404)
            config = self._config.copy()
            config.task.biz_prefix = name
            producer = TaskBackoffScheduler(config)
            self._pages[name] = unguarded(producer, self._assets, title=None, shown=self._shown, queues="../../")
        await self._pages[name](scope, receive, send)
