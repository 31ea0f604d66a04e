"""Kinds that child processes import. The scheduler's configuration is set by the test."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from maas_backoff import TaskBackoffConfig, TaskBackoffScheduler, TaskEntity

scheduler = TaskBackoffScheduler(TaskBackoffConfig.from_dict({"task": {"biz_prefix": "test"}}))


@dataclass
class Place:
    pid: int
    text: str


@scheduler.task
async def coroutine(text: str) -> Place:
    return Place(os.getpid(), text)


@scheduler.task(max_retry_count=0)
def plain(task: TaskEntity, *, text: str = "default") -> Place:
    return Place(os.getpid(), f"{task.kind} {text}")


@contextmanager
def model() -> Generator[list[int], None, None]:
    yield [os.getpid()]


@scheduler.task(lifespan=model)
def on_model(model: list[int], n: int) -> list[int]:
    model.append(n)
    return model


@scheduler.task(lifespan=model)
async def also_on_model(task: TaskEntity, model: list[int]) -> list[int]:
    return model


@scheduler.set_custom_task_handler
def nameless(task: TaskEntity) -> object:
    return {"pid": os.getpid(), **task.task_params}
