"""The demo of tenants: two kinds of tasks, three tenants with weights, and one upstream that all workers share."""

import asyncio
import logging
import time
from collections import Counter
from functools import partial

import anyio

from maas_backoff.config import SchedulerConfig, TaskBackoffConfig, TaskConfig, ThreadPoolConfig
from maas_backoff.config.storage import StorageConfig
from maas_backoff.demo.client import handler_for
from maas_backoff.demo.server import ModelServer
from maas_backoff.demo.summary import summary_line
from maas_backoff.domain.task import TaskEntity
from maas_backoff.language import t
from maas_backoff.scheduler import TaskBackoffScheduler
from maas_backoff.store.embedded import check_extra

WEIGHTS = {"acme": 3, "beta": 2, "cora": 1}
"""Shares of the tenants. Each creates so many hundred tasks that all of them have waiting ones until the end."""

PLACES = 8
"""Requests that the model server takes at a time, and the limit that the queue has for it."""

_OFF = 0.05
"""The largest difference between a share and its weight with which the demo ends well."""


def run_tenants(seed: int) -> int:
    """Run the demo, and return its exit code. Raises MissingExtraError and StorageError."""
    check_extra()
    logging.getLogger("maas_backoff").setLevel(logging.ERROR)  # hides warnings about retries, which are intended
    with ModelServer(capacity=PLACES, seed=seed) as model:
        told = "3 tenants with the weights 3, 2 and 1; a model server with {places} places at {url}"
        print(t(told, places=PLACES, url=model.url))
        return anyio.run(partial(_push, model))


async def _push(model: ModelServer) -> int:
    scheduler = TaskBackoffScheduler(
        TaskBackoffConfig(
            storage=StorageConfig(type="embedded"),
            task=TaskConfig(biz_prefix="tenants", backoff_interval=0.2, max_retry_count=10),
            threadpool=ThreadPoolConfig(concurrency=20, exec_timeout=30),
            scheduler=SchedulerConfig(shutdown_grace=2),
        )
    )
    ask = handler_for(model.url)
    done: Counter[str] = Counter()

    @scheduler.task(limits={"model": 1})
    def generate(task: TaskEntity, prompt: str) -> object:
        assert task.task_params["prompt"] == prompt
        answer = ask(task)
        done[task.tenant] += 1
        return answer

    @scheduler.task
    async def thumbnail(number: int) -> int:
        await asyncio.sleep(0.01)
        return number

    await scheduler.set_limit("model", concurrency=PLACES)
    for tenant, weight in WEIGHTS.items():
        await scheduler.set_weight(tenant, weight)
        # The first tenant's tasks are all there before the others come.
        of_tenant = generate.options(tenant=tenant)
        await generate.create_many([of_tenant.spec(f"{tenant} {number}") for number in range(120 * weight)])
    small = thumbnail.options(tenant="cora")
    await thumbnail.create_many([small.spec(number) for number in range(50)])
    async with scheduler:
        await _watch(scheduler, done)
        stats = await scheduler.get_queue_stats()
    return _judge(done, model, stats.completed_count)


async def _watch(scheduler: TaskBackoffScheduler, done: Counter[str]) -> None:
    """Print the shares of each second, until a tenant has no waiting task left."""
    started, before = time.monotonic(), Counter[str]()
    while all(done[tenant] < 110 * weight for tenant, weight in WEIGHTS.items()):
        await anyio.sleep(1)
        now = Counter(done)
        second, before = now - before, now
        (limit,) = await scheduler.limits()
        shares = "   ".join(f"{name} {second[name]:3} ({_share(second, name):4.0%})" for name in WEIGHTS)
        told = "{seconds} s  {shares}   model: {n} of {most} in use"
        seconds = f"{time.monotonic() - started:5.1f}"
        print(t(told, seconds=seconds, shares=shares, n=limit.in_use, most=PLACES), flush=True)


def _share(done: Counter[str], tenant: str) -> float:
    return done[tenant] / max(1, done.total())


def _judge(done: Counter[str], model: ModelServer, completed: int) -> int:
    total = sum(WEIGHTS.values())
    worst = max(abs(_share(done, name) - weight / total) for name, weight in WEIGHTS.items())
    print(f"\n{t('Summary')}")
    for name, weight in WEIGHTS.items():
        told, share = "{share} of the answers; its weight is {weight} of {total}", f"{_share(done, name):.1%}"
        print(summary_line(name, t(told, share=share, weight=weight, total=total)))
    print(summary_line(t("completed"), t("{n} tasks of two kinds", n=completed)))
    refused = model.refused.total()
    print(summary_line(t("model"), t("{n} requests were refused for want of a place", n=refused)))
    good = worst <= _OFF and not refused
    verdict = t("the shares are those of the weights, and the limit was never exceeded")
    print(summary_line(t("check"), verdict if good else t("FAILED")))
    return 0 if good else 1
