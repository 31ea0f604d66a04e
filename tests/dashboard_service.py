"""A web service with three dashboards, for tests: one that may act, one that may not, one that shows payloads."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, HTTPException, Request

from maas_backoff import GpuConfig, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity
from maas_backoff.dashboard import Access, Visitor, dashboard, server_dashboard
from maas_backoff.testing import FakeGpu, FakeGpuProbe

config = TaskBackoffConfig.from_env()
config.gpu = GpuConfig()
scheduler = TaskBackoffScheduler(config, gpu_probe=FakeGpuProbe([FakeGpu("GPU-a", total_gb=24, name="Fake <b>L4</b>")]))


@scheduler.set_custom_task_handler
async def handle(task: TaskEntity) -> object:
    params = task.task_params
    for line in params.get("lines", []):
        task.log(line)
    if "progress" in params:
        task.update_progress(40, params["progress"])
    await anyio.sleep(params.get("seconds", 0))
    if "error" in params and (task.attempt == 1 or "fail_first" not in params):
        raise type(params.get("type", "ModelError"), (Exception,), {})(params["error"])
    for step in range(params.get("steps", 0)):
        task.update_progress(step)
        await anyio.sleep(0.3)
    return params.get("result")


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    if os.environ.get("PRODUCER"):
        yield
        return
    async with scheduler:
        yield


async def authorize(request: Request) -> Access | Visitor | bool:
    who = request.headers.get("x-user", "admin")
    if who == "nobody":
        raise HTTPException(401, "log in", {"WWW-Authenticate": "Basic"})
    return {"admin": Visitor(Access.ACT, "ada"), "stranger": False, "reader": Access.READ}[who]


app = FastAPI(lifespan=lifespan)
app.mount("/tasks", dashboard(scheduler, authorize=authorize, errors=True))
app.mount("/look", dashboard(scheduler))
app.mount("/server", server_dashboard(scheduler))
app.mount("/all", dashboard(scheduler, authorize=lambda _: Access.ACT, payloads=True, title='<b>"All"</b>'))
