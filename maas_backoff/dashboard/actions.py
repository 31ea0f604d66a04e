"""The page's actions on the queue and its tasks. access.py has checked the rights and the origin before."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from maas_backoff.common.guard import Log, log_for
from maas_backoff.dashboard.feed import Feed
from maas_backoff.dashboard.selecting import Shown, selection_of
from maas_backoff.domain.pause import fitting_by
from maas_backoff.errors import InvalidValueError
from maas_backoff.scheduler import TaskBackoffScheduler

log: Log = log_for("dashboard")


class Actions:
    """The responses to POST requests: `{"done": …}` with a bool, or with the number of tasks."""

    def __init__(self, scheduler: TaskBackoffScheduler, feed: Feed, shown: Shown) -> None:
        self._scheduler = scheduler
        self._feed = feed
        self._shown = shown

    async def on_task(self, request: Request) -> Response:
        """Cancel the task `?id=`, retry it, make it due now, or delete it."""
        task_id = request.query_params.get("id", "")
        match request.path_params["action"]:
            case "cancel":
                done = await self._scheduler.cancel_task(task_id, running=True)
            case "retry":
                done = await self._scheduler.retry_task(task_id)
            case "now":
                done = await self._scheduler.update_task(task_id, delay=0)
            case "delete":
                done = await self._scheduler.delete_task(task_id)
            case _:
                raise HTTPException(404)
        return self._done(request, done, f" {task_id!r}")

    async def on_queue(self, request: Request) -> Response:
        """Pause or resume the queue, or retry its failed tasks: all, or those with `?error=` in their error."""
        match request.path_params["action"]:
            case "pause":
                done: bool | int = await self._scheduler.pause(by=fitting_by(request.state.visitor))
            case "resume":
                done = await self._scheduler.resume(by=fitting_by(request.state.visitor))
            case "retry":
                error = request.query_params.get("error")
                if error and not self._shown.errors:
                    raise InvalidValueError("error", "nothing, as errors are not shown here", "a text")
                done = await self._scheduler.retry_tasks(error=error)
            case _:
                raise HTTPException(404)
        return self._done(request, done, "")

    async def on_selection(self, request: Request) -> Response:
        """Cancel all tasks of a selection, retry them, make them due now, or delete them."""
        selection = selection_of(request.query_params, self._shown)
        match request.path_params["action"]:
            case "cancel":
                done = await self._scheduler.cancel_tasks(selection, running=True)
            case "retry":
                done = await self._scheduler.retry_tasks(selection)
            case "now":
                done = await self._scheduler.update_tasks(selection, delay=0)
            case "delete":
                done = await self._scheduler.delete_tasks(selection)
            case _:
                raise HTTPException(404)
        return self._done(request, done, f" {selection}")

    async def on_worker(self, request: Request) -> Response:
        """Make the worker `?name=` quiet, or wake it; answer with the number of workers that it means."""
        name = request.query_params.get("name", "")
        action = request.path_params["action"]
        if action not in {"quiet", "wake"}:
            raise HTTPException(404)
        done = len(await self._scheduler.quiet_workers(name, on=action == "quiet"))
        return self._done(request, done, f" {name!r}")

    async def on_gpu(self, request: Request) -> Response:
        """Quarantine the GPU `?gpu=`, or release it."""
        gpu = request.query_params.get("gpu", "")
        match request.path_params["action"]:
            case "quarantine":
                by = request.state.visitor or "the dashboard"
                done = bool(await self._scheduler.quarantine_gpu(gpu, f"by {by}"))
            case "release":
                done = await self._scheduler.release_gpu(gpu)
            case _:
                raise HTTPException(404)
        return self._done(request, done, f" {gpu!r}")

    def _done(self, request: Request, done: bool | int, target: str) -> Response:
        self._feed.read_again()
        client = request.client.host if request.client else "?"
        visitor = request.state.visitor
        by = f"{visitor!r} at {client}" if visitor else client
        queue = self._scheduler.config.task.biz_prefix
        log.info("%s%s in queue %r: %s, requested by %s", request.path_params["action"], target, queue, done, by)
        return JSONResponse({"done": done})
