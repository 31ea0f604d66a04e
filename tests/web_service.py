"""A web service with a queue of its own: accept, run, follow, cancel. The README shows this file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio
from fastapi import Body, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse

from maas_backoff import MaasBackoffError, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskNotFoundError

scheduler = TaskBackoffScheduler(TaskBackoffConfig.from_env())  # MAAS_BACKOFF_URL, MAAS_BACKOFF_BIZ_PREFIX, …


@scheduler.set_custom_task_handler
async def render(task: TaskEntity) -> dict[str, Any]:
    for step in range(10):
        task.update_progress(10 * step, "denoising")
        await anyio.sleep(task.task_params.get("seconds", 0) / 10)
    return {"image": f"/images/{task.task_id}.png"}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with scheduler:  # await scheduler.start() … await scheduler.shutdown()
        yield


app = FastAPI(lifespan=lifespan)


@app.exception_handler(MaasBackoffError)
async def refused(_: Request, error: MaasBackoffError) -> JSONResponse:
    if error.http_status == 500:  # not the client's doing: let it be logged
        raise error
    return JSONResponse({"detail": error.http_detail}, error.http_status, error.http_headers)


@app.exception_handler(RequestValidationError)
async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    # Without the input, which FastAPI's own answer repeats: NaN and half of an emoji are no JSON, and would be a 500.
    return JSONResponse({"detail": [{"loc": one["loc"], "msg": one["msg"]} for one in error.errors()]}, 422)


@app.post("/images", status_code=202)
async def create(
    prompt: Annotated[str, Body()],
    seconds: Annotated[float, Body(ge=0)] = 0,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> dict[str, str]:
    params = {"prompt": prompt, "seconds": seconds}
    return {"task_id": await scheduler.create_task(params, task_id=idempotency_key)}


@app.post("/images/now")
async def create_and_wait(
    request: Request, prompt: Annotated[str, Body()], seconds: Annotated[float, Body(ge=0)] = 0
) -> Any:
    params = {"prompt": prompt, "seconds": seconds}
    async with scheduler.call(params, disconnected=request.is_disconnected) as task_id:  # ends with its client
        return (await scheduler.wait_task(task_id, timeout=60)).result


@app.get("/images/{task_id}")
async def read(task_id: str) -> dict[str, Any]:
    return (await found(task_id)).to_dict()


@app.delete("/images/{task_id}")
async def cancel(task_id: str) -> bool:
    return await scheduler.cancel_task(task_id, running=True)


@app.get("/images/{task_id}/events")
async def events(task_id: str, last_event_id: Annotated[str | None, Header()] = None) -> EventSourceResponse:
    await found(task_id)
    return EventSourceResponse(event.to_sse() async for event in scheduler.watch(task_id, after=last_event_id))


@app.get("/healthz")
async def alive() -> dict[str, bool]:
    return {"alive": True}  # whether the event loop answers: no server is asked


@app.get("/readyz")
async def ready() -> dict[str, bool]:
    health = scheduler.health()
    if not health.ready:
        raise HTTPException(503, "; ".join(health.reasons))
    return {"ready": True}


async def found(task_id: str) -> TaskEntity:
    task = await scheduler.get_task(task_id)
    if task is None:
        raise TaskNotFoundError(task_id)
    return task
