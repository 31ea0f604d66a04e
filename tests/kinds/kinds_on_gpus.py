"""Kinds whose tasks need a GPU, and one that needs none, for child processes."""

import os
from collections.abc import Generator
from contextlib import contextmanager

from maas_backoff import GpuAssignment, TaskBackoffConfig, TaskBackoffScheduler, TaskEntity

scheduler = TaskBackoffScheduler(TaskBackoffConfig.from_dict({"task": {"biz_prefix": "test"}}))


@contextmanager
def model(gpu: GpuAssignment | None) -> Generator[str, None, None]:
    assert gpu is not None
    yield f"{gpu.uuid} {os.environ['CUDA_VISIBLE_DEVICES']} {os.getpid()}"


@scheduler.task(min_gpu_memory_gb=8, lifespan=model)
def on_gpu(task: TaskEntity, model: str) -> tuple[str, str]:
    assert task.gpu is not None
    return model, task.gpu.uuid


@scheduler.task
def without_gpu(task: TaskEntity) -> tuple[bool, int]:
    return task.gpu is None, os.getpid()
