"""A web service with the dashboard of a fleet: two workers with fake GPUs, kinds, a batch, tenants and a limit."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI, Request

from maas_backoff import Retry, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity, TaskKind
from maas_backoff.dashboard import Access, Visitor, dashboard
from maas_backoff.testing import FakeGpu, FakeGpuProbe

GPUS = {
    "gpu-1": [
        FakeGpu("GPU-3f8a", 80, "NVIDIA H100 80GB", utilization=83),
        FakeGpu("GPU-91c2", 80, "NVIDIA H100 80GB", 24, utilization=71),
    ],
    "gpu-2": [
        FakeGpu("GPU-b07d", 24, "NVIDIA L4", utilization=42),
        FakeGpu("GPU-c41e", 24, "NVIDIA L4", utilization=12),
    ],
}
ERRORS = [
    ("ConnectionError", "model server 10.2.0.7:8000 refused the connection"),
    ("ConnectionError", "model server 10.2.0.7:8000 refused the connection"),
    ("ValueError", "prompt has 2,113 tokens, the model takes 2,048"),
    ("TimeoutError", "no answer within 30 s"),
    ("内容审核失败", "提示词第 3 段包含不允许的内容"),
]


PROBES = {name: FakeGpuProbe(gpus) for name, gpus in GPUS.items()}


def fleet(name: str) -> tuple[TaskBackoffScheduler, dict[str, TaskKind[..., Any]]]:
    config = TaskBackoffConfig.from_env()
    config.scheduler.worker_name = name
    config.threadpool.concurrency = 8
    scheduler = TaskBackoffScheduler(config, gpu_probe=PROBES[name])

    @scheduler.task(min_gpu_memory_gb=9)
    async def render(task: TaskEntity, prompt: str, seconds: float = 1) -> str:
        for step in range(1, 11):
            task.update_progress(step * 10, "denoising" if step < 9 else "encoding")
            await anyio.sleep(seconds / 10)
        return prompt

    @scheduler.task(max_retry_count=2, backoff_interval=1)
    async def caption(task: TaskEntity, text: str, fails: bool = False, seconds: float = 0) -> str:
        await anyio.sleep(seconds or random.uniform(0.05, 0.4))
        if fails:
            kind, message = ERRORS[hash(text) % len(ERRORS)]
            raise type(kind, (Exception,), {})(message)
        if task.attempt == 1 and random.random() < 0.1:
            raise Retry(after=20)
        return text

    @scheduler.batch(max_size=16, max_wait=0.2)
    async def embed(texts: list[str]) -> list[int]:
        await anyio.sleep(0.3)
        return [len(text) for text in texts]

    return scheduler, {"render": render, "caption": caption, "embed": embed}


(first, kinds), (second, _) = map(fleet, GPUS)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with first, second:
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/tasks", dashboard(first, authorize=lambda _: Visitor(Access.ACT, "ada"), errors=True, title="images"))


@app.post("/create/{kind}")
async def create(kind: str, request: Request) -> int:
    """Create tasks: `number` of them with these `args` and `options`; "{n}" is the number of the task."""
    wish = await request.json()
    options = {"limits": {"openai": 1}, **wish.get("options", {})} if kind == "caption" else wish.get("options", {})
    specs = []
    for n in range(wish.get("number", 1)):
        own = {name: value.format(n=n) if isinstance(value, str) else value for name, value in options.items()}
        args = [arg.format(n=n) if isinstance(arg, str) else arg for arg in wish["args"]]
        specs.append(kinds[kind].options(**own).spec(*args))
    return len(await kinds[kind].create_many(specs))


@app.post("/limit/{name}/{concurrency}")
async def limit(name: str, concurrency: int) -> None:
    await first.set_limit(name, concurrency=concurrency)


@app.post("/sick/{uuid}")
async def sick(uuid: str) -> None:
    """Break a GPU."""
    for name, gpus in GPUS.items():
        for gpu in gpus:
            if gpu.uuid == uuid:
                gpu.trouble = "Xid 79: fallen off the bus"
                PROBES[name].poke()
